"""ReLU attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkscope.core.normalisers.base import Pointwise


@dataclass(frozen=True, repr=False)
class ReLU(Pointwise):
    """``max(0, x_i) / n`` where the query sees n keys (Wortsman et al. 2023, "Replacing softmax with ReLU in ViTs")."""

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        return scores.clamp(min=0) / seen
