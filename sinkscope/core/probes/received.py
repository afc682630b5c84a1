"""Attention received by each key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sinkscope.core.layer import Layer, Tile
from sinkscope.core.probes.base import Measurements, TileProbe, Variable


@dataclass(frozen=True)
class Received(TileProbe):
    """Attention that each key receives, summed over the queries: ``received[j] = sum_i A[i, j]``.

    The importance of Gu et al. (2024) is this divided by the number of queries that come at or after the key.
    Makes ``received`` [sequence, layer, head, key], in queries: the sum over keys is the number of queries.
    """

    makes: ClassVar = {
        "received": Variable(
            ("sequence", "head", "key"), "queries", "attention that each key receives from all queries"
        )
    }

    def start(self, layer: Layer) -> Tensor:
        return layer.lse.new_zeros(*layer.lse.shape[:2], layer.length)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        first, last = tile.columns.start + layer.key_start, tile.columns.stop + layer.key_start
        total[:, tile.heads, first:last] += tile.probabilities.sum(-2)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        return {"received": total}
