"""Softmax, and softmax with one more key in its denominator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.normalisers.base import VirtualKey


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
