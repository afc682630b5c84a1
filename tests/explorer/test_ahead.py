"""The map of the head that is looked at, which is there before the layers behind it, is that of the reading."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import SinkscopeError
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.display import Pictures
from sinkscope.explorer.results import Reading, Unit, Wanted
from sinkscope.explorer.saving import view_record
from sinkscope.explorer.tables import table_of
from sinkscope.explorer.text_model import TextModel
from tests.explorer.fakes import WAIT, Gate, ask, is_whole, random_maps
from tests.explorer.references import CONFIGURATIONS, FAMILIES, TOKENS, everything, reader, text
from tests.support.zoo import build

WHOLE = slice(0, TOKENS)
SETTINGS = [name for name in CONFIGURATIONS if name != "dense"]

# --- what a model tells -----------------------------------------------------------------------------------------------


def read(model: TextModel, configuration: Configuration, layer: int):
    """What it tells ahead, the places of the layers that begin behind that, and the reading."""
    events: list[object] = []
    hooks = [
        part.attention.register_forward_pre_hook(lambda *_, place=place: events.append(place))
        for place, part in enumerate(model.anatomy.parts)
    ]
    results = model.read(configuration, TOKENS - 1, lambda: False, Wanted(layer, events.append))
    reading = next(results)
    for hook in hooks:
        hook.remove()
    told = [event for event in events if not isinstance(event, int)]
    behind = events[events.index(told[0]) + 1 :] if told else []
    return told, behind, reading


def assert_same_map(ahead, reading: Reading, layer: int) -> None:
    assert ahead.configuration == reading.configuration
    assert ahead.maps.units == [unit for unit in reading.maps.units if unit.layer == layer]
    for unit, head in enumerate(ahead.maps.units):
        for kind in ("probabilities", "logits"):
            found = getattr(ahead.maps, kind)(unit, WHOLE, WHOLE)
            expected = getattr(reading.maps, kind)(reading.maps.units.index(head), WHOLE, WHOLE)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("is_begun", [False, True], ids=["from the start", "behind what was read"])
@pytest.mark.parametrize("case", SETTINGS)
def test_a_layer_told_ahead_has_the_maps_of_the_reading(case, is_begun, layer):
    model = reader()
    if is_begun:
        everything(model, Configuration())
    told, behind, reading = read(model, CONFIGURATIONS[case][0], layer)
    assert len(told) == 1 and behind == [1][layer:]  # of two layers
    assert_same_map(told[0], reading, layer)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_tell_of_a_layer_ahead(name):
    model = reader(name)
    everything(model, Configuration())
    (told,), _, reading = read(model, CONFIGURATIONS["sinks"][0], 0)
    assert_same_map(told, reading, 0)


@pytest.mark.parametrize("case", ["another layer", "recompute"])
def test_nothing_is_told_of_a_layer_that_is_not_there_or_of_a_window_alone(case):
    configuration = Configuration(policy="recompute", window=20) if case == "recompute" else Configuration()
    assert not read(reader(), configuration, 0 if case == "recompute" else 7)[0]


@pytest.mark.parametrize("weight", ["q_proj", "k_proj", "the layer before"])
def test_a_layer_whose_weights_changed_behind_torchs_back_is_told_of_as_it_is_now(weight):
    model = build("llama")
    explored = TextModel(model, text())
    everything(explored, Configuration())
    layers = model.model.layers
    changed = layers[0].mlp.down_proj if weight == "the layer before" else getattr(layers[1].self_attn, weight)
    with torch.no_grad():
        changed.weight.data.mul_(1.5)
    told, _, reading = read(explored, CONFIGURATIONS["sinks"][0], 1)
    afresh = everything(TextModel(model, text()), CONFIGURATIONS["sinks"][0])["reading"][-1]
    assert len(told) == 1
    for one in (told[0].maps.probabilities(0, WHOLE, WHOLE), reading.maps.probabilities(4, WHOLE, WHOLE)):
        np.testing.assert_allclose(one, afresh.maps.probabilities(4, WHOLE, WHOLE), atol=2e-5)
    assert explored.model is not model and reading.maps.units[4] == Unit(1, 0)


# --- what a controller shows of it ------------------------------------------------------------------------------------


@pytest.fixture
def halfway(controller, reader):
    """A controller that shows the map of a window of 6 ahead of everything else of it."""
    reader.ahead["window 6"] = gate = Gate()
    controller.change(policy="window", window=6)
    assert gate.begun.wait(WAIT)
    controller.heard.clear()
    yield controller, gate
    gate.go.set()


def new_map() -> np.ndarray:
    return random_maps(24, 0, sum(map(ord, "window 6"))).weights


def test_the_map_that_is_there_first_is_shown_by_its_own_name_and_numbers(halfway):
    controller, gate = halfway
    assert controller.caption == "layer 0, head 0 · window 6" and controller.name == "dense"
    assert controller.numbers(9, 3)[0] == new_map()[9, 3]
    np.testing.assert_array_equal(controller.row()[0], new_map()[controller.query])
    for what in ("row", "map"):
        table = table_of(controller, what)
        assert set(table["shown"]) == {controller.caption}
        np.testing.assert_array_equal(table["probability"], new_map()[table["query"], table["key"]])
    assert controller.loss.changed == controller.loss.dense  # which are still those of what was read
    assert controller.now.reading.configuration.name == "dense"
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "window 6") and controller.ahead is None
    assert controller.heard[0] == "reading" and "ahead" not in controller.heard


def test_two_maps_beside_each_other_and_maps_over_heads_wait_for_the_reading(halfway):
    controller, _ = halfway
    for fields in ({"compare": "difference"}, {"compare": "side by side"}, {"over": "layer-mean"}):
        before = controller.map_options
        controller.show(**fields)
        assert controller.map_options != before
        assert controller.comparison.shown.setting == "dense" and controller.numbers(9, 3)[0] != new_map()[9, 3]
        controller.show(compare="nothing", over="head")
        assert controller.caption.endswith("window 6")


@pytest.mark.parametrize("end", ["stopped", "failed", "closed"])
def test_what_was_read_comes_back_where_the_rest_does_not_come(halfway, reader, end):
    controller, gate = halfway
    dense = controller.now.reading.maps.probabilities(0, slice(9, 10), slice(3, 4))[0, 0]
    if end == "failed":
        reader.errors["window 6"] = SinkscopeError("it was not to be")
        gate.go.set()
        assert controller.wait(WAIT) and controller.problem == "it was not to be"
    elif end == "stopped":
        controller.cancel()
    else:
        gate.go.set()
        controller.close()
    assert controller.ahead is None
    if end == "closed":
        assert controller.comparison.shown.maps is None
    else:
        assert "ahead" in controller.heard and controller.caption == "layer 0, head 0 · dense"
        assert controller.numbers(9, 3)[0] == dense


def test_another_setting_takes_the_place_of_a_map_that_was_ahead(halfway, reader):
    controller, gate = halfway
    controller.change(window=9)
    gate.go.set()
    assert controller.wait(WAIT) and is_whole(controller, "window 9")
    assert controller.caption == "layer 0, head 0 · window 9"
    ask(controller, window=6)
    assert controller.caption == "layer 0, head 0 · window 6"


@pytest.mark.parametrize("back", ["reset", "undo"])
def test_the_model_as_it_is_is_drawn_again_where_a_map_ahead_stood(controller, reader, back):
    reader.ahead["window 6"] = gate = Gate()
    controller.change(policy="window", window=6)
    assert gate.begun.wait(WAIT) and controller.caption.endswith("window 6")
    controller.heard.clear()
    controller.reset() if back == "reset" else controller.undo()
    gate.go.set()
    assert controller.wait(WAIT) and controller.ahead is None
    assert "reading" in controller.heard  # so that map and row are drawn, and not only what belongs to them


def test_what_is_drawn_is_grey_unless_it_is_of_the_setting_asked_for(halfway):
    controller, gate = halfway
    pictures = Pictures(controller)
    pictures.draw_head()
    assert pictures.map.frame["caption"] == pictures.text.frame["caption"].split(" · query")[0] == controller.caption
    assert not pictures.map.dimmed and not pictures.text.dimmed and pictures.losses.dimmed
    controller.show(over="layer-mean")
    pictures.draw_head()
    assert pictures.map.frame["caption"].endswith("dense") and pictures.map.dimmed and pictures.text.dimmed
    controller.show(over="head")
    pictures.draw_head()
    assert pictures.map.frame["caption"].endswith("window 6") and not pictures.map.dimmed
    gate.go.set()
    assert controller.wait(WAIT)


def test_a_view_that_is_saved_meanwhile_is_all_of_the_setting_that_was_read():
    controller, saved = Controller(reader(), [f"token {place}" for place in range(TOKENS)]), []
    controller.begin()
    assert controller.wait(WAIT)
    controller.show(scale="linear")
    controller.listen = lambda change: saved.append(view_record(controller)) if change == "ahead" else None
    ask(controller, policy="window", window=6)
    (record,) = saved
    assert record.attrs["setting"] == "dense"
    assert record["shown_map_0"].attrs["setting"] == f"{controller.maps.name(controller.unit)} · dense"
    controller.close()
