"""Whatever interrupts the writing, what is there is whole, old or new, and the next run goes on as if nothing was."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from sinkscope.errors import SinkscopeError
from tests.faults.children import Lines, full_at, lines_of, outcome
from tests.faults.scenarios import SCENARIOS, names, same

EVERY = 1 if os.environ.get("SINKSCOPE_FAULTS") == "all" else 60
each = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
pytestmark = [pytest.mark.slow, *([pytest.mark.timeout(0)] if EVERY == 1 else [])]  # every trial has its own limit


@pytest.fixture
def versions(scenario, tmp_path):
    """Folders with each version, and with the second written over the first; and how to start a trial."""
    first, second = tmp_path / "first", tmp_path / "second"
    scenario.write(first, 1)
    scenario.write(second, 2)
    return first, second


def trial(tmp_path, first, scenario, fresh):
    """A folder before the fault: as `first`, or empty."""
    folder = tmp_path / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    if not fresh:
        shutil.copytree(first, folder)
    return folder


def check_whole(scenario, folder, readings, tally):
    """What can be read is one of the versions."""
    try:
        found = scenario.read(folder)
    except SinkscopeError:
        tally("nothing there yet")
        return None
    known = [number for number, reading in enumerate(readings) if same(found, reading)]
    assert known
    tally("resumed" if scenario.resumes else ("old", "new")[known[0]])
    return known[0]


@pytest.mark.parametrize(
    ("scenario", "fresh"),
    [
        pytest.param(scenario, fresh, id=f"{scenario.name}-{'nothing there' if fresh else 'an older one there'}")
        for scenario in SCENARIOS
        for fresh in (True, False)
        if fresh or not scenario.resumes  # an older one of the same numbers is what a run goes on with
    ],
)
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_process_ended_at_any_line_of_the_code_that_writes(scenario, fresh, by, versions, tmp_path, tally):
    first, second = versions
    readings = [scenario.read(first), scenario.read(second)]
    count = lines_of(lambda: scenario.write(trial(tmp_path, first, scenario, fresh), 2))
    clean = names(tmp_path / "trial")
    assert count > 10
    every = EVERY if EVERY == 1 else max(EVERY, count // 12)
    every = every if by == signal.SIGKILL else 5 * every
    for last in range(0, count, every):
        folder = trial(tmp_path, first, scenario, fresh)
        told = outcome(lambda: scenario.write(folder, 2), Lines(last, by).start)  # noqa: B023
        assert told in ("killed", "ended", "well"), (last, told)  # what the system decides may make a line more or less
        if not fresh:
            assert check_whole(scenario, folder, readings, tally) is not None, last
        scenario.write(folder, 2)
        assert same(scenario.read(folder), readings[1]), last
        assert names(folder) == clean, last
        if fresh:
            tally("finished by the next run")


@each
def test_a_disk_that_is_full_at_any_size(scenario, versions, tmp_path, tally):
    first, second = versions
    readings = [scenario.read(first), scenario.read(second)]
    largest = max(path.stat().st_size for path in second.rglob("*") if path.is_file())
    sizes = sorted({0, 1, 100, largest - 1, *range(500, largest, max(1, largest // max(3, 100 // EVERY)))})
    for size in sizes:
        folder = trial(tmp_path, first, scenario, scenario.resumes)
        before = names(folder) if folder.exists() else []
        told = outcome(lambda: scenario.write(folder, 2), full_at(size))  # noqa: B023
        assert told == "refused", (size, told)
        tally(told)
        if not scenario.resumes:
            assert same(scenario.read(folder), readings[0]), size
            assert names(folder) == before, size
        scenario.write(folder, 2)
        assert same(scenario.read(folder), readings[1]), size


@each
def test_two_processes_that_write_in_one_folder_at_once(scenario, versions, tmp_path, tally):
    first, second = versions
    readings = [scenario.read(first), scenario.read(second)]
    for _ in range(1 + 8 // EVERY):
        folder = trial(tmp_path, first, scenario, scenario.resumes)
        children = []
        for version in (1, 2):
            child = os.fork()
            if not child:
                os._exit({"well": 0, "refused": 3}.get(outcome(lambda: scenario.write(folder, version)), 4))  # noqa: B023
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert set(codes) <= {0, 3} and 0 in codes, codes
        check_whole(scenario, folder, readings, tally)
        scenario.write(folder, 2)
        assert same(scenario.read(folder), readings[1])
