"""Summaries of a layer: a number, or a few, for each query, key or token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sinkscope.attention.attend_layer import by_query
from sinkscope.attention.layer import Layer, Tile
from sinkscope.errors import SinkscopeError
from sinkscope.probes.base import PER_HEAD, PER_QUERY, HiddenProbe, LayerProbe, Measurements, TileProbe, Variable


@dataclass(frozen=True)
class SinkMass(LayerProbe):
    """Attention on each of the `first` keys, at least one: ``A[i, j] = exp(score[i, j] - lse[i])`` for ``j < first``.

    Exact, and free beside the forward pass: O(T * first * dim). Makes ``sink_mass`` [sequence, layer, head, query,
    sink], 0 where the key is not yet seen or no longer in a sliding cache.

    >>> record = sinkscope.measure(model, ids, [sinkscope.SinkMass(first=2)])
    >>> record.sink_mass.dims
    ('sequence', 'layer', 'head', 'query', 'sink')
    """

    first: int = 4

    makes: ClassVar = {"sink_mass": Variable((*PER_QUERY, "sink"), "1", "attention on each of the first keys")}

    def __post_init__(self) -> None:
        if not isinstance(self.first, int) or self.first < 1:
            raise SinkscopeError(f"SinkMass(first={self.first!r}) measures nothing; give a whole first >= 1.")

    def observe(self, layer: Layer) -> Measurements:
        mass = layer.lse.new_zeros(*layer.lse.shape, self.first)
        visible = min(self.first, layer.reach) - layer.key_start
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

    >>> record = sinkscope.measure(model, ids, [sinkscope.LogSumExp()])
    >>> record.log_sum_exp.dims
    ('sequence', 'layer', 'head', 'query')
    """

    makes: ClassVar = {
        "log_sum_exp": Variable(PER_QUERY, "nats", "logarithm of the softmax denominator"),
        "virtual_sink_mass": Variable(PER_QUERY, "1", "mass on a learned sink, or a virtual key"),
    }

    def observe(self, layer: Layer) -> Measurements:
        if layer.virtual_logit is None:
            return {"log_sum_exp": layer.lse}
        mass = (by_query(layer.virtual_logit) - layer.lse).exp()
        return {"log_sum_exp": layer.lse, "virtual_sink_mass": mass}


class _Total(TileProbe):
    """A sum over tiles, under the one name that it makes; for each key where no other is said."""

    def start(self, layer: Layer) -> Tensor:
        return layer.lse.new_zeros(*layer.lse.shape[:2], layer.length)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        return dict.fromkeys(self.makes, total)


@dataclass(frozen=True)
class Received(_Total):
    """Attention that each key receives, summed over the queries: ``received[j] = sum_i A[i, j]``.

    The importance of Gu et al. (2024) is this divided by the number of queries that come at or after the key.
    Makes ``received`` [sequence, layer, head, key], in queries: the sum over keys is the number of queries.

    >>> record = sinkscope.measure(model, ids, [sinkscope.Received()])
    >>> record.received.dims
    ('sequence', 'layer', 'head', 'key')
    """

    makes: ClassVar = {
        "received": Variable(
            (*PER_HEAD, "key"), "queries", "attention that each key receives from all queries", summed=True
        )
    }

    def start(self, layer: Layer) -> Tensor:
        return layer.lse.new_zeros(*layer.lse.shape[:2], layer.reach)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        first, last = tile.columns.start + layer.key_start, tile.columns.stop + layer.key_start
        total[:, tile.heads, first:last] += tile.probabilities.sum(-2)


@dataclass(frozen=True)
class Entropy(_Total):
    """Shannon entropy of each query's attention over the keys: ``-sum_j A[i, j] log A[i, j]``, in nats.

    Makes ``entropy`` [sequence, layer, head, query]; between 0 (one key) and ``log(i + 1)`` (uniform).

    >>> record = sinkscope.measure(model, ids, [sinkscope.Entropy()])
    >>> record.entropy.dims
    ('sequence', 'layer', 'head', 'query')
    """

    makes: ClassVar = {"entropy": Variable(PER_QUERY, "nats", "Shannon entropy of each query's attention")}

    def start(self, layer: Layer) -> Tensor:
        return torch.zeros_like(layer.lse)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        total[:, tile.heads, tile.rows] -= torch.linalg.vecdot(tile.probabilities, tile.log_probabilities)


@dataclass(frozen=True)
class DistanceProfile(_Total):
    """Attention by distance, summed over the queries: ``profile[d] = sum_i A[i, i - d]``.

    Makes ``distance_mass`` [sequence, layer, head, distance], in queries. Where attention also looks ahead (encoders)
    the distance is absolute.

    >>> record = sinkscope.measure(model, ids, [sinkscope.DistanceProfile()])
    >>> list(record.data_vars)
    ['distance_mass']
    """

    one_text: ClassVar = True
    makes: ClassVar = {
        "distance_mass": Variable(
            (*PER_HEAD, "distance"), "queries", "attention by distance, over all queries", summed=True
        )
    }

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        diagonals = tile.diagonal_sums()
        rows, keys = tile.probabilities.shape[-2:]
        nearest = layer.start + tile.rows.start - layer.key_start - tile.columns.start
        distance = nearest + rows - 1 - torch.arange(rows + keys - 1, device=total.device)
        reached = distance.abs() < total.shape[-1]  # a tile's corners may lie outside the map: nothing is there
        total[:, tile.heads].index_add_(-1, distance[reached].abs(), diagonals[..., reached])


