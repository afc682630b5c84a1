"""Attention maps as a browser gets them, in bytes: a tile, a row or a cell of one head."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from typing import Annotated

import numpy as np

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.configuration import Choice, Number, controls_of
from sinkscope.explorer.derived import OVER_NAMES
from sinkscope.explorer.parts import SPAN_NAMES
from sinkscope.explorer.results import HeadMaps

SIDE = 512  # cells of a tile along each side at most
BAND = 64  # rows of cells that are made at once
FAINTEST = -5.0  # log10 of the smallest probability that is told from none
ROUNDING = 1e-4  # what a probability may be above 1 for no reason
SCALES = {"log": "log10 probability", "linear": "probability", "logit": "logit"}  # with the units on them
SCALE_NAMES = {"log probability": "log", "probability": "linear", "logit": "logit"}
HIDING_NAMES = {
    "all keys": "nothing",
    "first keys hidden": "hidden",
    "first keys hidden, the rest renormalised": "renormalised",
}
FIRST = 4  # keys whose mass ranks the heads, and that stand widened beside the map
CELL_NAMES = {"tokens": "tokens", "words": "words"}
COMPARING_NAMES = {"nothing": "nothing", "difference map": "difference", "side by side": "side by side"}
RANKINGS = {
    "layer": "layer",
    "mass": f"attention on the first {FIRST} tokens",
    "entropy": "entropy (nats)",
    "peak": "largest importance of a token",
    "value": "value norm of the first token over the others'",
}


@dataclass(frozen=True)
class Limits:
    """What the ends of the colour scale mean: the values, in `unit`, of bytes 1 and 255."""

    low: float
    high: float
    unit: str
    diverging: bool = False  # whether zero is the middle of the scale


WHOLE_LOG = Limits(FAINTEST, 0.0, SCALES["log"])  # from none to all of the attention


def edges(length: int, cells: int) -> np.ndarray:
    """Where `cells` cells begin, as even as whole tokens allow: [cell]."""
    return -(-np.arange(cells) * length // cells)


def pooled(values: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The largest of the values [query, key] in each cell, so that a sink one column wide survives; NaN for none."""
    for axis in (0, 1):
        if values.shape[axis] > side:
            values = _largest(values, edges(values.shape[axis], side), axis)
    return values


def _largest(values: np.ndarray, starts: np.ndarray, axis: int) -> np.ndarray:
    """The largest of the values from each start to the next; NaN for none."""
    step, rest = divmod(values.shape[axis], len(starts))
    if not rest and np.array_equal(starts, np.arange(len(starts)) * step):  # the same, many times faster
        return reduce(np.fmax, [values[i::step] if axis == 0 else values[:, i::step] for i in range(step)])
    return np.fmax.reduceat(values, starts, axis=axis)


def scaled(probabilities: np.ndarray, scale: str) -> np.ndarray:
    """Probabilities on a scale of `SCALES`; no probability at all is at the foot of the logarithmic one."""
    if scale != "log":
        return probabilities
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(probabilities), FAINTEST)


def limits(values: np.ndarray, scale: str, stretched: bool = False) -> Limits:
    """The ends of the colour scale for values [query, key] that are on it.

    A linear scale that is `stretched` ends at the largest value even where that is below 1. Weights above 1, which ReLU
    can give, stretch every scale.
    """
    if scale == "log":
        highest = float(np.nanmax(values, initial=FAINTEST))
        return Limits(FAINTEST, highest if highest > ROUNDING else 0.0, SCALES[scale])
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    if scale == "logit":
        return Limits(-largest, largest, SCALES[scale], diverging=True)
    return Limits(0.0, largest if stretched or largest > 1 + ROUNDING else 1.0, SCALES[scale])


def encoded(values: np.ndarray, ends: Limits) -> np.ndarray:
    """Bytes: 0 for NaN, and 1 to 255 from `low` to `high`."""
    share = (values - np.float32(ends.low)) / np.float32(ends.high - ends.low)
    steps = np.rint(np.clip(share, 0, 1) * np.float32(254)) + 1
    return np.where(np.isnan(values), 0, steps).astype(np.uint8)


