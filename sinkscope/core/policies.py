"""The policy slot: which keys a query may see, and at what distance.

A policy is data; the attention function and the streaming engine read its fields. Sizes count the tokens a cache keeps
between two steps. The token being read sees them, and itself.

    dense        all tokens                 k k k k k k k k k q
    window       the last 4                 . . . . . k k k k q
    recompute    the last 5, rebuilt        . . . . . r r r r q     r: computed from these five tokens alone
    sink window  the first 1 and last 3     k . . . . . k k k q

Window and re-computation are often mixed up. A *window* keeps the keys and values as they were computed, with the whole
text before them in view; it drops the oldest, and perplexity collapses when the first token goes. *Re-computation*
throws the cache away and runs the last tokens as a text of their own, for every new token: its first token becomes a
sink again, so it works, at a cost of window squared per token (Xiao et al. 2023, Figure 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.errors import SinkscopeError

POSITIONS = ("cache", "original")


class Policy:
    """Which keys a query may see.

    Attributes:
        sinks: first tokens that are never evicted.
        window: last tokens that are kept beside them; all when None.
        positions: "cache", where distances are counted among the tokens kept (StreamingLLM), or "original", where they
            are those of the text.
        recomputed: whether keys and values are rebuilt from the tokens kept, for every new token.
    """

    sinks: int = 0
    window: int | None = None
    positions: str = "cache"
    recomputed: bool = False

    @property
    def cache_size(self) -> int | None:
        """Tokens kept at most; None when all are."""
        return None if self.window is None else self.sinks + self.window

    @property
    def name(self) -> str:
        """A short name, as figures and records show it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Dense(Policy):
    """Every token sees all tokens before it: the cache grows with the text."""

    @property
    def name(self) -> str:
        return "dense"


@dataclass(frozen=True)
class LastTokens(Policy):
    """A policy of the last `size` tokens and no others."""

    size: int

    def __post_init__(self) -> None:
        _check_count(type(self).__name__, "size", self.size, 1)

    @property
    def window(self) -> int:  # type: ignore[override]
        return self.size


@dataclass(frozen=True)
class Window(LastTokens):
    """Keep the last `size` tokens: the cache is bounded, and the model collapses once its first token is evicted."""

    @property
    def name(self) -> str:
        return f"window {self.size}"


@dataclass(frozen=True)
class Recompute(LastTokens):
    """Run the last `size` tokens afresh for every new token: the reference in quality, slow.

    The token being read is one of them, at position size - 1.
    """

    @property
    def recomputed(self) -> bool:  # type: ignore[override]
        return True

    @property
    def name(self) -> str:
        return f"recompute {self.size}"


@dataclass(frozen=True)
class SinkWindow(Policy):
    """Keep the first `sinks` tokens and the last `window` (StreamingLLM; Xiao et al. 2023, section 3.2).

    Args:
        sinks: first tokens kept.
        window: last tokens kept.
        positions: "cache" moves the sinks along, so that no distance exceeds sinks + window; "original" leaves them at
            their place in the text, ever farther away.
    """

    sinks: int = 4
    window: int = 1020
    positions: str = "cache"

    def __post_init__(self) -> None:
        _check_count("SinkWindow", "sinks", self.sinks, 0)
        _check_count("SinkWindow", "window", self.window, 1)
        if self.positions not in POSITIONS:
            raise SinkscopeError(f"positions={self.positions!r} is unknown; give one of {', '.join(POSITIONS)}.")

    @property
    def name(self) -> str:
        mode = "" if self.positions == "cache" else f", {self.positions} positions"
        return f"sinks {self.sinks}+{self.window}{mode}"


def _check_count(policy: str, name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SinkscopeError(f"{policy}({name}={value!r}) cannot be kept; give a whole {name} >= {least}.")
