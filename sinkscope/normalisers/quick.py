"""Normalisers that need no whole rows: softmax with one more key, and weights that each follow from their own score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.normalisers.base import Pointwise, VirtualKey


@dataclass(frozen=True, repr=False)
class Softmax(VirtualKey):
    """``exp(x_i) / sum_j exp(x_j)``: the weights of a query sum to one, whether or not anything deserves them.

    On a model with learned sinks of its own it takes them away.
    """

    def virtual_logit(self, heads: int, device: torch.device) -> None:
        return None


@dataclass(frozen=True, repr=False)
class Softmax1(VirtualKey):
    """``exp(x_i) / (1 + sum_j exp(x_j))`` (Miller 2023, "Attention is off by one"): a virtual key of logit 0.

    With nothing worth attending to, all weights can be small. StreamingLLM calls it the zero sink (Xiao et al. 2023,
    section 3.3).
    """

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor:
        return torch.zeros(heads, device=device)


@dataclass(frozen=True, repr=False)
class LearnedSink(VirtualKey):
    """One more logit per head joins the softmax and its column is dropped, so rows sum to less than one (gpt-oss).

    On a model with learned sinks of its own it takes their place. A logit that requires a gradient gets one.

    Args:
        logit: [head], or one number for all heads.
    """

    logit: Tensor | float

    def __repr__(self) -> str:
        shown = self.logit.tolist() if isinstance(self.logit, Tensor) else self.logit  # every digit
        return super().__repr__().replace(f"logit={self.logit!r}", f"logit={shown!r}")

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor:
        logit = torch.as_tensor(self.logit, dtype=torch.float32, device=device).flatten()
        if len(logit) not in (1, heads) or bool(logit.isnan().any()):
            raise SinkscopeError(
                f"LearnedSink holds {len(logit)} logits, or NaN, for {heads} heads; give one number, or one per head."
            )
        return logit.expand(heads)


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
