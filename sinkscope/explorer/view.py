"""What of a head is looked at, and as what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.encoding import SCALES, SIDE, Limits, encoded, limits, pooled, scaled
from sinkscope.explorer.head_maps import HeadMaps

HIDINGS = {
    "nothing": "all keys",
    "hidden": "first keys hidden",
    "renormalised": "first keys hidden, the rest renormalised",
}


@dataclass(frozen=True)
class View:
    """How maps are shown.

    Attributes:
        scale: one of `encoding.SCALES`.
        hiding: one of `HIDINGS`.
        hidden: how many first keys of the text are hidden.
        window: half-open ranges of tokens (first query, last query, first key, last key); everything when None.
    """

    scale: str = "log"
    hiding: str = "nothing"
    hidden: int = 1
    window: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        for value, known in ((self.scale, SCALES), (self.hiding, HIDINGS)):
            if value not in known:
                raise SinkscopeError(f"{value!r} is no way to show a map; give one of {', '.join(known)}.")

    @property
    def preview(self) -> str:
        """What has to be said of a map whose first keys are hidden; empty where none are."""
        if self.hiding == "nothing":
            return ""
        what = f"first {self.hidden} keys hidden" if self.hidden > 1 else "first key hidden"
        rest = ", the rest renormalised" if self.hiding == "renormalised" else ""
        return f"preview: {what}{rest}; not causal, the model did not run without them"


@dataclass(frozen=True)
class Tile:
    """A part of a map, ready for a browser.

    Attributes:
        pixels: [row, column] bytes.
        query, key: half-open ranges of tokens.
        limits: what the bytes mean.
        left: mean share of the attention of a row that is on keys which are not hidden; 1 when none are.
    """

    pixels: np.ndarray
    query: tuple[int, int]
    key: tuple[int, int]
    limits: Limits
    left: float


def tile_of(maps: HeadMaps, unit: int, view: View) -> Tile:
    """What a view shows of one head."""
    rows, columns = _cells(maps, view.window, 0), _cells(maps, view.window, 2)
    values, left = _shown(maps, unit, rows, columns, view)
    small = pooled(values, SIDE)
    ends = limits(small, view.scale, stretched=view.hiding != "nothing")
    return Tile(encoded(small, ends), _tokens(maps, rows), _tokens(maps, columns), ends, left)


def row_of(maps: HeadMaps, unit: int, query: int, view: View, length: int) -> tuple[np.ndarray, Limits] | None:
    """One query's row [token] as probabilities or logits, NaN where a key is not seen, and the ends of its scale.

    None when the map has no such query. Where a saved map was pooled a cell's value stands at its first token.
    """
    cell = _cell(maps, query)
    if cell is None:
        return None
    values, _ = _shown(maps, unit, slice(cell, cell + 1), slice(0, maps.cells), view, raw=True)
    row = np.full(length, np.nan, dtype=np.float32)
    row[maps.first + maps.starts] = values[0]
    ends = limits(values if view.scale != "log" else np.zeros((1, 1)), view.scale, stretched=True)
    return row, ends


def numbers_at(maps: HeadMaps, unit: int, query: int, key: int) -> tuple[float | None, float | None]:
    """Exact probability and logit of one cell; None for what is not seen, or not known."""
    row, column = _cell(maps, query), _cell(maps, key)
    if row is None or column is None:
        return None, None
    cell = slice(row, row + 1), slice(column, column + 1)
    probability = maps.probabilities(unit, *cell)[0, 0]
    try:
        logit = maps.logits(unit, *cell)[0, 0]
    except SinkscopeError:
        logit = np.float32(np.nan)
    return None if np.isnan(probability) else float(probability), None if np.isnan(logit) else float(logit)


def _shown(
    maps: HeadMaps, unit: int, rows: slice, columns: slice, view: View, raw: bool = False
) -> tuple[np.ndarray, float]:
    """Values of a part of a map on the view's scale, or before it when `raw`, and what is left beside hidden keys."""
    hidden = 0 if view.hiding == "nothing" else int(np.searchsorted(maps.starts + maps.first, view.hidden))
    if hidden:
        values, left = _without(hidden, maps, unit, rows, columns, view)
    else:
        values, left = (maps.logits if view.scale == "logit" else maps.probabilities)(unit, rows, columns), 1.0
    return values if raw else scaled(values, view.scale), left


def _without(
    hidden: int, maps: HeadMaps, unit: int, rows: slice, columns: slice, view: View
) -> tuple[np.ndarray, float]:
    """Values of a part of a map with its first cells hidden, and the mean share of attention on the others.

    Logits stay as they are where the rest is renormalised: softmax does not care for what is taken off all.
    """
    weights = maps.probabilities(unit, rows, slice(0, maps.cells))
    total = np.nansum(weights, axis=1, keepdims=True)  # which is 1 under softmax only
    weights = np.where(np.arange(maps.cells) < hidden, np.nan, weights)
    kept = np.nansum(weights, axis=1, keepdims=True)
    left = float(np.mean(kept[total > 0] / total[total > 0])) if (total > 0).any() else 0.0
    if view.scale == "logit":
        logits = maps.logits(unit, rows, columns)
        return np.where(np.arange(columns.start, columns.stop) < hidden, np.nan, logits), left
    if view.hiding == "renormalised":
        weights = np.divide(weights, kept, out=np.full_like(weights, np.nan), where=kept > 0)
    return weights[:, columns], left


def _cells(maps: HeadMaps, window: tuple[int, int, int, int] | None, side: int) -> slice:
    if window is None:
        return slice(0, maps.cells)
    first, stop = (max(0, at - maps.first) for at in window[side : side + 2])
    low = int(np.searchsorted(maps.starts, first, side="right")) - 1
    high = int(np.searchsorted(maps.starts, stop))
    low = min(max(low, 0), maps.cells - 1)
    return slice(low, max(high, low + 1))


def _cell(maps: HeadMaps, token: int) -> int | None:
    if not maps.first <= token < maps.first + maps.length:
        return None
    return int(np.searchsorted(maps.starts, token - maps.first, side="right")) - 1


def _tokens(maps: HeadMaps, cells: slice) -> tuple[int, int]:
    stop = maps.starts[cells.stop] if cells.stop < maps.cells else maps.length
    return int(maps.first + maps.starts[cells.start]), int(maps.first + stop)
