"""Every n-th token beside a window."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkscope.policies.base import check_count
from sinkscope.policies.static import StaticPolicy


@dataclass(frozen=True, repr=False)
class EveryNth(StaticPolicy):
    """Keep the last `window` tokens and every `step`-th token of the text, its first one among them.

    The fixed pattern of sparse transformers (Child et al. 2019), with a sliding window in place of blocks.

    >>> sinkscope.perplexity(model, ids, [sinkscope.EveryNth(8, 16)]).policy.item()
    'EveryNth(step=8, window=16)'

    Args:
        step: tokens from one that is kept to the next.
        window: last tokens kept beside them.
    """

    step: int = 64
    window: int = 256

    def __post_init__(self) -> None:
        check_count(self, "step", 1)
        check_count(self, "window", 1)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (query - key <= self.window) | (key % self.step == 0)
