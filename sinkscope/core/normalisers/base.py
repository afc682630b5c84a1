"""What a normaliser is: how the scores of a query become weights.

There are two kinds, by what their weights follow from. A `VirtualKey` adds one term to the denominator of softmax, so
softmax attention and its log-sum-exp give it without a second pass. In a `Pointwise` normaliser a key's weight is a
function of its own score, of the query's log-sum-exp and of how many keys the query sees: one more pass over the
scores, block by block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.core.masks import is_hidden
from sinkscope.core.placed import Placed


@dataclass(frozen=True, kw_only=True, repr=False)
class Normaliser(Placed, ABC):
    """How scores become weights, in all or in chosen layers and heads."""

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """The definition.

        Args:
            scores: [batch, head, query, key], minus infinity or the lowest float where a key is hidden.

        Returns:
            Weights of the same shape, 0 where a key is hidden.
        """


@dataclass(frozen=True, kw_only=True, repr=False)
class VirtualKey(Normaliser):
    """Softmax with one more key, of value 0: ``exp(x_i) / (exp(s) + sum_j exp(x_j))``."""

    @abstractmethod
    def virtual_logit(self, heads: int, device: torch.device) -> Tensor | None:
        """The logit ``s`` [head] of that key, or None where there is none."""

    def weights(self, scores: Tensor) -> Tensor:
        logit = self.virtual_logit(scores.shape[1], scores.device)
        if logit is None:
            return scores.softmax(-1)
        extra = logit.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]


@dataclass(frozen=True, kw_only=True, repr=False)
class Pointwise(Normaliser):
    """Weights that each follow from their own score."""

    @abstractmethod
    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        """Weights of a block of scores; 0 for a score at the lowest float.

        Args:
            scores: [batch, head, query, key].
            lse: [batch, head, query, 1] log-sum-exp over all keys the query sees.
            seen: [batch or 1, 1, query, 1] how many those are.
        """

    def weights(self, scores: Tensor) -> Tensor:
        hidden = is_hidden(scores)
        seen = (~hidden).sum(-1, keepdim=True)
        return self.weigh(scores, scores.logsumexp(-1, keepdim=True), seen).masked_fill(hidden, 0.0)
