"""Policies of all tokens, of the last ones with or without the first, and of windows rebuilt for every token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from sinkscope.arguments import one_of
from sinkscope.attention.eviction import Eviction, WindowEviction
from sinkscope.policies.base import POSITIONS, VALUES, BoundLayer, Kept, Policy, StaticPolicy, check_bias, check_count


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


WHAT_IS_LEFT = {"kept": "", "zeroed": "values zeroed", "mean": "mean values", "added": "values only"}


@dataclass(frozen=True, repr=False)
class SinkWindow(StaticPolicy):
    """Keep the first `sinks` tokens and the last `window` (StreamingLLM; Xiao et al. 2023, section 3.2).

    Args:
        sinks: first tokens kept.
        window: last tokens kept.
        positions: "cache" moves the sinks along, so that no distance exceeds sinks + window; "original" leaves them at
            their place in the text, ever farther away.
        values: what is left of the sinks' values once something was evicted. "kept" is StreamingLLM; with "zeroed" or
            "mean" they are phantoms that only fill the denominator; with "added" only the values are there.
        bias: added to the logits of the sinks once something was evicted, as in `Dose`.
    """

    sinks: int = 4
    window: int = 1020
    positions: str = "cache"
    values: str = field(default="kept", kw_only=True)
    bias: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_count(self, "sinks", 0)
        check_count(self, "window", 1)
        one_of(self.positions, "positions", POSITIONS)
        one_of(self.values, "values", VALUES)
        check_bias(self.bias)

    @property
    def kept(self) -> Kept:
        return Kept(self.sinks, self.window)

    @property
    def coordinates(self) -> dict[str, str | int | float]:
        return super().coordinates | {
            "sink_values": self.values,
            "sink_bias": float(self.bias),
            "positions": self.positions,
        }

    @property
    def is_plain(self) -> bool:
        return not self.bias and self.values == "kept" and not self.is_partial

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        early = query <= self.sinks + self.window
        return early | (query - key <= self.window) | ((key < self.sinks) & (self.bias > -math.inf))

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        moves = self.sinks > 0 and self.positions == "cache"
        eviction = WindowEviction(
            sinks=self.sinks,
            window=self.window,
            rotation=layer.rotation if moves else None,
            since=self.sinks + self.window + 1,
            heads=self.acting_heads(layer.heads),
            bias=self.bias,
            values=self.values,
        )
        return (eviction,)

    @property
    def description(self) -> str:
        mode = "" if self.positions == "cache" else f"{self.positions} positions"
        dose = f"dose {self.bias:+g}" if self.bias else ""
        return ", ".join(filter(None, [f"sinks {self.sinks}+{self.window}", mode, WHAT_IS_LEFT[self.values], dose]))


@dataclass(frozen=True, repr=False)
class Window(StaticPolicy):
    """Keep the last `size` tokens: the cache is bounded, and the model collapses once its first token is evicted."""

    size: int

    def __post_init__(self) -> None:
        check_count(self, "size", 1)

    @property
    def kept(self) -> Kept:
        return Kept(0, self.size)

    @property
    def is_plain(self) -> bool:
        return not self.is_partial

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return query - key <= self.size

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        heads = self.acting_heads(layer.heads)
        return (WindowEviction(sinks=0, window=self.size, rotation=None, since=self.size + 1, heads=heads),)

    @property
    def description(self) -> str:
        return f"window {self.size}"


@dataclass(frozen=True, repr=False)
class Recompute(Policy):
    """Run the last `size` tokens afresh for every new token: the reference in quality, slow.

    The token being read is one of them, at position size - 1.
    """

    size: int

    recomputed = True

    def __post_init__(self) -> None:
        check_count(self, "size", 1)

    @property
    def kept(self) -> Kept:
        return Kept(0, self.size)

    @property
    def is_plain(self) -> bool:
        return not self.is_partial

    @property
    def description(self) -> str:
        return f"recompute {self.size}"
