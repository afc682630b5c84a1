"""Files that were cut, changed by a bit, edited or put in another's place are refused, or give what they gave."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from tests.faults.children import outcome
from tests.faults.scenarios import SCENARIOS, same

TRIALS = 60 if os.environ.get("SINKSCOPE_FAULTS") == "all" else 5
each = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
pytestmark = pytest.mark.slow


@pytest.fixture
def whole(scenario, tmp_path):
    scenario.write(tmp_path / "whole", 2)
    return tmp_path / "whole"


def damaged(tmp_path, whole, path, content: bytes):
    folder = tmp_path / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / path).write_bytes(content)
    return folder


def kept(folder):
    """Files that numbers are read from, each with what is in it."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: held for path, held in found.items() if path.suffix in (".nc", ".safetensors", ".json")}


def check(scenario, folder, expected, tally, how):
    def read():
        assert same(scenario.read(folder), expected), "other numbers"

    told = outcome(read)
    assert told in ("refused", "well"), (how, told)
    tally(told if told == "refused" else "the same numbers")


@each
def test_cut_anywhere(scenario, whole, tmp_path, tally):
    expected, random = scenario.read(whole), np.random.default_rng(0)
    for path, held in kept(whole).items():
        for size in {0, 1, 8, len(held) - 1, *random.integers(0, len(held), TRIALS).tolist()}:
            check(scenario, damaged(tmp_path, whole, path, held[:size]), expected, tally, (path, size))


@each
def test_one_bit_turned(scenario, whole, tmp_path, tally):
    expected, random = scenario.read(whole), np.random.default_rng(1)
    for path, held in kept(whole).items():
        places = [*range(0, 8 * min(len(held), 600), 8 * 600 // TRIALS), *random.integers(0, 8 * len(held), TRIALS)]
        for place in places:
            changed = bytearray(held)
            changed[place // 8] ^= 1 << place % 8
            check(scenario, damaged(tmp_path, whole, path, bytes(changed)), expected, tally, (path, int(place)))


@each
def test_bytes_overwritten_or_added(scenario, whole, tmp_path, tally):
    expected, random = scenario.read(whole), np.random.default_rng(2)
    for path, held in kept(whole).items():
        for start in random.integers(0, len(held), TRIALS):
            noise = random.bytes(int(random.integers(1, 64)))
            content = held[:start] + noise + held[start + len(noise) :]
            check(scenario, damaged(tmp_path, whole, path, content), expected, tally, (path, int(start)))
        check(scenario, damaged(tmp_path, whole, path, held + b"more"), expected, tally, (path, "longer"))


@each
def test_the_file_of_something_else(scenario, whole, tmp_path, tally):
    expected = scenario.read(whole)
    others = [b"", b"\0" * 4096, b"not a file of ours\n", b"{}", b"[1, 2", b"\x89HDF\r\n\x1a\n" + b"\xff" * 4000]
    for number, other in enumerate(SCENARIOS):
        if other.name != scenario.name:
            other.write(tmp_path / f"other {number}", 2)
            found = kept(tmp_path / f"other {number}")  # a whole record is as good as another
            others += [held for path, held in found.items() if scenario.name != "record" or path.suffix != ".nc"]
    for path in kept(whole):
        for number, content in enumerate(others):
            check(scenario, damaged(tmp_path, whole, path, content), expected, tally, (path, number))
