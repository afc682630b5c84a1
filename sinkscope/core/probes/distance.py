"""How far back attention reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinkscope.core.layer import Layer, Tile
from sinkscope.core.probes.base import Measurements, TileProbe, Variable


@dataclass(frozen=True)
class DistanceProfile(TileProbe):
    """Attention by distance, summed over the queries: ``profile[d] = sum_i A[i, i - d]``.

    Makes ``distance_mass`` [sequence, layer, head, distance], in queries. Where attention also looks ahead (encoders)
    the distance is absolute.
    """

    makes: ClassVar = {
        "distance_mass": Variable(
            ("sequence", "head", "distance"), "queries", "attention by distance, over all queries"
        )
    }

    def start(self, layer: Layer) -> Tensor:
        return layer.lse.new_zeros(*layer.lse.shape[:2], layer.length)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        diagonals = tile.diagonal_sums()
        rows, keys = tile.probabilities.shape[-2:]
        nearest = layer.start + tile.rows.start - layer.key_start - tile.columns.start
        distance = nearest + rows - 1 - torch.arange(rows + keys - 1, device=total.device)
        reached = distance.abs() < total.shape[-1]  # a tile's corners may lie outside the map: nothing is there
        total[:, tile.heads].index_add_(-1, distance[reached].abs(), diagonals[..., reached])

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        return {"distance_mass": total}
