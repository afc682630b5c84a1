"""The dense policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sinkscope.core.eviction import Eviction
from sinkscope.core.policies.base import StaticPolicy

if TYPE_CHECKING:
    from sinkscope.core.policy_on_layers import BoundLayer


@dataclass(frozen=True, repr=False)
class Dense(StaticPolicy):
    """Every token sees all tokens before it: the cache grows with the text."""

    is_dense = True
    is_plain = True

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        return ()

    @property
    def description(self) -> str:
        return "dense"
