"""The runner of cells, with cells that only count."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sinkscope.errors import SinkscopeError, warn
from sinkscope.experiments import runner
from sinkscope.experiments.runner import Cell, finished_cells


@dataclass(frozen=True)
class Count(Cell[int]):
    """Its result is its number; a file holds the result."""

    number: int
    noise: object = None  # nothing depends on it
    size = 5

    @property
    def settings(self):
        return {"number": self.number}

    def read(self, path):
        if path is None or not path.exists():
            return None
        if path.read_text() != str(self.number):
            raise SinkscopeError(f"{path.name} is damaged")
        return self.number

    def run(self, path, advance):
        advance(2)
        RUNS.append(self.number)
        if path is not None:
            self.keep(self.number, path)
        return self.number

    def keep(self, result, path):
        path.write_text(str(result))


RUNS: list[int] = []


@pytest.fixture(autouse=True)
def nothing_run():
    RUNS.clear()


def test_cells_of_the_same_settings_run_once_and_finished_ones_not_at_all(tmp_path):
    cells = [Count(1), Count(2), Count(1, noise="other")]
    results = dict(finished_cells(cells, tmp_path, progress=False))
    assert [results[cell.key] for cell in cells] == [1, 2, 1] and RUNS == [1, 2]
    assert dict(finished_cells([*cells, Count(3)], tmp_path, progress=False))[Count(3).key] == 3 and RUNS == [1, 2, 3]
    assert {path.stem for path in tmp_path.iterdir()} == {Count(number).key for number in (1, 2, 3)}


def test_a_damaged_file_is_refused_before_anything_runs(tmp_path):
    cells = [Count(number) for number in range(4)]
    cells[3].path(tmp_path).write_text("torn")
    with pytest.raises(SinkscopeError, match="is damaged"):
        dict(finished_cells(cells, tmp_path, progress=False))
    assert RUNS == []


@pytest.mark.slow
def test_the_bar_counts_every_step_once_those_of_finished_cells_too(tmp_path, monkeypatch):
    bars = []
    original = runner.progress_bar
    monkeypatch.setattr(runner, "progress_bar", lambda *a, **b: bars.append(original(*a, **b)) or bars[-1])
    Count(1).keep(1, Count(1).path(tmp_path))
    dict(finished_cells([Count(number) for number in range(4)], tmp_path, progress=True))
    dict(finished_cells([Count(number) for number in range(4, 7)], None, n_jobs=2, progress=True))
    assert [(bar.total, bar.n) for bar in bars] == [(20, 20), (15, 15)]
    assert not runner.BARS


def test_a_warning_points_to_the_line_that_called_sinkscope():
    code = compile(
        "from sinkscope.errors import warn\ndef inner(): warn('words')\ndef outer(): inner()", "inside", "exec"
    )
    module = {"__name__": "sinkscope.somewhere"}
    exec(code, module)
    with pytest.warns(UserWarning, match="words") as caught:
        module["outer"]()
    assert Path(caught[0].filename) == Path(__file__)
    with pytest.warns(UserWarning, match="direct") as caught:
        warn("direct")
    assert Path(caught[0].filename) == Path(__file__)
