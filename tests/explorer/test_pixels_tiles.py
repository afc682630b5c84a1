"""What a view shows of a head, against the whole map and plain numpy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope import Maps, SinkscopeError, capture
from sinkscope.attention.masks import FullMask
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.pixels import MapOptions, encoded, numbers_at, pooled, row_of, tile_of
from sinkscope.explorer.results import HeadMaps, LiveMaps, SavedMaps
from tests.explorer.fakes import random_maps
from tests.explorer.references import CONFIGURATIONS, TOKENS, first, reader
from tests.support.zoo import build, inputs

CASES = ("dense", "sinks", "sigmoid over sinks", "ReLU", "learned sink")


@cache
def maps_of(case: str) -> HeadMaps:
    return first(reader(), CONFIGURATIONS[case][0]).maps


def whole(maps: HeadMaps, unit: int = 0, kind: str = "probabilities") -> np.ndarray:
    return getattr(maps, kind)(unit, slice(0, maps.cells), slice(0, maps.cells)).astype(float)


def brute(maps: HeadMaps, unit: int, view: MapOptions) -> np.ndarray:
    """Values of the whole map as the view shows them, before they are scaled."""
    values = whole(maps, unit, "logits" if view.scale == "logit" else "probabilities")
    if view.hiding != "nothing":
        values[:, : view.hidden] = np.nan
    if view.hiding == "renormalised" and view.scale != "logit":
        sums = np.nansum(values, 1, keepdims=True)
        values = np.where(sums > 0, values / np.where(sums > 0, sums, 1), np.nan)
    return np.maximum(np.log10(np.maximum(values, 1e-30)), -5.0) if view.scale == "log" else values


VIEWS = [
    MapOptions(scale, hiding, hidden)
    for scale in ("log", "linear", "logit")
    for hiding, hidden in (("nothing", 1), ("hidden", 1), ("hidden", 4), ("renormalised", 1), ("renormalised", 4))
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{view.scale} {view.hiding} {view.hidden}")
@pytest.mark.parametrize("case", CASES)
def test_tiles_and_rows_equal_brute_force_on_the_whole_map(case, view):
    maps = maps_of(case)
    expected, unit = brute(maps, 5, view), 5
    tile = tile_of(maps, unit, view)
    seen = np.isfinite(expected)
    np.testing.assert_array_equal(tile.pixels > 0, seen)
    step = (tile.limits.high - tile.limits.low) / 254
    shown = tile.limits.low + (tile.pixels.astype(float) - 1) * step
    inside = seen & (expected <= tile.limits.high)
    assert np.abs(shown - expected)[inside].max() <= step * 0.51
    for query in (0, 3, 30, 59):
        row, ends = row_of(maps, unit, query, view, TOKENS)
        given = brute(
            maps, unit, MapOptions("linear" if view.scale == "log" else view.scale, view.hiding, view.hidden)
        )[query]
        np.testing.assert_allclose(row, given, atol=1e-4)
        if view.scale != "log":
            assert ends.high >= np.nanmax(np.append(row, 0)) - 1e-6


@pytest.mark.parametrize("hidden", [1, 2, 16])
@pytest.mark.parametrize("case", CASES)
def test_what_is_left_is_the_mean_share_of_the_attention_of_a_row_on_keys_not_hidden(case, hidden):
    maps = maps_of(case)
    weights = np.nan_to_num(whole(maps, 2))
    share = weights[:, hidden:].sum(1)[weights.sum(1) > 0] / weights.sum(1)[weights.sum(1) > 0]
    assert tile_of(maps, 2, MapOptions("linear", "hidden", hidden)).left == pytest.approx(share.mean(), abs=1e-5)
    assert share.min() >= 0 and share.max() <= 1
    assert tile_of(maps, 2, MapOptions("linear", "nothing", hidden)).left == 1.0


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{view.scale} {view.hiding} {view.hidden}")
def test_a_map_that_is_read_band_by_band_is_pooled_as_a_whole_one_is(view):
    tokens = 1100  # a cell of the tile holds two or three
    maps = random_maps(tokens)
    tile, values = tile_of(maps, 0, view), brute(maps, 0, view)
    starts = np.searchsorted(np.arange(tokens) * 512 // tokens, np.arange(512))
    rows = np.fmax.reduceat(values, starts, 0)
    expected = np.fmax.reduceat(rows, starts, 1), rows[:, : tile.sinks.shape[1]]
    for pixels, each in zip((tile.pixels, tile.sinks), expected, strict=True):
        apart = np.abs(pixels.astype(int) - encoded(each, tile.limits))
        assert apart.max() <= 1 and (apart > 0).mean() < 1e-4  # float32 rounds a few to the next level
    hidden = 0 if view.hiding == "nothing" else view.hidden
    assert tile.left == pytest.approx(np.nansum(whole(maps)[:, hidden:], 1).mean(), abs=1e-5)


def test_renormalised_rows_sum_to_one_also_where_almost_everything_was_hidden():
    maps = random_maps()
    maps.weights[40] *= np.float32(1e-9)
    maps.weights[40, 0] = 1.0
    for query in range(1, TOKENS):
        row, _ = row_of(maps, 0, query, MapOptions("linear", "renormalised", 1), TOKENS)
        assert np.nansum(row, dtype=float) == pytest.approx(1, abs=1e-5)
    row, _ = row_of(maps, 0, 0, MapOptions("linear", "renormalised", 1), TOKENS)
    assert np.isnan(row).all()


@settings(max_examples=40, deadline=None)
@given(
    region=st.tuples(*[st.integers(0, 70)] * 4), scale=st.sampled_from(["log", "linear", "logit"]),
    hiding=st.sampled_from(["nothing", "hidden", "renormalised"]), hidden=st.integers(1, 16),
)  # fmt: skip
def test_the_tile_of_a_part_is_cut_from_the_whole(region, scale, hiding, hidden):
    low, high, left, right = region
    query, key = sorted((low, high)), sorted((left, right))
    maps, view = random_maps(), MapOptions(scale, hiding, hidden)
    tile = tile_of(maps, 0, MapOptions(scale, hiding, hidden, (*query, *key)))
    assert 0 <= tile.query[0] < tile.query[1] <= TOKENS and 0 <= tile.key[0] < tile.key[1] <= TOKENS
    for asked, (begin, end) in ((query, tile.query), (key, tile.key)):
        if asked[0] < asked[1] <= TOKENS:
            assert (begin, end) == tuple(asked)
    part = brute(maps, 0, view)[slice(*tile.query), slice(*tile.key)]
    np.testing.assert_array_equal(np.isnan(part), tile.pixels == 0)
    difference = tile.pixels.astype(int) - encoded(part.astype(np.float32), tile.limits)
    assert np.abs(difference).max() <= 1  # float32


@pytest.mark.parametrize("length", [700, 1024, 1101])
@pytest.mark.parametrize("scale", ["log", "linear", "logit"])
def test_larger_maps_are_pooled_and_every_cell_keeps_its_largest_value(scale, length):
    maps = random_maps(length)
    tile = tile_of(maps, 0, MapOptions(scale))
    expected = brute(maps, 0, MapOptions(scale))
    assert tile.pixels.shape == (512, 512) and tile.query == tile.key == (0, length)
    check_bytes(tile.pixels, encoded(pooled(expected.astype(np.float32), 512), tile.limits))
    part = tile_of(maps, 0, MapOptions(scale, region=(100, 200, 0, length)))
    assert part.pixels.shape == (100, 512) and part.query == (100, 200)
    check_bytes(part.pixels, encoded(pooled(expected[100:200].astype(np.float32), 512), part.limits))


def check_bytes(found: np.ndarray, expected: np.ndarray) -> None:
    """The same, but for one step where float32 rounds the other way than float64 does; what is not seen is the same."""
    np.testing.assert_array_equal(found == 0, expected == 0)
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 1 and apart.mean() < 1e-4


PARTS = [((0, 5), (0, 60)), ((10, 30), (20, 50)), ((10, 30), (40, 50)), ((50, 60), (0, 60))]


@pytest.mark.parametrize("case", CASES)
def test_a_part_of_a_map_is_that_part_of_the_whole_also_behind_its_last_query(case):
    maps = maps_of(case)
    for rows, columns in PARTS:
        for kind in ("logits", "probabilities"):
            part, every = getattr(maps, kind)(5, slice(*rows), slice(*columns)), whole(maps, 5, kind)
            np.testing.assert_allclose(part, every[slice(*rows), slice(*columns)], rtol=1e-5, atol=1e-6)


def test_a_layer_that_looks_ahead_behind_one_that_does_not_keeps_the_later_keys():
    causal = maps_of("dense").layers[0]
    both_ways = replace(causal, mask=FullMask())
    maps = LiveMaps([causal, both_ways], [0, 1])
    unit = causal.heads  # the first head of the second layer
    scores = both_ways.logits(slice(0, TOKENS), slice(0, TOKENS))[0, 0].numpy()
    assert np.isfinite(scores).all()
    for rows, columns in PARTS:
        np.testing.assert_allclose(
            maps.logits(unit, slice(*rows), slice(*columns)), scores[slice(*rows), slice(*columns)], rtol=1e-5
        )
    assert np.isnan(maps.logits(0, slice(0, 5), slice(5, TOKENS))).all()


@pytest.mark.parametrize("case", ["dense", "sinks", "chosen", "ReLU"])
def test_numbers_are_those_of_the_cell_and_none_where_the_key_is_not_seen(case):
    maps = maps_of(case)
    weights, logits = whole(maps, 3), whole(maps, 3, "logits")
    for query, key in [(0, 0), (59, 0), (59, 59), (40, 7), (40, 1), (25, 3), (3, 25), (59, 45), (59, 41)]:
        probability, logit = numbers_at(maps, 3, query, key)
        if np.isnan(weights[query, key]):
            assert probability is None and logit is None
        else:
            assert probability == pytest.approx(weights[query, key], abs=1e-6)
            assert logit == pytest.approx(logits[query, key], abs=1e-4)


def test_numbers_do_not_depend_on_what_is_hidden_and_outside_there_are_none():
    maps = random_maps(20, first=30)
    assert numbers_at(maps, 0, 49, 30)[0] == pytest.approx(maps.weights[19, 0])
    for query, key in ((29, 30), (50, 30), (49, 29), (49, 50), (0, 0)):
        assert numbers_at(maps, 0, query, key) == (None, None)


def test_a_map_that_begins_later_in_the_text_stands_there():
    maps = random_maps(20, first=30)
    tile = tile_of(maps, 0, MapOptions("linear", region=(35, 40, 30, 33)))
    assert (tile.query, tile.key) == ((35, 40), (30, 33))
    row, _ = row_of(maps, 0, 49, MapOptions("linear"), 60)
    np.testing.assert_array_equal(row[30:50], maps.weights[19])
    assert np.isnan(row[:30]).all() and np.isnan(row[50:]).all()
    assert row_of(maps, 0, 29, MapOptions(), 60) is None and row_of(maps, 0, 50, MapOptions(), 60) is None
    hidden = tile_of(maps, 0, MapOptions("linear", "hidden", 32))  # of the text's first 32 keys two are here
    assert (hidden.pixels[:, :2] == 0).all() and (hidden.pixels[2:, 2] > 0).all()


# --- pooled records ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooled_record():
    model = build("llama")
    with torch.no_grad(), capture(model, [Maps(resolution=16, pool="max")]) as scope:
        model(**inputs("llama", 1, 50))
    return scope.record


def test_a_pooled_record_is_shown_cell_by_cell_at_its_tokens(pooled_record):
    maps = SavedMaps(pooled_record)
    tile = tile_of(maps, 6, MapOptions("linear"))
    expected = pooled_record.attention_map.values[0, 1, 2]
    seen = np.tri(16, dtype=bool)
    assert tile.query == tile.key == (0, 50) and tile.pixels.shape == (16, 16)
    np.testing.assert_array_equal(tile.pixels[seen], encoded(expected[seen], tile.limits))
    part = tile_of(maps, 6, MapOptions("linear", region=(20, 30, 0, 50)))
    assert part.query == (19, 32)  # whole cells
    np.testing.assert_array_equal(part.pixels, tile.pixels[6:10])


def test_numbers_and_rows_of_a_pooled_record_are_those_of_the_cell(pooled_record):
    maps, expected = SavedMaps(pooled_record), pooled_record.attention_map.values[0, 1, 2]
    assert numbers_at(maps, 6, 24, 5) == (pytest.approx(expected[7, 1]), None)
    row, _ = row_of(maps, 6, 24, MapOptions("linear"), 50)
    np.testing.assert_array_equal(row[maps.starts[:8]], expected[7, :8])
    assert np.isfinite(row).sum() == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MapOptions(scale="cubic"), "'cubic' is no way to show a map"),
        (lambda: MapOptions(hiding="all"), "'all' is no way"),
    ],
)
def test_an_unknown_way_to_show_a_map_is_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (MapOptions(), ""),
        (MapOptions(hiding="hidden"), "preview: first key hidden; not causal"),
        (
            MapOptions(hiding="renormalised", hidden=4),
            "preview: first 4 keys hidden, the rest renormalised; not causal",
        ),
    ],
)
def test_a_preview_says_that_it_is_one(view, said):
    assert view.preview.startswith(said) and bool(view.preview) == bool(said)


def test_a_window_run_afresh_is_looked_at_like_any_other():
    maps = first(reader(), Configuration(policy="recompute", window=12), 40).maps
    tile = tile_of(maps, 0, MapOptions("linear"))
    assert tile.query == tile.key == (29, 41) and tile.pixels.shape == (12, 12)
