"""Sums over all of a map: attention received, its reach, and the entropy of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinkscope.attention.layer import Layer, Tile
from sinkscope.probes.base import Measurements, TileProbe, Variable


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


@dataclass(frozen=True)
class Entropy(TileProbe):
    """Shannon entropy of each query's attention over the keys: ``-sum_j A[i, j] log A[i, j]``, in nats.

    Makes ``entropy`` [sequence, layer, head, query]; between 0 (one key) and ``log(i + 1)`` (uniform).
    """

    makes: ClassVar = {
        "entropy": Variable(("sequence", "head", "query"), "nats", "Shannon entropy of each query's attention")
    }

    def start(self, layer: Layer) -> Tensor:
        return torch.zeros_like(layer.lse)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        total[:, tile.heads, tile.rows] -= torch.linalg.vecdot(tile.probabilities, tile.log_probabilities)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        return {"entropy": total}


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