@dataclass(frozen=True)
class MapOptions:
    """How maps are shown; none of it runs the model. SinkscopeError for a scale or a hiding that there is not."""

    scale: Annotated[str, Choice("scale", "what the colours of the map stand for", SCALE_NAMES)] = "log"
    hiding: Annotated[
        str, Choice("preview", "hide the sink columns at once, without running the model", HIDING_NAMES)
    ] = "nothing"
    hidden: Annotated[
        int, Number("keys hidden", "how many first keys the preview hides", lambda length: (1, 16), is_typed=True)
    ] = 1
    # half-open token ranges (first query, last query, first key, last key); everything when None
    region: tuple[int, int, int, int] | None = None
    compare: Annotated[
        str,
        Choice(
            "compare",
            "a second setting or head beside this one: dense, or what is pinned; as their difference, or both maps",
            COMPARING_NAMES,
        ),
    ] = "nothing"
    over: Annotated[
        str,
        Choice(
            "map of",
            "one head; or the mean or maximum over its layer, its KV group (heads with the same keys), or all layers",
            OVER_NAMES,
        ),
    ] = "head"
    cells: Annotated[
        str, Choice("cells", "a row and a column for each token, or for each word: its subwords summed", CELL_NAMES)
    ] = "tokens"
    spans: Annotated[
        str, Choice("spans", "parts of the text as bands beside the map, and the attention between them", SPAN_NAMES)
    ] = "none"

    def __post_init__(self) -> None:
        known_names = {"scale": SCALE_NAMES, "hiding": HIDING_NAMES, "compare": COMPARING_NAMES, "over": OVER_NAMES} | {
            "cells": CELL_NAMES,
            "spans": SPAN_NAMES,
        }
        for name, names in known_names.items():
            value, known = getattr(self, name), names.values()
            if value not in known:
                raise SinkscopeError(f"{value!r} is no way to show a map; give one of {', '.join(known)}.")

    @property
    def uses(self) -> set[str]:
        """The fields that matter; the controls of all others are at rest."""
        return vars(self).keys() - {"region"} - ({"hidden"} if self.hiding == "nothing" else set())

    @property
    def is_plain(self) -> bool:
        """Whether all of a map is shown as it is, alone and on the usual scale."""
        usual = vars(MapOptions(hidden=self.hidden, over=self.over, spans=self.spans))
        return all(getattr(self, name) == value for name, value in usual.items())

    @property
    def preview(self) -> str:
        """What has to be said of a map whose first keys are hidden; empty where none are."""
        if self.hiding == "nothing":
            return ""
        what = f"first {self.hidden} keys hidden" if self.hidden > 1 else "first key hidden"
        rest = ", the rest renormalised" if self.hiding == "renormalised" else ""
        them = "them" if self.hidden > 1 else "it"
        return f"preview: {what}{rest}; not causal, the model did not run without {them}"


MAP_CONTROLS = controls_of(MapOptions)


@dataclass(frozen=True)
class Tile:
    """A part of a map, ready for a browser."""

    pixels: np.ndarray  # [row, column] bytes
    query: tuple[int, int]  # half-open ranges of tokens
    key: tuple[int, int]
    limits: Limits
    left: float  # mean share of the attention of a row that is on keys which are not hidden; 1 when none are
    sinks: np.ndarray  # [row, column] bytes of the map's first keys for the same queries, on the same scale
    sink_key: tuple[int, int]  # which keys those are: a half-open range of tokens
    is_difference: bool = False  # of two maps, so that what is far from zero is what counts


@dataclass(frozen=True)
class _Part:
    """A part of a map on its scale, [row, column], before it is put into bytes."""

    small: np.ndarray
    sinks: np.ndarray
    ends: Limits
    ranges: tuple[tuple[int, int], ...]  # of its queries, its keys and the first keys, in tokens
    left: float

    def tile(self, ends: Limits | None = None) -> Tile:
        ends, (query, key, sink_key) = ends or self.ends, self.ranges
        return Tile(encoded(self.small, ends), query, key, ends, self.left, encoded(self.sinks, ends), sink_key)


