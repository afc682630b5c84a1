"""Softmax off by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.core.normalisers.base import VirtualKey


@dataclass(frozen=True, repr=False)
class Softmax1(VirtualKey):
    """``exp(x_i) / (1 + sum_j exp(x_j))`` (Miller 2023, "Attention is off by one"): a virtual key of logit 0.

    With nothing worth attending to, all weights can be small. StreamingLLM calls it the zero sink (Xiao et al. 2023,
    section 3.3).
    """

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor:
        return torch.zeros(heads, device=device)
