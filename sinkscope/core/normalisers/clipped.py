"""Clipped softmax."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkscope.core.normalisers.base import Pointwise
from sinkscope.errors import SinkscopeError


@dataclass(frozen=True, repr=False)
class ClippedSoftmax(Pointwise):
    """``clip((zeta - gamma) * softmax(x) + gamma, 0, 1)`` (Bondarenko et al. 2023, "Quantizable transformers").

    Small weights become exact zeros, so a head can do nothing without a sink to do it on.

    Args:
        gamma: at most 0; the paper's is about ``-4 / T`` to ``-2 / T``.
        zeta: at least 1.
    """

    gamma: float = -0.03
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not (-1e4 < self.gamma <= 0 and 1 <= self.zeta < 1e4):
            raise SinkscopeError(f"{self!r} does not stretch softmax; give gamma <= 0 and zeta >= 1.")

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        return ((self.zeta - self.gamma) * (scores - lse).exp() + self.gamma).clamp(0, 1)
