"""Maps that are made of those of single heads: their mean, the largest of them, or sums over words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
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


class WholeMaps(HeadMaps):
    """Maps that are made as a whole; the last ones are kept."""

    has_logits = False

    def __init__(self, maps: HeadMaps) -> None:
        self._maps = maps
        self.units, self.first, self.starts, self.length = maps.units, maps.first, maps.starts, maps.length
        self._kept: dict[tuple[int, ...], np.ndarray] = {}

    @abstractmethod
    def made(self, unit: int) -> np.ndarray:
        """Weights [row, column] of a whole map, NaN where a key is not seen."""

    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        raise SinkscopeError(NO_LOGITS)

    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        members = tuple(self.members(unit))
        if members not in self._kept:
            self._kept = {**dict(list(self._kept.items())[1 - KEPT :]), members: self.made(unit)}
        return self._kept[members][rows, columns].copy()

    def group_size(self, unit: int) -> int | None:
        return self._maps.group_size(unit)

    def _whole(self, unit: int) -> np.ndarray:
        return self._maps.probabilities(unit, slice(0, self._maps.cells), slice(0, self._maps.cells))


class ManyHeads(WholeMaps):
    """One map over several heads: the mean, or the largest, of their weights in each cell.

    A head that does not see a key gives it nothing; a cell that no head sees is none.
    """

    def __init__(self, maps: HeadMaps, over: str) -> None:
        super().__init__(maps)
        self.which, self.kind = over.split("-")
        self.sums_to_one = self.kind == "mean"

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

    def made(self, unit: int) -> np.ndarray:
        members = self.members(unit)
        total, seen = np.zeros((self.cells, self.cells)), np.zeros((self.cells, self.cells), dtype=bool)
        for each in members:
            weights = self._whole(each)
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


class WordMaps(WholeMaps):
    """Maps with a row and a column for each word: summed over the keys of a word, and averaged over its queries.

    Args:
        maps: with a row and a column for each token.
        words: [token of the whole text] the number of the word of each.
        tokens: their texts.
    """

    is_spread = True

    def __init__(self, maps: HeadMaps, words: np.ndarray, tokens: list[str]) -> None:
        super().__init__(maps)
        self.sums_to_one = maps.sums_to_one
        own = words[maps.first : maps.first + maps.length]
        self.starts = np.flatnonzero(np.diff(own, prepend=-1))
        self._word_texts = [
            "".join(part) for part in np.split(np.array(tokens, dtype=object)[maps.tokens], self.starts[1:])
        ]

    def members(self, unit: int) -> list[int]:
        return self._maps.members(unit)

    def name(self, unit: int) -> str:
        return f"{self._maps.name(unit)}, words"

    def said(self, unit: int) -> str:
        how = "A cell is summed over the tokens of the seen word, and averaged over those of the reading one."
        return f"{self._maps.said(unit)} {how}".strip()

    def texts(self, tokens: list[str]) -> list[str]:
        return self._word_texts

    def made(self, unit: int) -> np.ndarray:
        weights, sizes = self._whole(unit), np.diff(self.starts, append=self.length)
        seen = np.add.reduceat(np.add.reduceat(~np.isnan(weights), self.starts, axis=0, dtype=int), self.starts, axis=1)
        sums = np.add.reduceat(np.nan_to_num(weights).astype(np.float64), self.starts, axis=1)
        means = np.add.reduceat(sums, self.starts, axis=0) / sizes[:, None]
        return np.where(seen > 0, means, np.nan).astype(np.float32)


NO_LOGITS = (
    "logits of several heads or tokens have no scale in common, as each softmax has its own; choose probabilities, or "
    "one head and its tokens"
)


def why_not(maps: HeadMaps | None, unit: int, options: MapOptions) -> str:
    """Why maps cannot be shown like this, in words; empty where they can."""
    which, _, kind = options.over.partition("-")
    if options.scale == "logit" and (which != "head" or options.cells == "words"):
        return NO_LOGITS
    if kind == "maximum" and options.hiding == "renormalised":
        return "the largest weights of several heads are no shares of one whole, so there is no rest to renormalise"
    if options.cells == "words" and maps is not None and maps.cells < maps.length:
        return "this map was pooled, and words need a row and a column for each token"
    if which == "group" and maps is not None:
        size, layer = maps.group_size(unit), maps.units[unit].layer
        if size is None:
            return "which heads share keys and values is not known here; choose the heads of its layer"
        if size == 1:
            return f"each head of layer {layer} has keys and values of its own, so a group is a head; choose its layer"
    return ""


def derived(
    maps: HeadMaps, options: MapOptions, words: np.ndarray | None = None, tokens: Sequence[str] = ()
) -> HeadMaps:
    """The maps as they are shown, over heads and for `words`; made once, and kept as long as those of heads are."""
    if options.over != "head":
        heads = maps
        maps = _kept(heads, options.over, lambda: ManyHeads(heads, options.over))
    if words is not None:
        return _kept(maps, "words", lambda: WordMaps(maps, words, list(tokens)))
    return maps


def _kept(maps: HeadMaps, name: str, make: Callable[[], HeadMaps]) -> HeadMaps:
    kept: dict[str, HeadMaps] = maps.__dict__.setdefault("_derived", {})
    if name not in kept:
        for other in [each for each in kept if (each == "words") == (name == "words")]:
            del kept[other]
        kept[name] = make()
    return kept[name]


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in words: "0 to 2, 5"."""
    runs = [[each for _, each in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
