"""The explorer without widgets: what is asked for, what is shown, and that they are never mixed up."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sinkscope import SinkscopeError
from sinkscope.explorer.controller import NEEDS_MODEL, Controller, sentence
from sinkscope.explorer.head_maps import Unit
from sinkscope.explorer.mailbox import Mailbox
from sinkscope.explorer.setting import OWN, Setting
from tests.explorer.given import LENGTH, WAIT, Gate, Reader, random_maps

TOKENS = [f"token {place}" for place in range(LENGTH)]
INVALID = [
    (dict(kind="sinks", sinks=9, window=8), "smaller than the 9 sinks"),
    (dict(kind="window", window=0), "cannot be kept"),
    (dict(kind="recompute", window=0), "cannot be kept"),
    (dict(kind="chosen", evicted=tuple(range(LENGTH))), f"all {LENGTH} tokens are evicted"),
    (dict(kind="chosen", evicted=(LENGTH,)), f"token {LENGTH} cannot be evicted"),
    (dict(kind="chosen", evicted=(3,), since=LENGTH), "choose an earlier one"),
]


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def controller(reader):
    """One whose text has been read with the model as it is; `heard` is what it has said since."""
    made = Controller(reader, TOKENS)
    made.begin()
    assert made.wait(WAIT)
    made.heard = []
    made.listen = made.heard.append
    yield made
    for gate in reader.gates.values():
        gate.go.set()
    made.close()


def ask(controller, **fields):
    controller.change(**fields)
    assert controller.wait(WAIT)


def is_whole(controller, name) -> bool:
    """Whether what is shown is there in full, all of it of one setting."""
    now = controller.now
    of = {each.setting.name for each in (now.reading, now.overview, now.price, now.continuation)}
    return controller.name == name and of == {name} and now.continuation.done


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_text_is_read_with_the_model_as_it_is_and_everything_is_announced_as_it_comes(reader):
    heard = []
    controller = Controller(reader, TOKENS, listen=heard.append)
    assert (controller.name, controller.units, controller.caption, controller.tile()) == ("", [], "", None)
    controller.begin()
    assert controller.wait(WAIT) and is_whole(controller, "dense") and controller.now is controller.dense
    assert heard == ["busy", "reading", "overview", "price", "continuation", "continuation", "busy"]
    assert reader.asked == [("dense", LENGTH - 1)] and controller.busy == controller.problem == ""
    assert controller.caption == "layer 0, head 0 · dense"


def test_another_setting_is_read_and_shown_beside_the_model_as_it_is_which_is_not_read_again(controller, reader):
    ask(controller, kind="window", window=6)
    assert is_whole(controller, "window 6") and controller.dense.reading.setting.name == "dense"
    assert reader.asked == [("dense", LENGTH - 1), ("window 6", LENGTH - 1)]
    assert controller.heard[:3] == ["setting", "busy", "reading"] and controller.heard[-1] == "busy"
    before = np.exp(controller.dense.reading.losses[8:].mean(dtype=float))
    after = np.exp(controller.now.reading.losses[8:].mean(dtype=float))
    assert (controller.loss.dense, controller.loss.changed) == (pytest.approx(before), pytest.approx(after))
    assert controller.loss.tokens == LENGTH - 8


def test_the_model_as_it_is_comes_back_at_once_and_without_being_read(controller, reader):
    ask(controller, kind="window", window=6)
    count = len(reader.asked)
    controller.reset()
    assert controller.wait(WAIT) and is_whole(controller, "dense") and len(reader.asked) == count
    assert controller.setting == controller.plain


def test_a_setting_asked_for_before_anything_was_read_comes_before_the_rest_of_the_model_as_it_is(reader):
    controller, shown = Controller(reader, TOKENS), []
    controller.listen = lambda what: shown.append((what, controller.name))
    ask(controller, kind="window", window=6)
    names = [name for name, _ in reader.asked]
    assert names == ["dense", "window 6", "dense"]  # its losses, the setting, then how it goes on
    assert is_whole(controller, "window 6") and controller.dense.continuation.done
    readings = [name for what, name in shown if what == "reading"]
    assert readings[0] == "dense" and set(readings[1:]) == {"window 6"}
    controller.close()


@pytest.mark.parametrize("fields", [{}, {"kind": "window", "window": 6}])
def test_a_listener_that_takes_its_results_late_has_nothing_read_twice(reader, fields):
    mailbox, heard = Mailbox(), []
    controller = Controller(reader, TOKENS, deliver=mailbox.deliver, listen=heard.append)
    controller.begin()
    if fields:
        assert mailbox.pump(lambda: not controller.busy, WAIT)
        controller.change(**fields)
    assert controller.wait(WAIT)  # the work is done, and nothing of it has been taken
    count = len(reader.asked)
    assert mailbox.pump(lambda: not controller.busy, WAIT) and controller.problem == ""
    assert count == 1 + bool(fields) and is_whole(controller, "window 6" if fields else "dense")
    assert set(heard) <= {"busy", "setting", "reading", "overview", "price", "continuation"}


def test_a_setting_that_is_shown_is_not_read_again(controller, reader):
    ask(controller, kind="window", window=6)
    count = len(reader.asked)
    ask(controller, kind="window", window=6)
    assert len(reader.asked) == count


def test_settings_that_leave_the_model_as_it_is_are_not_read(controller, reader):
    ask(controller, sinks=2)
    ask(controller, kind="chosen")
    assert reader.asked == [("dense", LENGTH - 1)] and is_whole(controller, "dense")


# --- the latest request wins ------------------------------------------------------------------------------------------


def test_the_latest_request_wins_and_nothing_of_the_others_is_shown(controller, reader):
    gate = reader.gates["window 6"] = Gate()
    shown = []
    controller.listen = lambda what: shown.append(controller.name)
    controller.change(kind="window", window=6)
    assert gate.begun.wait(WAIT)
    for window in (7, 8, 9):
        controller.change(window=window)
    assert controller.busy == "window 9"
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "window 9")
    assert set(shown) == {"dense", "window 9"}
    assert reader.asked[-1] == ("window 9", LENGTH - 1) and ("window 8", LENGTH - 1) not in reader.asked


def test_results_that_are_on_their_way_when_another_setting_is_asked_for_are_dropped(reader):
    mailbox = Mailbox()
    controller = Controller(reader, TOKENS, deliver=mailbox.deliver)
    controller.begin()
    assert mailbox.pump(lambda: not controller.busy, WAIT)
    controller.change(kind="window", window=6)
    assert controller.wait(WAIT)  # all of its results are in the mailbox
    shown = []
    controller.listen = lambda what: shown.append(controller.name)
    controller.change(window=7)
    assert mailbox.pump(lambda: not controller.busy, WAIT) and is_whole(controller, "window 7")
    assert set(shown) == {"dense", "window 7"}
    controller.close()


def test_a_newer_request_overtakes_also_the_first_reading(reader):
    gate = reader.gates["dense"] = Gate()
    controller = Controller(reader, TOKENS)
    controller.begin()
    assert gate.begun.wait(WAIT)
    controller.change(kind="window", window=6)
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "window 6") and controller.dense.reading is not None
    controller.close()


def test_stopping_leaves_what_is_shown_and_the_same_setting_can_be_asked_for_again(controller, reader):
    gate = reader.gates["window 6"] = Gate()
    controller.change(kind="window", window=6)
    assert gate.begun.wait(WAIT)
    controller.cancel()
    assert controller.busy == "" and is_whole(controller, "dense")
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "dense")
    ask(controller, window=6)
    assert is_whole(controller, "window 6")


def test_a_first_reading_that_was_stopped_can_be_had_by_reset(reader):
    gate = reader.gates["dense"] = Gate()
    controller = Controller(reader, TOKENS)
    controller.begin()
    assert gate.begun.wait(WAIT)
    controller.cancel()
    gate.go.set()
    assert controller.wait(WAIT) and controller.maps is None
    controller.reset()
    assert controller.wait(WAIT) and is_whole(controller, "dense")
    controller.close()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SinkscopeError("a sentence that says what to do."), "a sentence that says what to do."),
        (ValueError("something\nand much more of it"), "ValueError: something"),
        (RuntimeError(), "RuntimeError: "),
    ],
)
def test_an_exception_inside_becomes_one_sentence_and_the_next_request_works(controller, reader, error, said):
    reader.errors["window 6"] = error
    ask(controller, kind="window", window=6)
    assert controller.problem == said == sentence(error) and controller.heard[-1] == "problem"
    assert controller.busy == "" and is_whole(controller, "dense")
    ask(controller, window=7)
    assert controller.problem == "" and is_whole(controller, "window 7")
    del reader.errors["window 6"]
    ask(controller, window=6)
    assert is_whole(controller, "window 6")


def test_a_setting_that_failed_can_be_tried_again_as_it_is(controller, reader):
    reader.errors["window 6"] = ValueError("not now")
    ask(controller, kind="window", window=6)
    del reader.errors["window 6"]
    ask(controller, window=6)
    assert controller.problem == "" and is_whole(controller, "window 6")


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_a_setting_that_cannot_be_leaves_what_is_shown_with_its_own_name(controller, reader, fields, message):
    ask(controller, kind="window", window=6)
    count = len(reader.asked)
    ask(controller, **fields)
    assert message in controller.problem and is_whole(controller, "window 6")
    assert len(reader.asked) == count and controller.busy == ""
    controller.choose_query(3)  # also where another query would be read
    assert controller.wait(WAIT) and message in controller.problem
    ask(controller, kind="window", window=5)
    assert controller.problem == "" and is_whole(controller, "window 5")


def test_a_setting_that_cannot_be_stops_what_is_under_way(controller, reader):
    gate = reader.gates["window 6"] = Gate()
    controller.change(kind="window", window=6)
    assert gate.begun.wait(WAIT)
    controller.change(kind="sinks", sinks=9, window=8)
    assert controller.busy == "" and "smaller" in controller.problem
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "dense") and "smaller" in controller.problem


def test_reset_leads_out_of_a_setting_that_cannot_be(controller):
    ask(controller, kind="sinks", sinks=9, window=8)
    controller.reset()
    assert controller.wait(WAIT) and controller.problem == "" and is_whole(controller, "dense")


# --- tokens and queries -----------------------------------------------------------------------------------------------


def test_tokens_are_evicted_and_given_back_one_by_one(controller):
    since = controller.setting.since
    for token, evicted in ((7, (7,)), (3, (3, 7)), (7, (3,)), (3, ())):
        controller.toggle(token)
        assert controller.wait(WAIT) and controller.setting.evicted == evicted
        keys = f"key{'s' * (len(evicted) > 1)} " + " ".join(map(str, evicted))
        assert is_whole(controller, f"evict {keys} from query {since}" if evicted else "dense")


def test_tokens_evicted_before_another_policy_was_chosen_are_not_evicted_by_the_next_click(controller):
    controller.toggle(7)
    assert controller.wait(WAIT)
    ask(controller, kind="window", window=6)
    controller.toggle(3)
    assert controller.wait(WAIT) and controller.setting.evicted == (3,)


def test_another_query_is_read_only_where_it_has_maps_of_its_own(controller, reader):
    controller.choose_query(5)
    assert controller.wait(WAIT) and len(reader.asked) == 1 and controller.heard == ["query"]
    ask(controller, kind="recompute", window=4)
    assert reader.asked[-1] == ("recompute 4", 5) and (controller.maps.first, controller.maps.length) == (2, 4)
    controller.choose_query(20)
    assert controller.wait(WAIT)
    assert reader.asked[-1] == ("recompute 4", 20) and (controller.maps.first, controller.maps.length) == (17, 4)
    controller.choose_query(20)
    assert controller.wait(WAIT) and len(reader.asked) == 3


def test_queries_and_heads_outside_are_not_chosen(controller):
    controller.choose_query(-5)
    assert controller.query == 0
    controller.choose_query(10**6)
    assert controller.query == LENGTH - 1
    controller.heard.clear()
    for unit in (-1, 1, 0):
        controller.choose(unit)
    assert controller.unit == 0 and controller.heard == []


def test_a_part_that_the_next_map_does_not_have_is_not_looked_at(controller):
    controller.show(window=(0, 8, 0, 8), scale="linear")
    assert controller.tile().query == (0, 8)
    ask(controller, kind="window", window=6)
    assert controller.tile().query == (0, 8)
    ask(controller, kind="recompute", window=4)
    assert controller.view.window is None and controller.tile().query == (LENGTH - 4, LENGTH)
    assert controller.view.scale == "linear"


# --- looking ----------------------------------------------------------------------------------------------------------


def test_looking_in_another_way_reads_nothing(controller, reader):
    whole = controller.maps.weights
    controller.show(scale="linear", hiding="renormalised")
    controller.show(scale="linear", hiding="renormalised")
    assert controller.heard == ["view"] and len(reader.asked) == 1
    controller.choose_query(9)
    row, _ = controller.row()
    np.testing.assert_allclose(row[1:10], whole[9, 1:10] / whole[9, 1:10].sum(), rtol=1e-5)
    assert controller.numbers(9, 0)[0] == pytest.approx(whole[9, 0])
    assert controller.numbers(0, 9) == (None, None)
    with pytest.raises(SinkscopeError, match="no way to show a map"):
        controller.show(scale="cubic")


@pytest.mark.parametrize(
    ("ranking", "order"),
    [("layer", [0, 1, 2, 3]), ("mass", [2, 0, 3, 1]), ("entropy", [1, 3, 0, 2]), ("peak", [0, 1, 2, 3])],
)
def test_heads_are_ranked_by_their_scores_the_sharpest_first(controller, ranking, order):
    controller.now.reading.maps.units = [Unit(0, head) for head in range(4)]
    scores = {"mass": np.array([0.5, 0.1, 0.9, 0.5]), "entropy": np.array([0.5, 0.1, 0.9, 0.1])}
    controller.now.overview.scores.clear()
    controller.now.overview.scores.update(scores)
    assert controller.ranked(ranking) == order
    with pytest.raises(SinkscopeError, match="is no ranking"):
        controller.ranked("beauty")


# --- the end ----------------------------------------------------------------------------------------------------------


def test_closing_leaves_no_thread_and_nothing_that_was_read(reader):
    before = set(threading.enumerate())
    heard, gate = [], Gate()
    controller = Controller(reader, TOKENS, listen=heard.append)
    controller.begin()
    assert controller.wait(WAIT)
    reader.gates["window 6"] = gate
    controller.change(kind="window", window=6)
    assert gate.begun.wait(WAIT)
    threading.Timer(0.05, gate.go.set).start()
    heard.clear()
    controller.close()
    assert not [each for each in set(threading.enumerate()) - before if each.name == "sinkscope explorer"]
    assert heard == [] and controller.model is None
    assert controller.now.reading is None and controller.dense.reading is None
    controller.close()


# --- a saved record ---------------------------------------------------------------------------------------------------


def test_a_saved_record_is_looked_at_and_what_needs_the_model_says_so():
    maps, heard = random_maps(LENGTH), []
    controller = Controller(None, TOKENS, saved=maps, listen=heard.append)
    controller.begin()
    assert controller.name == "saved record" and controller.caption == "layer 0, head 0 · saved record"
    np.testing.assert_array_equal(controller.row()[0], maps.weights[-1])
    for act in (lambda: controller.change(kind="window"), lambda: controller.toggle(3), controller.reset):
        controller.problem = ""
        act()
        assert controller.problem == NEEDS_MODEL and heard[-1] == "problem" and controller.name == "saved record"
    controller.show(scale="logit")
    assert "logits need the model" in controller.problem and controller.view.scale == "log"
    controller.show(scale="linear")
    controller.choose_query(3)
    assert controller.view.scale == "linear" and controller.row()[0][3] == maps.weights[3, 3]
    assert controller.loss is None and controller.guesses() == [] and controller.busy == ""
    controller.close()


def test_the_setting_at_first_fits_the_text():
    controller = Controller(None, TOKENS)
    assert controller.setting == Setting.of_text(LENGTH) and controller.setting.normaliser == OWN
