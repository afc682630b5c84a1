"""Normalisers whose weights each follow from their own score: clipped softmax, ReLU and sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.normalisers.base import Pointwise


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


@dataclass(frozen=True, repr=False)
class ReLU(Pointwise):
    """``max(0, x_i) / n`` where the query sees n keys (Wortsman et al. 2023, "Replacing softmax with ReLU in ViTs")."""

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        return scores.clamp(min=0) / seen


@dataclass(frozen=True, repr=False)
class Sigmoid(Pointwise):
    """``1 / (1 + exp(-(x_i + bias)))``: no key competes with another, and no sum has to be filled.

    Ramapuram et al. 2024, "Theory, analysis, and best practices for sigmoid self-attention".

    Args:
        bias: added to each score; minus the logarithm of the number of keys the query sees when None, so that even
            scores of 0 begin at a sum of about one.
    """

    bias: float | None = None

    def __post_init__(self) -> None:
        if self.bias is not None and not math.isfinite(self.bias):
            raise SinkscopeError(f"{self!r} has no finite bias; give a number, or None for -log(keys seen).")

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        bias = -seen.to(scores.dtype).log() if self.bias is None else self.bias
        return torch.sigmoid(scores + bias)
