"""The log-sum-exp itself, and the mass that a learned sink takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sinkscope.core.layer import Layer
from sinkscope.core.probes.base import LayerProbe, Measurements, Variable


@dataclass(frozen=True)
class LogSumExp(LayerProbe):
    """Natural logarithm of the softmax denominator of each query.

    Makes ``log_sum_exp`` [sequence, layer, head, query]. Where a model has a learned sink logit ``s`` per head
    (gpt-oss) the denominator includes ``exp(s)``, rows over the real keys sum to less than 1, and the missing mass
    ``exp(s - lse)`` is recorded as ``virtual_sink_mass``.
    """

    makes: ClassVar = {
        "log_sum_exp": Variable(("sequence", "head", "query"), "nats", "logarithm of the softmax denominator"),
        "virtual_sink_mass": Variable(("sequence", "head", "query"), "1", "mass on a learned sink, or a virtual key"),
    }

    def observe(self, layer: Layer) -> Measurements:
        if layer.virtual_logit is None:
            return {"log_sum_exp": layer.lse}
        mass = (layer.virtual_logit[None, :, None] - layer.lse).exp()
        return {"log_sum_exp": layer.lse, "virtual_sink_mass": mass}
