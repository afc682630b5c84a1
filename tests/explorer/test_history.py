"""The settings that were shown: each with its perplexity, and the way back and forth."""

from __future__ import annotations

import gc
import weakref

import pytest

from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.history import MOST, History
from tests.explorer.fakes import Gate, ask


def go(controller, act):
    act()
    assert controller.wait(30)
    return controller.name


@pytest.mark.slow
def test_undo_and_redo_walk_over_the_settings_that_were_shown(controller):
    for window in (6, 8, 10):
        ask(controller, policy="window", window=window)
    assert [go(controller, controller.undo) for _ in range(3)] == ["window 8", "window 6", "dense"]
    assert not controller.can_undo
    controller.undo()
    assert controller.problem.startswith("there is nothing to undo") and controller.name == "dense"
    assert [go(controller, controller.redo) for _ in range(3)] == ["window 6", "window 8", "window 10"]
    controller.redo()
    assert controller.problem.startswith("there is nothing to redo")


@pytest.mark.slow
def test_a_new_setting_after_an_undo_ends_the_way_forth_and_all_stay_in_the_history(controller):
    for window in (6, 8):
        ask(controller, policy="window", window=window)
    go(controller, controller.undo)
    ask(controller, policy="window", window=12)
    assert not controller.history.can_go_forth
    assert [each.configuration.name for each in controller.history.visits] == [
        "dense",
        "window 6",
        "window 8",
        "window 12",
    ]
    assert [go(controller, controller.undo) for _ in range(2)] == ["window 6", "dense"]


def test_a_visit_tells_the_perplexity_that_was_shown_and_dense(controller):
    ask(controller, policy="window", window=6)
    loss, visit = controller.loss, controller.history.visits[-1]
    assert visit.loss == loss
    assert str(visit) == f"window 6: perplexity {loss.changed:.2f}, dense {loss.dense:.2f}"
    assert str(controller.history.visits[0]).startswith("dense: perplexity")


@pytest.mark.slow
def test_a_setting_that_is_refused_or_was_never_shown_is_no_step(controller, reader):
    ask(controller, policy="window", window=6)
    controller.change(policy="chosen", evicted=(99,))
    assert controller.problem and len(controller.history.visits) == 2
    assert go(controller, controller.undo) == "window 6" and controller.configuration.policy == "window"
    gate = reader.gates["window 8"] = Gate()
    controller.change(window=8)
    assert gate.begun.wait(30)
    gate.go.set()
    controller.cancel()
    assert controller.wait(30) and [each.configuration.name for each in controller.history.visits][1:] == ["window 6"]
    assert go(controller, controller.undo) == "window 6"  # what is shown
    assert go(controller, controller.undo) == "dense"


@pytest.mark.slow
def test_a_history_keeps_nothing_of_what_was_read(controller):
    kept = []
    for window in range(1, 21):
        ask(controller, policy="window", window=window)
        kept.append(weakref.ref(controller.now.reading.maps))
    gc.collect()
    assert len(controller.history.visits) == 21
    assert [place for place, each in enumerate(kept) if each() is not None] == [19]  # what is shown


@pytest.mark.parametrize("count", [3, MOST + 5])
def test_a_history_is_bounded(count):
    history = History()
    for window in range(1, count + 1):
        history.note(Configuration(policy="window", window=window), None)
    assert len(history.visits) == min(count, MOST)
    back = 0
    while history.can_go_back(Configuration(policy="window", window=count - back)):
        history.back(Configuration(policy="window", window=count - back))
        back += 1
    assert back == min(count, MOST) - 1
