"""Maps as bytes: what the bytes say, and that no sink is lost on the way to a screen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sinkscope.explorer.pixels import FAINTEST, Limits, edges, encoded, limits, pooled, scaled


def cells_of(length: int, side: int) -> list[list[int]]:
    """Which rows fall into which cell, one by one."""
    cells = min(length, side)
    return [[row for row in range(length) if row * cells // length == cell] for cell in range(cells)]


@given(length=st.integers(1, 400), cells=st.integers(1, 60))
def test_cells_are_as_even_as_whole_tokens_allow(length, cells):
    cells = min(cells, length)
    assert edges(length, cells).tolist() == [rows[0] for rows in cells_of(length, cells)]
    sizes = np.diff([*edges(length, cells), length])
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(
    values=arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(0, 1, width=32) | st.just(np.nan),
    ),
    side=st.integers(1, 20),
)
def test_a_cell_holds_the_largest_value_in_it_and_is_not_seen_where_none_is(values, side):
    small = pooled(values, side)
    for row, rows in enumerate(cells_of(values.shape[0], side)):
        for column, columns in enumerate(cells_of(values.shape[1], side)):
            inside = values[np.ix_(rows, columns)]
            inside = inside[~np.isnan(inside)]
            np.testing.assert_array_equal(small[row, column], inside.max() if len(inside) else np.nan)
    assert small.shape == tuple(min(side, length) for length in values.shape)


def test_a_sink_one_column_wide_survives():
    values = np.where(np.tri(2048, dtype=bool), np.float32(1e-6), np.nan)
    values[:, 0] = 0.5
    small = pooled(values, 512)
    assert small.shape == (512, 512) and (small[:, 0] == 0.5).all() and np.nanmax(small[:, 1:]) == np.float32(1e-6)


@pytest.mark.parametrize("ends", [Limits(-5.0, 0.0, ""), Limits(0.0, 1.0, ""), Limits(-31.0, 31.0, "")])
def test_a_byte_is_within_half_a_step_of_the_value_and_zero_says_not_seen(ends):
    step = (ends.high - ends.low) / 254
    values = np.linspace(ends.low, ends.high, 1001, dtype=np.float32)
    values[7] = np.nan
    bytes_ = encoded(values, ends)
    assert bytes_.dtype == np.uint8 and bytes_[7] == 0 and bytes_[0] == 1 and bytes_[-1] == 255
    shown = ends.low + (bytes_.astype(float) - 1) * step
    assert np.nanmax(np.abs(shown - values)) <= step / 2 * 1.001
    assert encoded(np.array([ends.low - 1, ends.high + 1]), ends).tolist() == [1, 255]


def test_the_logarithmic_scale_ends_at_the_faintest_probability_that_is_told_from_none():
    values = scaled(np.array([1.0, 0.1, 1e-5, 1e-7, 0.0, np.nan]), "log")
    np.testing.assert_allclose(values, [0.0, -1.0, -5.0, FAINTEST, FAINTEST, np.nan])
    assert encoded(values, limits(values[None], "log")).tolist() == [255, 204, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("scale", "stretched", "low", "high", "diverging"),
    [
        ("log", False, -5.0, 0.0, False),
        ("log", True, -5.0, 0.0, False),
        ("linear", False, 0.0, 1.0, False),
        ("linear", True, 0.0, 0.5, False),
        ("logit", False, -2.0, 2.0, True),
    ],
)
def test_the_ends_of_a_scale(scale, stretched, low, high, diverging):
    values = np.array([[np.nan, 0.5], [0.25, 0.125]]) if scale != "logit" else np.array([[np.nan, -2.0], [1.5, 0.0]])
    ends = limits(scaled(values, scale), scale, stretched)
    assert (ends.low, ends.high, ends.diverging) == (low, high, diverging)


@pytest.mark.parametrize("scale", ["log", "linear", "logit"])
def test_a_scale_of_nothing_has_two_ends(scale):
    for values in (np.full((2, 2), np.nan), np.zeros((2, 2))):
        ends = limits(values, scale, stretched=True)
        assert ends.low < ends.high


def test_weights_above_one_are_not_cut_off_and_rounding_does_not_move_a_scale():
    weights = np.array([[np.nan, 2.5], [0.1, 1.0]])
    for scale, highest in (("linear", 2.5), ("log", math.log10(2.5))):
        ends = limits(scaled(weights, scale), scale)
        assert ends.high == pytest.approx(highest)
        assert encoded(scaled(weights, scale), ends)[0, 1] == 255 > encoded(scaled(weights, scale), ends)[1, 1]
    rounded = np.array([[1.0000002, 0.5]], dtype=np.float32)
    assert [limits(scaled(rounded, scale), scale).high for scale in ("linear", "log")] == [1.0, 0.0]
