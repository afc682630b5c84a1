"""Sparsemax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.normalisers.base import Normaliser


@dataclass(frozen=True, repr=False)
class Sparsemax(Normaliser):
    """The point of the probability simplex nearest to the scores (Martins and Astudillo 2016, "From softmax to
    sparsemax").

    ``max(0, x_i - tau)`` with ``tau`` such that weights sum to one: over the k largest scores ``z_1 >= ... >= z_k``,
    the most for which ``1 + k z_k > sum_{j <= k} z_j``, it is ``(sum_{j <= k} z_j - 1) / k``. Low scores get exactly
    nothing, and the unit still has to be handed out.

    >>> sinkscope.Sparsemax().weights(torch.tensor([[-1.0, 0.0, 3.0]]))
    tensor([[0., 0., 1.]])
    """

    def weights(self, scores: Tensor) -> Tensor:
        ordered = scores.sort(-1, descending=True).values
        seen = ordered > -torch.inf
        sums = ordered.masked_fill(~seen, 0.0).cumsum(-1)
        count = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
        inside = seen & (1 + count * ordered.masked_fill(~seen, 0.0) > sums)
        size = inside.sum(-1, keepdim=True)
        threshold = (sums.gather(-1, size - 1) - 1) / size
        return (scores - threshold).clamp(min=0.0)