@dataclass(frozen=True)
class ZeroWeights(_Total):
    """Share of the keys that each query sees with a weight of exactly 0, as Softpick, sparsemax and ReLU give.

    Makes ``zero_share`` [sequence, layer, head, query]. A weight below the smallest normal float32 counts as 0.

    >>> slots = dict(normaliser=sinkscope.Sparsemax(), probes=[sinkscope.ZeroWeights()])
    >>> with torch.no_grad(), sinkscope.attached(model, **slots) as scope:
    ...     out = model(ids)
    >>> list(scope.record.data_vars)
    ['zero_share']
    """

    makes: ClassVar = {"zero_share": Variable(PER_QUERY, "1", "share of the keys seen that get a weight of 0")}

    def start(self, layer: Layer) -> Tensor:
        return torch.zeros_like(layer.lse)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        total[:, tile.heads, tile.rows] += (tile.probabilities != 0).sum(-1)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        return {"zero_share": 1 - total / layer.keys_seen().clamp(min=1).to(total)}


@dataclass(frozen=True)
class Norms(LayerProbe):
    """Euclidean norms of each token's key and value, per key-value head, as attention sees them.

    Sinks carry small values ("value drain"; Guo et al. 2024): they take attention and hand on little. Makes
    ``key_norm`` and ``value_norm`` [sequence, layer, kv_head, token]. A model outside the attention interface shows its
    keys and values in the cache only: run it with ``use_cache=True`` (the default) or the two are left out.

    >>> record = sinkscope.measure(model, ids, [sinkscope.Norms()])
    >>> list(record.data_vars)
    ['key_norm', 'value_norm']
    """

    one_text: ClassVar = True
    makes: ClassVar = {
        "key_norm": Variable(("sequence", "kv_head", "token"), "1", "Euclidean norm of each key"),
        "value_norm": Variable(("sequence", "kv_head", "token"), "1", "Euclidean norm of each value"),
    }

    def observe(self, layer: Layer) -> Measurements:
        states = {"key_norm": layer.key, "value_norm": layer.value}
        new = {name: state[:, :, -layer.rows :] for name, state in states.items() if state is not None}
        return {name: state.float().norm(dim=-1) for name, state in new.items()}


@dataclass(frozen=True)
class OutputNorm(LayerProbe):
    """Euclidean norm of what each head hands on for each query, before the heads are mixed.

    Makes ``output_norm`` [sequence, layer, head, query]; a model outside the attention interface does not show it.

    >>> record = sinkscope.measure(model, ids, [sinkscope.OutputNorm()])
    >>> record.output_norm.dims
    ('sequence', 'layer', 'head', 'query')
    """

    makes: ClassVar = {"output_norm": Variable(PER_QUERY, "1", "Euclidean norm of what a head hands on")}

    def observe(self, layer: Layer) -> Measurements:
        return {} if layer.output is None else {"output_norm": layer.output.float().norm(dim=-1)}


@dataclass(frozen=True)
class HiddenExtremes(HiddenProbe):
    """The largest magnitude in each token's hidden state, where it is, and the median magnitude of the whole state.

    What is needed to find massive activations (Sun et al. 2024: a magnitude over 100 and about 1000 times the median
    of its layer's hidden state). Makes ``activation_max``, ``activation_dimension`` and ``activation_median``
    [sequence, layer, token], after each decoder layer.

    >>> record = sinkscope.measure(model, ids, [sinkscope.HiddenExtremes()])
    >>> list(record.data_vars)
    ['activation_max', 'activation_dimension', 'activation_median']
    """

    makes: ClassVar = {
        "activation_max": Variable(("sequence", "token"), "1", "largest magnitude in a token's hidden state"),
        "activation_dimension": Variable(("sequence", "token"), "1", "dimension of that magnitude"),
        "activation_median": Variable(("sequence", "token"), "1", "median magnitude of a layer's hidden states"),
    }

    def observe_hidden(self, hidden: Tensor) -> Measurements:
        magnitude = hidden.detach().abs()
        largest, dimension = magnitude.max(-1)
        median = _median(magnitude.flatten(1))[:, None].expand_as(largest)
        return {"activation_max": largest, "activation_dimension": dimension, "activation_median": median}


def _median(values: Tensor) -> Tensor:
    """The lower median of each row; numpy selects in vector registers, six times as fast as torch on a CPU."""
    if not values.is_cpu:
        return values.median(-1).values
    middle = (values.shape[-1] - 1) // 2
    return torch.from_numpy(np.partition(values.float().numpy(), middle, axis=-1)[:, middle].copy())
