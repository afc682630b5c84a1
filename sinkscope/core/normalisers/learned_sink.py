"""A learned sink."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.core.normalisers.base import VirtualKey
from sinkscope.errors import SinkscopeError


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
