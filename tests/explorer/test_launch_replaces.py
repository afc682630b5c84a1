"""Which explorer takes the place of which."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from sinkscope.explorer import launch


class App:
    def __init__(self):
        self.closed = 0

    def close(self):
        self.closed += 1


@pytest.fixture(autouse=True)
def none_open(monkeypatch):
    monkeypatch.setattr(launch, "_OPEN", type(launch._OPEN)())


def cell(monkeypatch, metadata, execution: int | None = None) -> None:
    kernel = SimpleNamespace(get_parent=lambda: {"metadata": metadata} if metadata is not None else {})
    shell = SimpleNamespace(kernel=kernel, execution_count=execution)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)


@pytest.mark.parametrize("name", ["cellId", "cell_id"])
def test_a_cell_that_runs_again_closes_its_own_explorer_and_no_other(monkeypatch, name):
    apps = []
    for place in ("one", "two", "one", "two", "three"):
        cell(monkeypatch, {name: place})
        apps.append(App())
        launch.replace_earlier(apps[-1])
    assert [app.closed for app in apps] == [1, 1, 0, 0, 0]


def test_two_explorers_of_one_run_of_a_cell_stay_open_and_the_next_run_closes_both(monkeypatch):
    apps = []
    for execution in (1, 1, 2, 2):
        cell(monkeypatch, {"cellId": "one"}, execution)
        apps.append(App())
        launch.replace_earlier(apps[-1])
    assert [app.closed for app in apps] == [1, 1, 0, 0]


@pytest.mark.parametrize("metadata", [None, {}, {"cellId": None}, {"cell_id": 7}])
def test_where_cells_have_no_names_the_last_one_of_all_is_closed(monkeypatch, metadata):
    cell(monkeypatch, metadata)
    apps = [App() for _ in range(3)]
    for app in apps:
        launch.replace_earlier(app)
    assert [app.closed for app in apps] == [1, 1, 0]


def test_outside_a_notebook_too(monkeypatch):
    for shell in (None, SimpleNamespace()):
        monkeypatch.setattr("IPython.get_ipython", lambda shell=shell: shell)
        assert launch._cell() is None
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert launch._cell() is None


def test_an_explorer_that_nobody_has_any_more_is_not_kept():
    launch.replace_earlier(App())
    assert len(launch._OPEN) == 0