def tile_of(maps: HeadMaps, unit: int, options: MapOptions) -> Tile:
    return _part_of(maps, unit, options).tile()


def pair_of(maps: HeadMaps, unit: int, other: HeadMaps, other_unit: int, options: MapOptions) -> tuple[Tile, Tile]:
    """The tiles of two maps, whose colours mean the same."""
    both = [_part_of(*each, _fitting(options, each[0])) for each in ((maps, unit), (other, other_unit))]
    one, two = (part.ends for part in both)
    ends = replace(one, low=min(one.low, two.low), high=max(one.high, two.high))
    return both[0].tile(ends), both[1].tile(ends)


def _fitting(options: MapOptions, maps: HeadMaps) -> MapOptions:
    """The same, or all of the map where it does not hold the region."""
    region, tokens = options.region, maps.tokens
    if region and (min(region[0], region[2]) < tokens.start or max(region[1], region[3]) > tokens.stop):
        return replace(options, region=None)
    return options


def _part_of(maps: HeadMaps, unit: int, options: MapOptions) -> _Part:
    region = options.region or (maps.tokens.start, maps.tokens.stop) * 2
    rows, columns = cells_of(maps, *region[:2]), cells_of(maps, *region[2:])
    first = cells_of(maps, maps.first, maps.first + FIRST)
    (small, sinks), left = _small(maps, unit, rows, (columns, first), options)
    shown = np.concatenate([small.ravel(), sinks.ravel()])
    ends = limits(shown, options.scale, stretched=options.hiding != "nothing")
    return _Part(small, sinks, ends, (tokens_of(maps, rows), tokens_of(maps, columns), tokens_of(maps, first)), left)


def _small(
    maps: HeadMaps, unit: int, rows: slice, columns: tuple[slice, ...], options: MapOptions
) -> tuple[list[np.ndarray], float]:
    """Parts of a map, over the same rows, pooled and on its scale, and the mean share of attention beside hidden keys.

    A scale rises with the probability, so that pooling comes first. A large part is read band by band, and no array of
    its size is ever there.
    """
    count = rows.stop - rows.start
    if maps.is_spread or count <= SIDE:
        values, left = values_in(maps, unit, rows, columns, options)
        cells = (spread(maps, each, rows, own) for each, own in zip(values, columns, strict=True))
        return [scaled(pooled(each), options.scale) for each in cells], _mean(left)
    starts = np.append(rows.start + edges(count, SIDE), rows.stop)
    parts: list[list[np.ndarray]] = [[] for _ in columns]
    shares = []
    for band in range(0, SIDE, BAND):
        low, *inside, high = starts[band : band + BAND + 1]
        values, left = values_in(maps, unit, slice(int(low), int(high)), columns, options)
        shares.append(left)
        for part, each in zip(parts, values, strict=True):
            part.append(pooled(_largest(each, np.array([low, *inside]) - low, 0)))
    return [scaled(np.concatenate(part), options.scale) for part in parts], _mean(np.concatenate(shares))


def _mean(shares: np.ndarray) -> float:
    """Over the rows that have any attention; 0 where none has."""
    return float(np.nanmean(shares)) if np.isfinite(shares).any() else 0.0


def row_of(maps: HeadMaps, unit: int, query: int, options: MapOptions, length: int) -> tuple[np.ndarray, Limits] | None:
    """One query's row [token] as probabilities or logits, NaN where a key is not seen, and the ends of its scale.

    None when the map has no such query. Where a saved map was pooled a cell's value stands at its first token.
    """
    if query not in maps.tokens:
        return None
    (values,), _ = values_in(maps, unit, cells_of(maps, query, query + 1), (slice(0, maps.cells),), options)
    row = np.full(length, np.nan, dtype=np.float32)
    if maps.is_spread:
        row[maps.first : maps.first + maps.length] = np.repeat(values[0], _sizes(maps))
    else:
        row[maps.first + maps.starts] = values[0]
    return row, WHOLE_LOG if options.scale == "log" else limits(values, options.scale, stretched=True)


