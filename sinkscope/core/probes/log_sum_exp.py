"""The log-sum-exp itself, and the mass that a learned sink takes."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.core.layer import Layer
from sinkscope.core.probes.base import LayerProbe, Measured, Measurements


@dataclass(frozen=True)
class LogSumExp(LayerProbe):
    """Natural logarithm of the softmax denominator of each query.

    Makes ``log_sum_exp`` [sequence, layer, head, query]. Where a model has a learned sink logit ``s`` per head
    (gpt-oss) the denominator includes ``exp(s)``, rows over the real keys sum to less than 1, and the missing mass
    ``exp(s - lse)`` is recorded as ``virtual_sink_mass``.
    """

    def observe(self, layer: Layer) -> Measurements:
        dims = ("sequence", "head", "query")
        measured = {"log_sum_exp": Measured(dims, layer.lse)}
        if layer.virtual_logit is not None:
            mass = (layer.virtual_logit[None, :, None] - layer.lse).exp()
            measured["virtual_sink_mass"] = Measured(dims, mass)
        return measured
