"""Softpick."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkscope.arguments import finite_number
from sinkscope.normalisers.base import Normaliser


@dataclass(frozen=True, repr=False)
class Softpick(Normaliser):
    """``relu(e^x - 1) / (sum_j |e^(x_j) - 1| + epsilon)`` over the keys that a query sees (Zuhri et al. 2025,
    "Softpick: No attention sink, no massive activations with rectified softmax", arXiv 2504.20966).

    Keys with scores below 0 get exactly nothing and still weigh in the denominator, so weights need not sum to one.

    >>> sinkscope.Softpick().weights(torch.tensor([[-1.0, 0.0, 1.0]])).round(decimals=2)
    tensor([[0.0000, 0.0000, 0.7300]])

    Args:
        epsilon: keeps the denominator above 0 where every score is 0.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        finite_number(self.epsilon, "epsilon", 0.0)

    def weights(self, scores: Tensor) -> Tensor:
        largest = scores.amax(-1, keepdim=True).clamp(min=0.0)  # both sides are divided by its exponential
        lifted = ((scores - largest).exp() - (-largest).exp()).masked_fill(scores.isneginf(), 0.0)
        return lifted.clamp(min=0.0) / (lifted.abs().sum(-1, keepdim=True) + self.epsilon * (-largest).exp())
