"""Requests of a controller: the latest wins, and what goes wrong with one is over with the next."""

from __future__ import annotations

import re

import pytest

from sinkscope import SinkscopeError
from sinkscope.explorer.background import Mailbox, sentence
from sinkscope.explorer.controller import Controller
from tests.explorer.fakes import LENGTH, TEXTS, WAIT, Gate, ask, is_whole

INVALID = [
    (dict(policy="sinks", sinks=9, window=8), "smaller than the 9 sinks"),
    (dict(policy="window", window=0), "cannot be kept"),
    (dict(policy="recompute", window=0), "cannot be kept"),
    (dict(policy="chosen", evicted=tuple(range(LENGTH))), f"all {LENGTH} tokens are evicted"),
    (dict(policy="chosen", evicted=(LENGTH,)), f"token {LENGTH} cannot be evicted"),
    (dict(policy="chosen", evicted=(3,), since=LENGTH), "choose an earlier one"),
]


# --- the latest request wins ------------------------------------------------------------------------------------------


def test_the_latest_request_wins_and_nothing_of_the_others_is_shown(controller, reader):
    gate = reader.gates["window 6"] = Gate()
    shown = []
    controller.listen = lambda what: shown.append(controller.name)
    controller.change(policy="window", window=6)
    assert gate.begun.wait(WAIT)
    for window in (7, 8, 9):
        controller.change(window=window)
    assert controller.busy == "window 9"
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "window 9")
    assert set(shown) == {"dense", "window 9"}
    assert reader.asked[-1] == ("window 9", LENGTH - 1) and ("window 8", LENGTH - 1) not in reader.asked


def test_results_that_are_on_their_way_when_another_configuration_is_asked_for_are_dropped(reader):
    mailbox = Mailbox()
    controller = Controller(reader, TEXTS, deliver=mailbox.deliver)
    controller.begin()
    assert mailbox.pump(lambda: not controller.busy, WAIT)
    controller.change(policy="window", window=6)
    assert controller.wait(WAIT)  # all of its results are in the mailbox
    shown = []
    controller.listen = lambda what: shown.append(controller.name)
    controller.change(window=7)
    assert mailbox.pump(lambda: not controller.busy, WAIT) and is_whole(controller, "window 7")
    assert set(shown) == {"dense", "window 7"}
    controller.close()


def test_a_newer_request_overtakes_also_the_first_reading(reader):
    gate = reader.gates["dense"] = Gate()
    controller = Controller(reader, TEXTS)
    controller.begin()
    assert gate.begun.wait(WAIT)
    controller.change(policy="window", window=6)
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "window 6") and controller.dense.reading is not None
    controller.close()


def test_stopping_leaves_what_is_shown_and_the_same_configuration_can_be_asked_for_again(controller, reader):
    gate = reader.gates["window 6"] = Gate()
    controller.change(policy="window", window=6)
    assert gate.begun.wait(WAIT)
    controller.cancel()
    assert controller.busy == "" and is_whole(controller, "dense")
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "dense")
    ask(controller, window=6)
    assert is_whole(controller, "window 6")


def test_a_first_reading_that_was_stopped_can_be_had_by_reset(reader):
    gate = reader.gates["dense"] = Gate()
    controller = Controller(reader, TEXTS)
    controller.begin()
    assert gate.begun.wait(WAIT)
    controller.cancel()
    gate.go.set()
    assert controller.wait(WAIT) and controller.maps is None
    controller.reset()
    assert controller.wait(WAIT) and is_whole(controller, "dense")
    controller.close()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SinkscopeError("a sentence that says what to do."), r"a sentence that says what to do\."),
        (ValueError("something\nand much more of it"), r"ValueError: something \(fakes\.py, line \d+\)"),
        (RuntimeError(), r"RuntimeError \(fakes\.py, line \d+\)"),
    ],
)
def test_an_exception_inside_becomes_one_sentence_and_the_next_request_works(controller, reader, error, said):
    reader.errors["window 6"] = error
    ask(controller, policy="window", window=6)
    assert (
        re.fullmatch(said, controller.problem)
        and controller.problem == sentence(error)
        and controller.heard[-1] == "problem"
    )
    assert controller.busy == "" and is_whole(controller, "dense")
    ask(controller, window=7)
    assert controller.problem == "" and is_whole(controller, "window 7")
    del reader.errors["window 6"]
    ask(controller, window=6)
    assert is_whole(controller, "window 6")


def test_a_configuration_that_failed_can_be_tried_again_as_it_is(controller, reader):
    reader.errors["window 6"] = ValueError("not now")
    ask(controller, policy="window", window=6)
    del reader.errors["window 6"]
    ask(controller, window=6)
    assert controller.problem == "" and is_whole(controller, "window 6")


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_a_configuration_that_cannot_be_leaves_what_is_shown_with_its_own_name(controller, reader, fields, message):
    ask(controller, policy="window", window=6)
    count = len(reader.asked)
    ask(controller, **fields)
    assert message in controller.problem and is_whole(controller, "window 6")
    assert len(reader.asked) == count and controller.busy == ""
    controller.choose_query(3)  # also where another query would be read
    assert controller.wait(WAIT) and message in controller.problem
    ask(controller, policy="window", window=5)
    assert controller.problem == "" and is_whole(controller, "window 5")


def test_a_configuration_that_cannot_be_stops_what_is_under_way(controller, reader):
    gate = reader.gates["window 6"] = Gate()
    controller.change(policy="window", window=6)
    assert gate.begun.wait(WAIT)
    controller.change(policy="sinks", sinks=9, window=8)
    assert controller.busy == "" and "smaller" in controller.problem
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "dense") and "smaller" in controller.problem


def test_reset_leads_out_of_a_configuration_that_cannot_be(controller):
    ask(controller, policy="sinks", sinks=9, window=8)
    controller.reset()
    assert controller.wait(WAIT) and controller.problem == "" and is_whole(controller, "dense")
