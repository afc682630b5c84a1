"""The normaliser slot: how scores become weights.

The normalisers here differ from softmax by one more term in the denominator, so they follow from softmax attention and
its log-sum-exp: with a virtual key of logit ``s`` and value 0 the output becomes ``output * sigmoid(lse - s)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError


class Normaliser(Protocol):
    """How scores become weights."""

    def weights(self, scores: Tensor) -> Tensor:
        """The definition: weights [..., query, key] of scores [batch, head, query, key]; what the rest is tested by."""

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor | None:
        """Logit [head] of the virtual key that joins the denominator, or None for plain softmax."""


@dataclass(frozen=True)
class Softmax:
    """``exp(x_i) / sum_j exp(x_j)``: the weights of a query sum to one, whether or not anything deserves them."""

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor | None:
        return None


@dataclass(frozen=True)
class LearnedSink:
    """One more logit per head joins the softmax and its column is dropped, so rows sum to less than one (gpt-oss).

    On a model with learned sinks of its own it takes their place.

    Args:
        logit: [head], or one number for all heads.
    """

    logit: Tensor | float

    def weights(self, scores: Tensor) -> Tensor:
        extra = self.virtual_logit(scores.shape[1], scores.device).to(scores.dtype)[None, :, None, None]
        return torch.cat([scores, extra.expand(*scores.shape[:-1], 1)], -1).softmax(-1)[..., :-1]

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor:
        logit = torch.as_tensor(self.logit, dtype=torch.float32, device=device).flatten()
        if len(logit) not in (1, heads) or bool(logit.isnan().any()):
            raise SinkscopeError(
                f"LearnedSink holds {len(logit)} logits, or NaN, for {heads} heads; give one number, or one per head."
            )
        return logit.expand(heads)


@dataclass(frozen=True)
class Softmax1:
    """Softmax off by one: ``exp(x_i) / (1 + sum_j exp(x_j))`` (Miller 2023), a virtual key of logit 0 and value 0."""

    def weights(self, scores: Tensor) -> Tensor:
        largest = scores.amax(-1, keepdim=True).clamp(min=0)
        exponentials = (scores - largest).exp()
        return exponentials / ((-largest).exp() + exponentials.sum(-1, keepdim=True))

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor:
        return torch.zeros(heads, device=device)


def normalise(output: Tensor, lse: Tensor, virtual_logit: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention and its lse, with a virtual key of value 0 let into the denominator.

    Args:
        output: [batch, head, query, dim] of plain softmax.
        lse: [batch, head, query] over the real keys.
        virtual_logit: [head] or None.

    Returns:
        The output, and the lse with the virtual key included.
    """
    if virtual_logit is None:
        return output, lse
    logit = virtual_logit.float()[None, :, None]
    return output * torch.sigmoid(lse - logit)[..., None].to(output.dtype), torch.logaddexp(lse, logit)
