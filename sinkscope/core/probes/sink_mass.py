"""Mass on the first keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sinkscope.core.layer import Layer
from sinkscope.core.probes.base import LayerProbe, Measurements, Variable
from sinkscope.errors import SinkscopeError


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
