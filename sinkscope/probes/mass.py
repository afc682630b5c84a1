"""Where attention mass lies: on the first keys, on every key, by distance; and how evenly a query spreads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinkscope.attention.layer import Layer, Tile
from sinkscope.errors import SinkscopeError
from sinkscope.probes.base import PER_HEAD, PER_QUERY, LayerProbe, Measurements, TileProbe, Variable


@dataclass(frozen=True)
class SinkMass(LayerProbe):
    """Attention on each of the first keys: ``A[i, j] = exp(score[i, j] - lse[i])`` for ``j < first``.

    Exact, and free beside the forward pass: O(T * first * dim). Makes ``sink_mass`` [sequence, layer, head, query,
    sink], 0 where the key is not yet seen or no longer in a sliding cache.

    Args:
        first: how many keys, each kept apart; at least 1.
    """

    first: int = 4

    makes: ClassVar = {"sink_mass": Variable((*PER_QUERY, "sink"), "1", "attention on each of the first keys")}

    def __post_init__(self) -> None:
        if not isinstance(self.first, int) or self.first < 1:
            raise SinkscopeError(f"SinkMass(first={self.first!r}) measures nothing; give a whole first >= 1.")

    def observe(self, layer: Layer) -> Measurements:
        mass = layer.lse.new_zeros(*layer.lse.shape, self.first)
        visible = min(self.first, layer.length) - layer.key_start
        if visible > 0:
            seen = layer.probabilities(slice(0, layer.rows), slice(0, visible))
            mass[..., layer.key_start : layer.key_start + visible] = seen
        return {"sink_mass": mass}


@dataclass(frozen=True)
class LogSumExp(LayerProbe):
    """Natural logarithm of the softmax denominator of each query.

    Makes ``log_sum_exp`` [sequence, layer, head, query]. Where a model has a learned sink logit ``s`` per head
    (gpt-oss) the denominator includes ``exp(s)``, rows over the real keys sum to less than 1, and the missing mass
    ``exp(s - lse)`` is recorded as ``virtual_sink_mass``.
    """

    makes: ClassVar = {
        "log_sum_exp": Variable(PER_QUERY, "nats", "logarithm of the softmax denominator"),
        "virtual_sink_mass": Variable(PER_QUERY, "1", "mass on a learned sink, or a virtual key"),
    }

    def observe(self, layer: Layer) -> Measurements:
        if layer.virtual_logit is None:
            return {"log_sum_exp": layer.lse}
        mass = (layer.virtual_logit[None, :, None] - layer.lse).exp()
        return {"log_sum_exp": layer.lse, "virtual_sink_mass": mass}


@dataclass(frozen=True)
class Received(TileProbe):
    """Attention that each key receives, summed over the queries: ``received[j] = sum_i A[i, j]``.

    The importance of Gu et al. (2024) is this divided by the number of queries that come at or after the key.
    Makes ``received`` [sequence, layer, head, key], in queries: the sum over keys is the number of queries.
    """

    makes: ClassVar = {
        "received": Variable((*PER_HEAD, "key"), "queries", "attention that each key receives from all queries")
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

    makes: ClassVar = {"entropy": Variable(PER_QUERY, "nats", "Shannon entropy of each query's attention")}

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
        "distance_mass": Variable((*PER_HEAD, "distance"), "queries", "attention by distance, over all queries")
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
