"""Maps that are made of those of single heads: their mean, or the largest of them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.results import HeadMaps

if TYPE_CHECKING:
    from sinkscope.explorer.pixels import MapOptions

KEPT = 2  # maps over several heads that are not made anew
OVER_NAMES = {
    "one head": "head",
    "mean of its layer": "layer-mean",
    "maximum of its layer": "layer-maximum",
    "mean of its KV group": "group-mean",
    "maximum of its KV group": "group-maximum",
    "mean of all layers": "all-mean",
    "maximum of all layers": "all-maximum",
}


class ManyHeads(HeadMaps):
    """One map over several heads: the mean, or the largest, of their weights in each cell.

    A head that does not see a key gives it nothing; a cell that no head sees is none.
    """

    has_logits = False

    def __init__(self, maps: HeadMaps, over: str) -> None:
        self._maps = maps
        self.which, self.kind = over.split("-")
        self.units, self.first, self.starts, self.length = maps.units, maps.first, maps.starts, maps.length
        self.sums_to_one = self.kind == "mean"
        self._kept: dict[tuple[int, ...], np.ndarray] = {}

    def members(self, unit: int) -> list[int]:
        if self.which == "all":
            return list(range(len(self.units)))
        layer = self.units[unit].layer
        heads = [place for place, each in enumerate(self.units) if each.layer == layer]
        size = self._maps.group_size(unit) or 1
        first = self.units[unit].head // size * size
        return heads if self.which == "layer" else [at for at in heads if first <= self.units[at].head < first + size]

    def name(self, unit: int) -> str:
        return f"{self.kind} of {self._heads(unit)}"

    def said(self, unit: int) -> str:
        if self.kind == "mean":
            how = "is the mean of their probabilities there, 0 for a head that does not see the key"
        else:
            how = "is the largest of their probabilities there, so that a row may sum to more than 1"
        return f"Over {self._heads(unit)}: each cell {how}."

    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        raise SinkscopeError(NO_LOGITS)

    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        members = tuple(self.members(unit))
        if members not in self._kept:
            made = self._made(members)
            self._kept = {**dict(list(self._kept.items())[1 - KEPT :]), members: made}
        return self._kept[members][rows, columns].copy()

    def _made(self, members: tuple[int, ...]) -> np.ndarray:
        whole = slice(0, self.cells)
        total, seen = np.zeros((self.cells, self.cells)), np.zeros((self.cells, self.cells), dtype=bool)
        for unit in members:
            weights = self._maps.probabilities(unit, whole, whole)
            seen |= ~np.isnan(weights)
            np.nan_to_num(weights, copy=False)
            (np.add if self.kind == "mean" else np.maximum)(total, weights, out=total)
        if self.kind == "mean":
            total /= len(members)
        return np.where(seen, total, np.nan).astype(np.float32)

    def _heads(self, unit: int) -> str:
        members = self.members(unit)
        if self.which == "all":
            layers = len({each.layer for each in self.units})
            return f"all {len(members)} heads of {layers} layer{'s' * (layers > 1)}"
        heads = [self.units[at].head for at in members]
        layer = self.units[unit].layer
        if self.which == "layer":
            return f"the {len(heads)} head{'s' * (len(heads) > 1)} of layer {layer}"
        return f"heads {_ranges(heads)} of layer {layer}, which share keys and values"


NO_LOGITS = (
    "logits of several heads have no scale in common, as each softmax has its own; choose probabilities, or one head"
)


def why_not(maps: HeadMaps | None, unit: int, options: MapOptions) -> str:
    """Why maps cannot be shown like this, in words; empty where they can."""
    which, _, kind = options.over.partition("-")
    if which == "head":
        return ""
    if options.scale == "logit":
        return NO_LOGITS
    if kind == "maximum" and options.hiding == "renormalised":
        return "the largest weights of several heads are no shares of one whole, so there is no rest to renormalise"
    if which == "group" and maps is not None:
        size, layer = maps.group_size(unit), maps.units[unit].layer
        if size is None:
            return "which heads share keys and values is not known here; choose the heads of its layer"
        if size == 1:
            return (
                f"each head of layer {layer} has keys and values of its own, so a group is one head; choose its layer"
            )
    return ""


def derived(maps: HeadMaps, options: MapOptions) -> HeadMaps:
    """The maps as they are shown; made once, and kept as long as those of single heads are."""
    if options.over == "head":
        return maps
    kept = maps.__dict__.setdefault("_derived", {})
    if options.over not in kept:
        kept.clear()
        kept[options.over] = ManyHeads(maps, options.over)
    return kept[options.over]


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in words: "0 to 2, 5"."""
    runs = [[each for _, each in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
