"""Benchmarks are run by hand, so that they run at all is seen here: each is imported, which measures nothing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for each in SCRIPTS:  # one imports another by its bare name
        monkeypatch.delitem(sys.modules, each, raising=False)
    assert importlib.import_module(name).__doc__
    for each in SCRIPTS:
        sys.modules.pop(each, None)
