"""Attention maps, pooled or whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sinkscope.core.layer import Layer, Tile
from sinkscope.core.probes.base import Measured, Measurements, TileProbe
from sinkscope.errors import SinkscopeError


@dataclass(frozen=True)
class Maps(TileProbe):
    """Attention maps [query, key] of chosen layers and heads; the only probe that keeps a map.

    Makes ``attention_map`` [sequence, layer, head, map_query, map_key]. Where a text is longer than `resolution`, neighbouring
    tokens share a cell: with ``pool="mass"`` a cell holds the mass that its keys receive together, averaged over its
    queries (rows still sum to 1); with ``pool="max"`` the largest probability in it, so that a sink one column wide
    survives.

    Args:
        layers, heads: which; all when None.
        resolution: cells along each side at most; None keeps every token, a T x T tensor per head.
        pool: "mass" or "max".
    """

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    resolution: int | None = 64
    pool: Literal["mass", "max"] = "mass"

    def __post_init__(self) -> None:
        if self.resolution is not None and self.resolution < 1:
            raise SinkscopeError(f"Maps(resolution={self.resolution}) has no cells; give resolution >= 1 or None.")
        if self.pool not in ("mass", "max"):
            raise SinkscopeError(f'Maps(pool="{self.pool}") is unknown; give "mass" or "max".')

    def wants(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def check(self, layers: int) -> None:
        outside = [layer for layer in self.layers or () if not 0 <= layer < layers]
        if outside:
            raise SinkscopeError(f"layer {outside[0]} is out of range: the model has layers 0 to {layers - 1}.")

    def start(self, layer: Layer) -> Tensor:
        heads = self._heads(layer)
        if self.resolution is not None and layer.start > 0:
            raise SinkscopeError(
                "pooled maps need the whole text in one forward pass; pass it at once, or use resolution=None."
            )
        rows = layer.rows if self.resolution is None else self._cells(layer)
        columns = layer.length if self.resolution is None else self._cells(layer)
        return layer.lse.new_zeros(layer.lse.shape[0], len(heads), rows, columns)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        wanted = [(place, head) for place, head in enumerate(self._heads(layer)) if tile.heads.start <= head < tile.heads.stop]
        if not wanted:
            return
        places = [place for place, _ in wanted]
        picked = tile.probabilities[:, [head - tile.heads.start for _, head in wanted]]
        first = tile.columns.start + layer.key_start
        last = tile.columns.stop + layer.key_start
        if self.resolution is None:
            total[:, places, tile.rows, first:last] = picked
            return
        cell = _cell_of(layer.length, self._cells(layer), total.device)
        query_cells, key_cells = cell[tile.rows], cell[first:last]
        if self.pool == "max":
            rows = picked.new_zeros(*picked.shape[:-1], total.shape[-1])
            rows.index_reduce_(-1, key_cells, picked, "amax")
            part = torch.zeros_like(total[:, places])
            part.index_reduce_(-2, query_cells, rows, "amax")
            total[:, places] = torch.maximum(total[:, places], part)
            return
        low, high = int(key_cells[0]), int(key_cells[-1]) + 1
        top, bottom = int(query_cells[0]), int(query_cells[-1]) + 1
        columns = _membership(key_cells - low, high - low, picked)
        rows = _membership(query_cells - top, bottom - top, picked)
        total[:, places, top:bottom, low:high] += rows.T @ (picked @ columns)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        coords = {"head": np.asarray(self._heads(layer))}
        if self.resolution is not None:
            cells = self._cells(layer)
            cell = _cell_of(layer.length, cells, total.device)
            if self.pool == "mass":
                total /= torch.bincount(cell, minlength=cells)[:, None]
            starts = np.searchsorted(cell.cpu().numpy(), np.arange(cells))
            coords |= {"map_query": starts, "map_key": starts}
        return {"attention_map": Measured(("sequence", "head", "map_query", "map_key"), total, coords)}

    def _heads(self, layer: Layer) -> Sequence[int]:
        heads = range(layer.heads) if self.heads is None else self.heads
        outside = [head for head in heads if not 0 <= head < layer.heads]
        if outside:
            raise SinkscopeError(f"head {outside[0]} is out of range: the layer has heads 0 to {layer.heads - 1}.")
        return heads

    def _cells(self, layer: Layer) -> int:
        return min(layer.length, self.resolution or layer.length)


def _cell_of(length: int, cells: int, device: torch.device) -> Tensor:
    """The cell of each position, cells as even as whole tokens allow."""
    return torch.arange(length, device=device) * cells // length


def _membership(cell: Tensor, cells: int, like: Tensor) -> Tensor:
    """Ones [position, cell] where the position belongs to the cell."""
    return torch.nn.functional.one_hot(cell, cells).to(like.dtype)
