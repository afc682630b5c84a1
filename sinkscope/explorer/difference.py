"""One map minus another."""

from __future__ import annotations

import numpy as np

from sinkscope.explorer.pixels import (
    FIRST,
    SCALES,
    SIDE,
    Limits,
    MapOptions,
    Tile,
    cells_of,
    encoded,
    places_of,
    pooled,
    scaled,
    spread,
    tokens_of,
    values_in,
)
from sinkscope.explorer.results import HeadMaps


def difference_of(maps: HeadMaps, unit: int, other: HeadMaps, other_unit: int, options: MapOptions) -> Tile | None:
    """One map minus another, around zero, over the tokens that both have; None where those are none.

    A key that one of the two does not see has no weight there; its logit is unknown, and so is that difference. Cells
    that neither sees are 0. Pooling keeps what is farthest from zero.
    """
    first, stop = max(maps.first, other.first), min(maps.tokens.stop, other.tokens.stop)
    if first >= stop:
        return None
    asked = options.region or (first, stop) * 2
    region = [min(max(place, first), stop) for place in asked]
    if region[0] >= region[1] or region[2] >= region[3]:
        region = [first, stop] * 2
    keys = tuple(region[2:]), (first, min(first + FIRST, stop))
    tile, sinks = (
        _difference((maps, unit), (other, other_unit), (region[0], region[1]), each, options) for each in keys
    )
    largest = float(np.nanmax(np.abs(np.concatenate([tile.ravel(), sinks.ravel()])), initial=0.0)) or 1.0
    ends = Limits(-largest, largest, f"difference of {SCALES[options.scale]}", diverging=True)
    rows, columns, strip = (tokens_of(maps, cells_of(maps, *each)) for each in (region[:2], *keys))
    bytes_of = (encoded(farthest(each), ends) for each in (tile, sinks))
    return Tile(next(bytes_of), rows, columns, ends, 1.0, next(bytes_of), strip, is_difference=True)


def difference_values(
    maps: HeadMaps, unit: int, other: HeadMaps, other_unit: int, options: MapOptions
) -> tuple[np.ndarray, slice, slice] | None:
    """The same of a difference, on its scale; None where the two have no token in common."""
    tile = difference_of(maps, unit, other, other_unit, options)
    if tile is None:
        return None
    values = _difference((maps, unit), (other, other_unit), tile.query, tile.key, options)
    return values, places_of(maps, cells_of(maps, *tile.query)), places_of(maps, cells_of(maps, *tile.key))


def _difference(
    one: tuple[HeadMaps, int],
    two: tuple[HeadMaps, int],
    query: tuple[int, int],
    key: tuple[int, ...],
    options: MapOptions,
) -> np.ndarray:
    """[row, column] of two heads on the scale of the options, NaN where there is no difference to tell."""
    both = []
    for maps, unit in (one, two):
        cells = cells_of(maps, *query), cells_of(maps, *key)
        (values,), _ = values_in(maps, unit, cells[0], cells[1:], options)
        both.append(spread(maps, values, *cells))
    if options.scale == "logit":
        return both[0] - both[1]
    is_unseen = np.isnan(both[0]) & np.isnan(both[1])
    before, after = (scaled(np.nan_to_num(each), options.scale) for each in both)
    return np.where(is_unseen, np.nan, before - after)


def farthest(values: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The value farthest from zero in each cell of a tile, with its sign; NaN for none."""
    high, low = pooled(values, side), -pooled(-values, side)
    return np.where(-low > high, low, high)
