"""Attention maps, pooled or whole, and means of the corner of the first tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sinkscope.arguments import MOST_PLACES, is_listed, is_whole
from sinkscope.attention.layer import Layer, Tile
from sinkscope.attention.masks import is_hidden
from sinkscope.errors import SinkscopeError, shown
from sinkscope.probes.base import PER_HEAD, LayerProbe, Measured, Measurements, TileProbe, Variable

MOST_CORNER = 4096  # tokens, whose means take 128 MB for each head


@dataclass(frozen=True)
class Maps(TileProbe):
    """Attention maps [query, key] of chosen layers and heads; the only probe that keeps a map.

    Makes ``attention_map`` [sequence, layer, head, map_query, map_key]. Where a text is longer than `resolution`,
    neighbouring tokens share a cell: with ``pool="mass"`` a cell holds the mass that its keys receive together,
    averaged over its queries (rows still sum to 1); with ``pool="max"`` the largest probability in it, so that a sink
    one column wide survives.

    >>> record = sinkscope.measure(model, ids, [sinkscope.Maps(layers=[1], resolution=None)])
    >>> record.attention_map.dims
    ('sequence', 'layer', 'head', 'map_query', 'map_key')

    Args:
        layers, heads: which; all when None.
        resolution: cells along each side at most; None keeps every token, a T x T tensor per head.
        pool: "mass" or "max".
    """

    makes: ClassVar = {
        "attention_map": Variable((*PER_HEAD, "map_query", "map_key"), "1", "attention, pooled into cells")
    }

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    resolution: int | None = 64
    pool: Literal["mass", "max"] = "mass"

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.resolution is not None and not (is_whole(self.resolution) and self.resolution >= 1):
            raise SinkscopeError(
                f"{kind}(resolution={shown(self.resolution)}) has no cells; give resolution >= 1 or None."
            )
        for name, chosen in (("layers", self.layers), ("heads", self.heads)):
            if chosen is None:
                continue
            if not is_listed(chosen) or not 0 < len(chosen) <= MOST_PLACES:
                raise SinkscopeError(
                    f"{kind}({name}={shown(chosen)}) names none; give a list such as [0, 5], or None for all."
                )
            if len({each for each in chosen if isinstance(each, (int, np.integer))}) < len(chosen):
                raise SinkscopeError(
                    f"{kind}({name}={shown(chosen)}) is no list of different whole numbers; give each once, such as "
                    "[0, 5]. The heads are those of every layer in `layers`."
                )
        if self.pool not in ("mass", "max"):
            raise SinkscopeError(f'{kind}(pool={shown(self.pool)}) is unknown; give "mass" or "max".')

    def wants(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def check(self, layers: Sequence[int]) -> None:
        for layer in () if self.layers is None else self.layers:
            if layer not in layers:
                raise SinkscopeError(
                    f"layer {layer} is out of range: the model has attention in layers {layers[0]} to {layers[-1]}."
                )

    def start(self, layer: Layer) -> Tensor:
        heads = self._heads(layer)
        if self.resolution is not None and layer.start > 0:
            raise SinkscopeError(
                "pooled maps need the whole text in one forward pass; pass it at once, or use resolution=None."
            )
        rows = layer.rows if self.resolution is None else self._cells(layer.length)
        columns = layer.reach if self.resolution is None else self._cells(layer.reach)
        return layer.lse.new_zeros(layer.lse.shape[0], len(heads), rows, columns)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        places = {head: place for place, head in enumerate(self._heads(layer))}
        inside = range(tile.heads.start, tile.heads.stop)
        wanted = [head for head in inside if head in places]
        if not wanted:
            return
        picked, into = tile.probabilities, [places[head] for head in wanted]
        if len(wanted) < len(inside):  # no copy of what is wanted whole
            picked = picked[:, [head - tile.heads.start for head in wanted]]
        first, last = tile.columns.start + layer.key_start, tile.columns.stop + layer.key_start
        if self.resolution is None:
            total[:, into, tile.rows, first:last] = picked
            return
        before = layer.start
        rows, heights = self._cut(before + tile.rows.start, before + tile.rows.stop, layer.length)
        columns, widths = self._cut(first, last, layer.reach)
        if self.pool == "mass":
            total[:, into, rows, columns] += _pooled(picked, heights, -2, torch.sum) @ _membership(widths).to(picked)
        else:
            part = _pooled(_pooled(picked, heights, -2, torch.amax), widths, -1, torch.amax)
            total[:, into, rows, columns] = torch.maximum(total[:, into, rows, columns], part)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        coords = {"head": np.asarray(self._heads(layer))}
        if self.resolution is not None:
            sizes = {"map_query": layer.length, "map_key": layer.reach}
            cut = {name: self._cut(0, size, size)[1] for name, size in sizes.items()}
            if self.pool == "mass":
                total /= torch.tensor(cut["map_query"], device=total.device)[:, None]
            coords |= {name: np.cumsum([0, *widths[:-1]]) for name, widths in cut.items()}
        return {"attention_map": Measured(total, coords)}

    def _heads(self, layer: Layer) -> Sequence[int]:
        heads = range(layer.heads) if self.heads is None else self.heads
        outside = [head for head in heads if not 0 <= head < layer.heads]
        if outside:
            raise SinkscopeError(f"head {outside[0]} is out of range: the layer has heads 0 to {layer.heads - 1}.")
        return heads

    def _cells(self, length: int) -> int:
        return min(length, self.resolution or length)

    def _cut(self, first: int, last: int, length: int) -> tuple[slice, tuple[int, ...]]:
        return _cut(first, last, length, self._cells(length))


@lru_cache(maxsize=4096)
def _cut(first: int, last: int, length: int, cells: int) -> tuple[slice, tuple[int, ...]]:
    """The cells that a range of positions touches, and how much of each lies inside.

    They are as even as whole tokens allow: position p lies in cell ``p * cells // length``.
    """
    low, high = first * cells // length, (last - 1) * cells // length
    starts = [-(-cell * length // cells) for cell in range(low, high + 2)]
    bounds = [max(first, min(last, start)) for start in starts]
    return slice(low, high + 1), tuple(stop - start for start, stop in pairwise(bounds))


@lru_cache(maxsize=64)
def _membership(sizes: tuple[int, ...]) -> Tensor:
    """Ones [position, cell] where the position belongs to the cell."""
    cells = torch.arange(len(sizes))
    return torch.nn.functional.one_hot(cells.repeat_interleave(torch.tensor(sizes)), len(sizes)).float()


def _pooled(values: Tensor, sizes: tuple[int, ...], dim: int, reduce: Callable[..., Tensor]) -> Tensor:
    """Neighbours along a dimension reduced in groups of the given sizes."""
    return torch.stack([reduce(part, dim) for part in values.split(sizes, dim)], dim)


CORNER = (*PER_HEAD, "corner_query", "corner_key")


@dataclass(frozen=True)
class MeanLogits(LayerProbe):
    """Mean over sequences of the attention *logits*, and beside them of the *probabilities*, of the first `tokens`.

    StreamingLLM (Xiao et al. 2023) shows logits in its Figure 2 (256 sentences of 16 tokens) and probabilities in
    Figure 12; the two are easily mixed up, so both are kept, each under its name. Makes ``mean_logit`` and
    ``mean_probability`` [layer, head, corner_query, corner_key], NaN where the key is hidden. Logits are scaled and
    soft-capped as the softmax sees them.

    >>> record = sinkscope.measure(model, ids, [sinkscope.MeanLogits(8)])
    >>> list(record.data_vars)
    ['mean_logit', 'mean_probability']
    """

    tokens: int = 16

    makes: ClassVar = {
        "mean_logit": Variable(CORNER, "1", "mean attention logit among the first tokens", averaged=True),
        "mean_probability": Variable(CORNER, "1", "mean attention among the first tokens", averaged=True),
    }

    def __post_init__(self) -> None:
        if not is_whole(self.tokens) or self.tokens < 1:
            raise SinkscopeError(f"MeanLogits(tokens={shown(self.tokens)}) measures nothing; give a whole tokens >= 1.")
        if self.tokens > MOST_CORNER:
            raise SinkscopeError(
                f"MeanLogits(tokens={self.tokens}) is a corner of more than {MOST_CORNER:,}; give less."
            )

    def observe(self, layer: Layer) -> Measurements:
        shape = (*layer.lse.shape[:2], self.tokens, self.tokens)
        corners = {name: torch.full(shape, torch.nan, device=layer.lse.device) for name in MeanLogits.makes}
        stop, last = min(self.tokens, layer.length), min(self.tokens, layer.reach)
        if layer.start < stop and layer.key_start == 0:
            queries, keys = slice(0, stop - layer.start), slice(0, last)
            logits, probabilities = layer.logits(queries, keys), layer.probabilities(queries, keys)
            for corner, values in zip(corners.values(), (logits, probabilities), strict=True):
                corner[:, :, layer.start : stop, :last] = values.masked_fill(is_hidden(logits), torch.nan)
        return corners
