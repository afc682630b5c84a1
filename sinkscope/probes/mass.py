"""Mass on the first keys, and the log-sum-exp that it follows from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sinkscope.attention.layer import Layer
from sinkscope.errors import SinkscopeError
from sinkscope.probes.base import LayerProbe, Measurements, Variable


@dataclass(frozen=True)
class SinkMass(LayerProbe):
    """Attention on each of the first keys: ``A[i, j] = exp(score[i, j] - lse[i])`` for ``j < first``.

    Exact, and free beside the forward pass: O(T * first * dim). Makes ``sink_mass`` [sequence, layer, head, query,
    sink], 0 where the key is not yet seen or no longer in a sliding cache.

    Args:
        first: how many keys, each kept apart; at least 1.
    """

    first: int = 4

    makes: ClassVar = {
        "sink_mass": Variable(("sequence", "head", "query", "sink"), "1", "attention on each of the first keys")
    }

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
        "log_sum_exp": Variable(("sequence", "head", "query"), "nats", "logarithm of the softmax denominator"),
        "virtual_sink_mass": Variable(("sequence", "head", "query"), "1", "mass on a learned sink, or a virtual key"),
    }

    def observe(self, layer: Layer) -> Measurements:
        if layer.virtual_logit is None:
            return {"log_sum_exp": layer.lse}
        mass = (layer.virtual_logit[None, :, None] - layer.lse).exp()
        return {"log_sum_exp": layer.lse, "virtual_sink_mass": mass}
