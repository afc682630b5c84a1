"""Softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sinkscope.core.normalisers.base import VirtualKey


@dataclass(frozen=True, repr=False)
class Softmax(VirtualKey):
    """``exp(x_i) / sum_j exp(x_j)``: the weights of a query sum to one, whether or not anything deserves them.

    On a model with learned sinks of its own it takes them away.
    """

    def virtual_logit(self, heads: int, device: torch.device) -> None:
        return None
