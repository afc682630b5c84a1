"""The policies of the last tokens and no others: as they were computed, or rebuilt."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.core.policies.base import Policy, check_count


@dataclass(frozen=True, repr=False)
class LastTokens(Policy):
    """A policy of the last `size` tokens and no others."""

    size: int

    def __post_init__(self) -> None:
        check_count(self, "size", 1)

    @property
    def window(self) -> int:  # type: ignore[override]
        return self.size


@dataclass(frozen=True, repr=False)
class Window(LastTokens):
    """Keep the last `size` tokens: the cache is bounded, and the model collapses once its first token is evicted."""

    @property
    def description(self) -> str:
        return f"window {self.size}"


@dataclass(frozen=True, repr=False)
class Recompute(LastTokens):
    """Run the last `size` tokens afresh for every new token: the reference in quality, slow.

    The token being read is one of them, at position size - 1.
    """

    @property
    def recomputed(self) -> bool:  # type: ignore[override]
        return True

    @property
    def description(self) -> str:
        return f"recompute {self.size}"
