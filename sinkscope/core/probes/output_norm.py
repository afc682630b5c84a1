"""How much each head hands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sinkscope.core.layer import Layer
from sinkscope.core.probes.base import LayerProbe, Measurements, Variable


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
