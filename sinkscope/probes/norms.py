"""Norms of keys, of values and of what each head hands on; extremes of the hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sinkscope.attention.layer import Layer
from sinkscope.probes.base import PER_QUERY, HiddenProbe, LayerProbe, Measurements, Variable


@dataclass(frozen=True)
class Norms(LayerProbe):
    """Euclidean norms of each token's key and value, per key-value head, as attention sees them.

    Sinks carry small values ("value drain"; Guo et al. 2024): they take attention and hand on little. Makes
    ``key_norm`` and ``value_norm`` [sequence, layer, kv_head, token]. A model outside the attention interface shows its
    keys and values in the cache only: run it with ``use_cache=True`` (the default) or the two are left out.
    """

    makes: ClassVar = {
        "key_norm": Variable(("sequence", "kv_head", "token"), "1", "Euclidean norm of each key"),
        "value_norm": Variable(("sequence", "kv_head", "token"), "1", "Euclidean norm of each value"),
    }

    def observe(self, layer: Layer) -> Measurements:
        states = {"key_norm": layer.key, "value_norm": layer.value}
        return {
            name: state[:, :, -layer.rows :].float().norm(dim=-1) for name, state in states.items() if state is not None
        }


@dataclass(frozen=True)
class OutputNorm(LayerProbe):
    """Euclidean norm of what each head hands on for each query, before the heads are mixed.

    Makes ``output_norm`` [sequence, layer, head, query]; a model outside the attention interface does not show it.
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
