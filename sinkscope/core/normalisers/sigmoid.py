"""Sigmoid attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.core.normalisers.base import Pointwise
from sinkscope.errors import SinkscopeError


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