def numbers_at(maps: HeadMaps, unit: int, query: int, key: int) -> tuple[float | None, float | None]:
    """Exact probability and logit of one cell; None for what is not seen, or not known."""
    if query not in maps.tokens or key not in maps.tokens:
        return None, None
    cell = cells_of(maps, query, query + 1), cells_of(maps, key, key + 1)
    probability, logit = maps.probabilities(unit, *cell).item(), np.nan
    with suppress(SinkscopeError):  # saved maps have no logits
        logit = maps.logits(unit, *cell).item()
    return None if np.isnan(probability) else probability, None if np.isnan(logit) else logit


def values_in(
    maps: HeadMaps, unit: int, rows: slice, columns: tuple[slice, ...], options: MapOptions
) -> tuple[list[np.ndarray], np.ndarray]:
    """Probabilities or logits of parts of a map over the same rows, and the share of attention beside hidden keys.

    The share is [row], NaN where a row has no attention.

    Logits stay as they are where the rest is renormalised: softmax does not care for what is taken off all.
    """
    is_logit = options.scale == "logit"
    hidden = 0 if options.hiding == "nothing" else int(np.searchsorted(maps.starts + maps.first, options.hidden))
    if not hidden:
        read = maps.logits if is_logit else maps.probabilities
        return [read(unit, rows, each) for each in columns], np.ones(rows.stop - rows.start)
    weights = maps.probabilities(unit, rows, slice(0, maps.cells))
    total = np.nansum(weights, axis=1, keepdims=True)  # which is 1 under softmax only
    weights[:, :hidden] = np.nan
    kept = np.nansum(weights, axis=1, keepdims=True)
    left = np.divide(kept, total, out=np.full_like(kept, np.nan), where=total > 0)[:, 0]
    if is_logit:
        logits = [maps.logits(unit, rows, each) for each in columns]
        for each, part in zip(columns, logits, strict=True):
            part[:, : max(0, hidden - each.start)] = np.nan
        return logits, left
    if options.hiding == "renormalised":
        weights = np.divide(weights, kept, out=np.full_like(weights, np.nan), where=kept > 0)
    return [weights[:, each] for each in columns], left


def spread(maps: HeadMaps, values: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Values [row, column] of cells; where these have several tokens, repeated for each."""
    if not maps.is_spread:
        return values
    sizes = _sizes(maps)
    return values.repeat(sizes[rows], axis=0).repeat(sizes[columns], axis=1)


def _sizes(maps: HeadMaps) -> np.ndarray:
    """[cell] how many tokens each has."""
    return np.diff(maps.starts, append=maps.length)


def cells_of(maps: HeadMaps, first: int, stop: int) -> slice:
    low = int(np.searchsorted(maps.starts, max(0, first - maps.first), side="right")) - 1
    high = int(np.searchsorted(maps.starts, max(0, stop - maps.first)))
    return slice(low, max(high, low + 1))


def tokens_of(maps: HeadMaps, cells: slice) -> tuple[int, int]:
    stop = maps.starts[cells.stop] if cells.stop < maps.cells else maps.length
    return int(maps.first + maps.starts[cells.start]), int(maps.first + stop)


def values_of(maps: HeadMaps, unit: int, options: MapOptions) -> tuple[np.ndarray, slice, slice]:
    """Probabilities or logits of the part shown, [row, column], and its rows and columns in tokens."""
    region = _fitting(options, maps).region or (maps.tokens.start, maps.tokens.stop) * 2
    rows, columns = cells_of(maps, *region[:2]), cells_of(maps, *region[2:])
    (shown,), _ = values_in(maps, unit, rows, (columns,), options)
    values = spread(maps, shown, rows, columns)
    return values, places_of(maps, rows), places_of(maps, columns)


def places_of(maps: HeadMaps, cells: slice) -> slice:
    """The first token, the one behind the last, and the tokens in a cell, as even as they are."""
    first, stop = tokens_of(maps, cells)
    if maps.is_spread:
        return slice(first, stop, 1)
    return slice(first, stop, -(-(stop - first) // (cells.stop - cells.start)))
