"""The explorer without widgets: what is asked for, what is shown, and that they are never mixed up."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sinkscope import SinkscopeError
from sinkscope.explorer.background import Mailbox
from sinkscope.explorer.configuration import OWN, Configuration
from sinkscope.explorer.controller import CLOSED, NEEDS_MODEL, Controller
from sinkscope.explorer.results import Change, Unit
from tests.explorer.fakes import LENGTH, TEXTS, WAIT, Gate, ask, is_whole, random_maps

# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_text_is_read_with_the_model_as_it_is_and_everything_is_announced_as_it_comes(reader):
    heard = []
    controller = Controller(reader, TEXTS, listen=heard.append)
    assert (controller.name, controller.units, controller.caption, controller.tile()) == ("", [], "", None)
    controller.begin()
    assert controller.wait(WAIT) and is_whole(controller, "dense") and controller.now is controller.dense
    assert heard == ["busy", "reading", "overview", "price", "continuation", "continuation", "busy"]
    assert reader.asked == [("dense", LENGTH - 1)] and controller.busy == controller.problem == ""
    assert controller.caption == "layer 0, head 0 · dense"


def test_another_configuration_is_read_and_shown_beside_the_model_as_it_is_which_is_not_read_again(controller, reader):
    ask(controller, policy="window", window=6)
    assert is_whole(controller, "window 6") and controller.dense.reading.configuration.name == "dense"
    assert reader.asked == [("dense", LENGTH - 1), ("window 6", LENGTH - 1)]
    assert controller.heard[:3] == ["configuration", "busy", "reading"] and controller.heard[-1] == "busy"
    before = np.exp(controller.dense.reading.losses[8:].mean(dtype=float))
    after = np.exp(controller.now.reading.losses[8:].mean(dtype=float))
    assert (controller.loss.dense, controller.loss.changed) == (pytest.approx(before), pytest.approx(after))
    assert controller.loss.tokens == LENGTH - 8


def test_the_model_as_it_is_comes_back_at_once_and_without_being_read(controller, reader):
    ask(controller, policy="window", window=6)
    count = len(reader.asked)
    controller.reset()
    assert controller.wait(WAIT) and is_whole(controller, "dense") and len(reader.asked) == count
    assert controller.configuration == controller.baseline


def test_a_configuration_asked_for_before_anything_was_read_comes_before_the_rest_of_the_model_as_it_is(reader):
    controller, shown = Controller(reader, TEXTS), []
    controller.listen = lambda what: shown.append((what, controller.name))
    ask(controller, policy="window", window=6)
    names = [name for name, _ in reader.asked]
    assert names == ["dense", "window 6", "dense"]  # its losses, the configuration, then how it goes on
    assert is_whole(controller, "window 6") and controller.dense.continuation.done
    readings = [name for what, name in shown if what == "reading"]
    assert readings[0] == "dense" and set(readings[1:]) == {"window 6"}
    controller.close()


@pytest.mark.parametrize("fields", [{}, {"policy": "window", "window": 6}])
def test_a_listener_that_takes_its_results_late_has_nothing_read_twice(reader, fields):
    mailbox, heard = Mailbox(), []
    controller = Controller(reader, TEXTS, deliver=mailbox.deliver, listen=heard.append)
    controller.begin()
    if fields:
        assert mailbox.pump(lambda: not controller.busy, WAIT)
        controller.change(**fields)
    assert controller.wait(WAIT)  # the work is done, and nothing of it has been taken
    assert controller.name == ("dense" if fields else "") and (controller.dense.reading is None) == (not fields)
    count = len(reader.asked)
    assert mailbox.pump(lambda: not controller.busy, WAIT) and controller.problem == ""
    assert count == 1 + bool(fields) and is_whole(controller, "window 6" if fields else "dense")
    assert set(heard) <= {"busy", "configuration", "reading", "overview", "price", "continuation"}


def test_a_configuration_that_is_shown_is_not_read_again(controller, reader):
    ask(controller, policy="window", window=6)
    count = len(reader.asked)
    ask(controller, policy="window", window=6)
    assert len(reader.asked) == count


def test_configurations_that_leave_the_model_as_it_is_are_not_read(controller, reader):
    ask(controller, sinks=2)
    ask(controller, policy="chosen")
    assert reader.asked == [("dense", LENGTH - 1)] and is_whole(controller, "dense")


# --- tokens and queries -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tokens_are_evicted_and_given_back_one_by_one(controller):
    since = controller.configuration.since
    for token, evicted in ((7, (7,)), (3, (3, 7)), (7, (3,)), (3, ())):
        controller.toggle(token)
        assert controller.wait(WAIT) and controller.configuration.evicted == evicted
        keys = f"key{'s' * (len(evicted) > 1)} " + " ".join(map(str, evicted))
        assert is_whole(controller, f"evict {keys} from query {since}" if evicted else "dense")


@pytest.mark.slow
def test_tokens_evicted_before_another_policy_was_chosen_are_not_evicted_by_the_next_click(controller):
    controller.toggle(7)
    assert controller.wait(WAIT)
    ask(controller, policy="window", window=6)
    controller.toggle(3)
    assert controller.wait(WAIT) and controller.configuration.evicted == (3,)


def test_another_query_is_read_only_where_it_has_maps_of_its_own(controller, reader):
    controller.choose_query(5)
    assert controller.wait(WAIT) and len(reader.asked) == 1 and controller.heard == ["query"]
    ask(controller, policy="recompute", window=4)
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
    controller.show(region=(0, 8, 0, 8), scale="linear")
    assert controller.tile().query == (0, 8)
    ask(controller, policy="window", window=6)
    assert controller.tile().query == (0, 8)
    ask(controller, policy="recompute", window=4)
    assert controller.map_options.region is None and controller.tile().query == (LENGTH - 4, LENGTH)
    assert controller.map_options.scale == "linear"


# --- looking ----------------------------------------------------------------------------------------------------------


def test_looking_in_another_way_reads_nothing(controller, reader):
    whole = controller.maps.weights
    controller.show(scale="linear", hiding="renormalised")
    controller.show(scale="linear", hiding="renormalised")
    assert controller.heard == [Change.MAP_OPTIONS] and len(reader.asked) == 1
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
    controller = Controller(reader, TEXTS, listen=heard.append)
    controller.begin()
    assert controller.wait(WAIT)
    reader.gates["window 6"] = gate
    controller.change(policy="window", window=6)
    assert gate.begun.wait(WAIT)
    threading.Timer(0.05, gate.go.set).start()
    heard.clear()
    controller.close()
    assert not [each for each in set(threading.enumerate()) - before if each.name == "sinkscope explorer"]
    assert heard == [] and controller.model is None
    assert controller.now.reading is None and controller.dense.reading is None
    controller.close()


def test_what_is_asked_of_a_closed_explorer_is_refused_because_it_is_closed(controller):
    assert not controller.is_closed
    controller.close()
    for act in (
        lambda: controller.change(policy="window"),
        controller.reset,
        lambda: controller.show(scale="logit"),
        lambda: controller.choose(0),
        lambda: controller.choose_query(3),
        lambda: controller.toggle(3),
    ):
        with pytest.raises(SinkscopeError, match=CLOSED):
            act()


# --- a saved record ---------------------------------------------------------------------------------------------------


def test_a_saved_record_is_looked_at_and_what_needs_the_model_says_so():
    maps, heard = random_maps(LENGTH), []
    controller = Controller(None, TEXTS, saved=maps, listen=heard.append)
    controller.begin()
    assert controller.name == "saved record" and controller.caption == "layer 0, head 0 · saved record"
    np.testing.assert_array_equal(controller.row()[0], maps.weights[-1])
    for act in (lambda: controller.change(policy="window"), lambda: controller.toggle(3), controller.reset):
        controller.problem = ""
        act()
        assert controller.problem == NEEDS_MODEL and heard[-1] == "problem" and controller.name == "saved record"
    controller.show(scale="logit")
    assert "logits need the model" in controller.problem and controller.map_options.scale == "log"
    controller.show(scale="linear")
    controller.choose_query(3)
    assert controller.map_options.scale == "linear" and controller.row()[0][3] == maps.weights[3, 3]
    assert controller.loss is None and controller.guesses() == [] and controller.busy == ""
    controller.close()


def test_the_configuration_at_first_fits_the_text():
    controller = Controller(None, TEXTS)
    assert controller.configuration == Configuration.of_text(LENGTH) and controller.configuration.normaliser == OWN
