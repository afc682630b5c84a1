"""Attention within chunks of the text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkscope.policies.base import check_count
from sinkscope.policies.static import StaticPolicy


@dataclass(frozen=True, repr=False)
class Chunks(StaticPolicy):
    """See the tokens of one's own chunk, and the first tokens of the text: a context that is cleared at every border.

    The local layers of Llama 4 attend like this, without the first tokens.

    >>> sinkscope.perplexity(model, ids, [sinkscope.Chunks(16, sinks=1)]).policy.item()
    'Chunks(size=16, sinks=1)'

    Args:
        size: tokens in a chunk.
        sinks: first tokens of the text that every chunk sees too.
    """

    size: int = 512
    sinks: int = 0

    def __post_init__(self) -> None:
        check_count(self, "size", 1)
        check_count(self, "sinks", 0)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (query // self.size == key // self.size) | (key < self.sinks)
