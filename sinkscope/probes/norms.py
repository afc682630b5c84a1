"""Norms of keys, of values, and of what each head hands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sinkscope.attention.layer import Layer
from sinkscope.probes.base import LayerProbe, Measurements, Variable


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

    makes: ClassVar = {
        "output_norm": Variable(("sequence", "head", "query"), "1", "Euclidean norm of what a head hands on")
    }

    def observe(self, layer: Layer) -> Measurements:
        if layer.output is None:
            return {}
        return {"output_norm": layer.output.float().norm(dim=-1)}
