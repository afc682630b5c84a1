"""Lines between tokens: the weights of the maps, of up to 64 tokens and the heads of one layer."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sinkscope.explorer.canvases import Lines
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.lines import MOST, POOLED, draw_lines, places_of, weights_between
from sinkscope.explorer.results import SavedMaps
from tests.explorer.fakes import WAIT, random_maps
from tests.explorer.references import TOKENS, reader, text
from tests.support.eager import eager_maps


@pytest.mark.parametrize(
    ("tokens", "first", "query", "expected"),
    [
        (20, 0, 19, list(range(20))),
        (20, 0, 3, list(range(20))),
        (64, 0, 5, list(range(64))),
        (200, 0, 5, list(range(64))),
        (200, 0, 150, [0, 1, 2, 3, *range(91, 151)]),
        (3, 0, 2, [0, 1, 2]),
        (12, 30, 35, list(range(30, 42))),
        (12, 30, 5, list(range(30, 42))),
    ],
)
def test_the_first_tokens_and_those_up_to_the_query_stand_in_the_columns(tokens, first, query, expected):
    places = places_of(random_maps(tokens, first), query)
    assert places == expected and len(places) <= MOST


@pytest.mark.slow
def test_the_weights_are_those_of_the_heads():
    controller = Controller(reader(), [f"word{place}" for place in range(TOKENS)])
    controller.begin()
    assert controller.wait(WAIT)
    controller.choose(6)
    canvas = Lines()
    draw_lines(canvas, controller)
    eager = eager_maps("llama", {"input_ids": text()[None]})[0].reshape(8, TOKENS, TOKENS)
    values = np.frombuffer(canvas.values, "<f4").reshape(4, TOKENS, TOKENS)
    np.testing.assert_allclose(np.nan_to_num(values), eager[4:], atol=2e-6)
    assert canvas.heads == [6] and canvas.frame["labels"] == ["head 0", "head 1", "head 2", "head 3"]
    canvas.heads = [4, 6]
    draw_lines(canvas, controller)
    assert canvas.heads == [4, 6]
    controller.choose(1)
    draw_lines(canvas, controller)
    assert canvas.heads == [1] and canvas.frame["caption"] == "layer 0 · dense"
    canvas.close()
    controller.close()


def test_of_a_long_text_the_weights_are_those_between_the_tokens_shown():
    maps = random_maps(150)
    places = places_of(maps, 120)
    np.testing.assert_array_equal(weights_between(maps, [0], places)[0], maps.weights[np.ix_(places, places)])


def test_a_pooled_map_has_no_lines_and_says_so():
    values = np.tril(np.full((4, 4), 0.25))[None, None, None]
    dims = ("sequence", "layer", "head", "map_query", "map_key")
    starts = [0, 3, 6, 9]
    coords = {"layer": [0], "head": [0], "map_query": starts, "map_key": starts, "length": ("sequence", [12])}
    record = xr.Dataset({"attention_map": (dims, values)}, coords)
    controller, canvas = Controller(None, [""] * 12, SavedMaps(record)), Lines()
    draw_lines(canvas, controller)
    assert canvas.frame["caption"] == POOLED and canvas.values == b""
    canvas.close()
