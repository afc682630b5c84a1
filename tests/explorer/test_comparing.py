"""A second setting or head beside the one shown: the difference and the numbers are those of the two maps."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope.explorer.comparing import NEEDS_MODEL, NEEDS_PIN
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.difference import difference_of
from sinkscope.explorer.pixels import FAINTEST, MapOptions, pair_of, tile_of
from sinkscope.explorer.results import Unit
from tests.explorer.fakes import LENGTH, TEXTS, WAIT, FakeTextModel, FixedMaps, Gate, ask, random_maps


def decoded(pixels, ends):
    """The values that bytes stand for, NaN where there is none."""
    return np.where(pixels == 0, np.nan, ends.low + (pixels.astype(float) - 1) / 254 * (ends.high - ends.low))


def by_definition(one, two, scale):
    """One weight matrix minus another; a weight that only one has counts as none."""
    if scale == "logit":
        with np.errstate(divide="ignore"):
            return np.log(one) - np.log(two)
    both = [np.nan_to_num(each) for each in (one, two)]
    if scale == "log":
        with np.errstate(divide="ignore"):
            both = [np.maximum(np.log10(each), FAINTEST) for each in both]
    return np.where(np.isnan(one) & np.isnan(two), np.nan, both[0] - both[1])


def windowed(maps, window):
    query, key = np.mgrid[: maps.length, : maps.length]
    return FixedMaps(np.where(query - key <= window, maps.weights, np.nan), maps.first)


@pytest.mark.parametrize("scale", ["linear", "log", "logit"])
@pytest.mark.parametrize("region", [None, (10, 30, 5, 29), (30, 40, 20, 40)])
def test_the_difference_is_one_map_minus_the_other_centred_on_zero(scale, region):
    one, two = random_maps(seed=1), windowed(random_maps(seed=2), 20)
    tile = difference_of(one, 0, two, 0, MapOptions(scale, region=region))
    q0, q1, k0, k1 = region or (0, 60, 0, 60)
    assert (tile.query, tile.key, tile.sink_key) == ((q0, q1), (k0, k1), (0, 4)) and tile.is_difference
    expected = by_definition(one.weights, two.weights, scale)
    ends, step = tile.limits, (tile.limits.high - tile.limits.low) / 254
    assert ends.diverging and ends.low == -ends.high
    largest = np.nanmax(np.abs(np.hstack([expected[q0:q1, k0:k1], expected[q0:q1, :4]])))
    assert ends.high == pytest.approx(largest, rel=1e-5)
    for pixels, part in ((tile.pixels, expected[q0:q1, k0:k1]), (tile.sinks, expected[q0:q1, :4])):
        np.testing.assert_array_equal(pixels == 0, np.isnan(part))
        np.testing.assert_allclose(decoded(pixels, ends), part, atol=0.51 * step)


def test_no_difference_is_the_middle_of_the_colours():
    maps = random_maps()
    tile = difference_of(maps, 0, maps, 0, MapOptions("linear"))
    assert set(np.unique(tile.pixels)) == {0, 128}


def test_pooling_keeps_what_is_farthest_from_zero_with_its_sign():
    zeros = np.full((1024, 1024), 0.25)
    one, two = zeros.copy(), zeros.copy()
    one[301, 200], two[701, 400] = 0.75, 1.0
    tile = difference_of(FixedMaps(one), 0, FixedMaps(two), 0, MapOptions("linear"))
    values = decoded(tile.pixels, tile.limits)
    assert values.shape == (512, 512)
    assert values[150, 100] == pytest.approx(0.5, abs=0.01) and values[350, 200] == pytest.approx(-0.75)
    assert np.count_nonzero(np.abs(values) > 0.01) == 2


def test_maps_of_different_parts_are_compared_where_both_are():
    whole, window = random_maps(60), random_maps(20, first=30, seed=3)
    tile = difference_of(window, 0, whole, 0, MapOptions("linear"))
    assert (tile.query, tile.key, tile.sink_key) == ((30, 50), (30, 50), (30, 34))
    expected = by_definition(window.weights, whole.weights[30:50, 30:50], "linear")
    np.testing.assert_allclose(decoded(tile.pixels, tile.limits), expected, atol=0.51 * tile.limits.high / 127)
    assert difference_of(random_maps(20), 0, window, 0, MapOptions()) is None


@pytest.mark.parametrize("scale", ["linear", "log", "logit"])
def test_maps_side_by_side_have_one_scale(scale):
    one, two = random_maps(seed=1), windowed(random_maps(seed=2), 20)
    tiles, options = pair_of(one, 0, two, 0, MapOptions(scale, "hidden", 1)), MapOptions(scale, "hidden", 1)
    alone = [tile_of(each, 0, options).limits for each in (one, two)]
    assert tiles[0].limits == tiles[1].limits
    assert tiles[0].limits.high == max(each.high for each in alone)
    for tile, maps in zip(tiles, (one, two), strict=True):
        values = maps.logits(0, slice(0, 60), slice(0, 60)) if scale == "logit" else maps.weights
        with np.errstate(divide="ignore"):
            values = np.maximum(np.log10(values), FAINTEST) if scale == "log" else values
        np.testing.assert_allclose(
            decoded(tile.pixels, tile.limits)[:, 1:],
            values[:, 1:],
            atol=0.51 * (tile.limits.high - tile.limits.low) / 254,
        )


# --- what a controller compares with ----------------------------------------------------------------------------------


def test_dense_is_compared_with_until_something_is_pinned(controller):
    ask(controller, policy="window", window=6)
    dense, shown = controller.dense.reading.maps, controller.maps
    assert controller.comparison.partner.caption == "layer 0, head 0 · dense"
    controller.show(compare="difference", scale="linear")
    expected = difference_of(shown, 0, dense, 0, controller.map_options)
    np.testing.assert_array_equal(controller.tile().pixels, expected.pixels)
    assert controller.comparison.caption == "layer 0, head 0 · window 6 minus layer 0, head 0 · dense"
    assert controller.numbers(20, 3)[0] == pytest.approx(shown.weights[20, 3])
    assert controller.comparison.numbers(20, 3)[0] == pytest.approx(dense.weights[20, 3])
    controller.comparison.pin_setting()
    ask(controller, window=9)
    partner = controller.comparison.partner
    assert (partner.setting, partner.maps) == ("window 6", shown)
    names = [name for name, _ in controller.side_by_side]
    assert names == ["dense", "window 9", "pinned: window 6"]
    assert {len(each) for each in controller.guesses()} == {4}
    loss, losses = controller.comparison.loss, controller.comparison.pinned.results.reading.losses
    assert loss.first == 8 and loss.dense == pytest.approx(np.exp(losses[8:].mean(dtype=float)))
    assert loss.changed == pytest.approx(np.exp(controller.now.reading.losses[8:].mean(dtype=float)))
    controller.comparison.unpin()
    assert controller.comparison.partner.setting == "dense" and len(controller.side_by_side) == 2


def test_a_pinned_head_is_compared_with_under_the_setting_shown(controller):
    maps = controller.maps
    maps.units = [Unit(0, 0), Unit(0, 1)]
    maps.probabilities = lambda unit, rows, columns: maps.weights[rows, columns] * (1 - unit / 2)
    controller.comparison.pin_head()
    controller.show(compare="side by side", scale="linear")
    assert controller.comparison.problem.startswith("both are the same head and setting")
    assert controller.comparison.tiles()[1] is None
    controller.choose(1)
    one, two = controller.comparison.tiles()
    assert controller.comparison.partner.caption == "layer 0, head 0 · dense" and controller.comparison.is_beside
    np.testing.assert_array_equal(two.pixels, tile_of(maps, 0, MapOptions("linear")).pixels)
    np.testing.assert_array_equal(one.pixels, tile_of(maps, 1, MapOptions("linear")).pixels)


@pytest.mark.slow
def test_a_pinned_setting_that_is_shown_again_is_not_read_twice_and_not_compared_with_itself(controller, reader):
    ask(controller, policy="window", window=6)
    controller.comparison.pin_setting()
    ask(controller, window=9)
    ask(controller, window=6)
    assert [name for name, _ in reader.asked] == ["dense", "window 6", "window 9", "window 6"]
    assert controller.comparison.pinned.results is controller.now and controller.comparison.other is None
    assert controller.comparison.problem.startswith("both are the same")


def test_a_setting_pinned_while_it_was_read_is_read_to_its_end(controller, reader):
    gate = Gate()
    heard = controller.listen

    def pin(change):
        heard(change)
        if change == "reading" and controller.name == "window 6" and controller.comparison.pinned is None:
            controller.comparison.pin_setting()
            controller.change(window=9)

    controller.listen = pin
    reader.gates["window 9"] = gate
    controller.change(policy="window", window=6)
    assert gate.begun.wait(WAIT)
    assert controller.comparison.pinned.results.continuation is None
    gate.go.set()
    assert controller.wait(WAIT) and controller.comparison.pinned.results.is_whole
    assert controller.name == "window 9" and "partner" in controller.heard


def test_what_cannot_be_pinned_or_compared_says_so(controller):
    ask(controller, policy="recompute", window=4)
    controller.comparison.pin_setting()
    assert "maps of its own for every query" in controller.problem and controller.comparison.pinned is None
    saved = Controller(None, TEXTS, saved=random_maps(LENGTH))
    saved.comparison.pin_setting()
    assert saved.problem == NEEDS_MODEL
    assert saved.comparison.problem == NEEDS_PIN
    empty = Controller(FakeTextModel(), TEXTS)
    for pin in (empty.comparison.pin_setting, empty.comparison.pin_head):
        pin()
        assert "nothing was read yet" in empty.problem
