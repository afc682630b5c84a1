"""Settings of the whole test run."""

import os
import signal
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background, where a shell ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Mark what a test's folder or fixtures tell of it."""
    for item in items:
        for folder in ("browser", "versions"):
            if TESTS / folder in item.path.parents:
                item.add_marker(folder)
        if "demo_text" in getattr(item, "fixturenames", ()):
            item.add_marker("demo")
    _longest_files_first(items)


def _longest_files_first(items):
    """Files in the order of their slow tests, those with the demo model before, so that no process ends alone."""
    slow, demo = Counter(), set()
    for item in items:
        if item.get_closest_marker("slow"):
            slow[item.path] += 1
            demo |= {item.path} if item.get_closest_marker("demo") else set()
    items.sort(key=lambda item: (item.path not in demo, -slow[item.path]))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models gain nothing from threads and lose much to them when the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_format(monkeypatch):
    """Figures of reports are written as SVG alone: test_save.py has the others."""
    from sinkscope.reporting import saving

    monkeypatch.setattr(saving, "FORMATS", ("svg",))
