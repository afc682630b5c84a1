"""The dense policy."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.core.policies.base import Policy


@dataclass(frozen=True, repr=False)
class Dense(Policy):
    """Every token sees all tokens before it: the cache grows with the text."""

    @property
    def description(self) -> str:
        return "dense"
