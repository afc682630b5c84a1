"""Policies that follow from places in the text: all tokens, and windows with or without the first ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from sinkscope.arguments import one_of
from sinkscope.attention.eviction import Eviction, SeenEviction, WindowEviction
from sinkscope.attention.placement import is_built_in, owner
from sinkscope.attention.trials import try_sees
from sinkscope.errors import SinkscopeError
from sinkscope.policies.base import (
    POSITIONS,
    VALUES,
    BoundLayer,
    Kept,
    Policy,
    check_bias,
    check_count,
)

WHAT_IS_LEFT = {
    "kept": "", "zeroed": "values zeroed", "mean": "mean values", "added": "values only",
    "drawn": "random values", "long": "long values", "turned": "turned values",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class StaticPolicy(Policy, ABC):
    """Visibility that follows from places in the text alone, so that blocks of any size give the same.

    For a policy of one's own, `sees` is all there is to write, as in `EveryNth`: it works wherever built-in ones do.
    Queries and keys stay at their positions in the text. A cache holds all keys for it, since any may be seen later.

    >>> class Even(sinkscope.StaticPolicy):
    ...     def sees(self, query, key):
    ...         return (key % 2 == 0) | (key == query)
    >>> sinkscope.perplexity(model, ids, [Even()]).policy.item()
    'Even()'
    """

    @abstractmethod
    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether queries see keys: booleans. Each has to see its own; keys behind it are hidden in any case.

        Args:
            query, key: places in the text, 0 for its first token; int64, of shapes that broadcast to the answer's.
        """

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        return (SeenEviction(since=0, heads=self.acting_heads(layer.heads), policy=self),)

    def check(self) -> None:
        super().check()
        binds = owner(type(self), "bind")
        for member in ("sees", "kept", "is_dense"):
            gives = owner(type(self), member)
            inherited = gives in (Policy, StaticPolicy) or (member == "sees" and binds is StaticPolicy)
            if gives is not binds and not inherited:
                first, second = (member, "bind") if issubclass(gives, binds) else ("bind", member)
                raise SinkscopeError(
                    f"{type(self).__name__} gives a `{first}` of its own to a policy whose `{second}` does not ask it; "
                    "derive it from sinkscope.StaticPolicy and give it `sees` alone."
                )
        if binds is StaticPolicy and not is_built_in(owner(type(self), "sees")):
            try_sees(self)


@dataclass(frozen=True, repr=False)
class Dense(StaticPolicy):
    """Every token sees all tokens before it: the cache grows with the text.

    >>> sinkscope.ppl(sinkscope.perplexity(model, ids, [sinkscope.Dense()])).dims
    ('policy',)
    """

    is_dense = True
    is_plain = True

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        return ()

    @property
    def description(self) -> str:
        return "dense"


@dataclass(frozen=True, repr=False)
class SinkWindow(StaticPolicy):
    """Keep the first `sinks` tokens and the last `window` (StreamingLLM; Xiao et al. 2023, section 3.2).

    >>> sinkscope.perplexity(model, ids, [sinkscope.SinkWindow(2, 14)]).policy.item()
    'sinks 2+14'

    Args:
        sinks: first tokens kept.
        window: last tokens kept.
        positions: "cache" moves the sinks along, so that no distance exceeds sinks + window; "original" leaves them at
            their place in the text, ever farther away.
        values: what is left of the sinks' values once something was evicted. "kept" is StreamingLLM; with "zeroed" or
            "mean" they are phantoms that only fill the denominator; with "added" only the values are there. "drawn"
            gives them the value of a token of the window, drawn for each query; "long" leaves their direction and gives
            them the mean norm of the values in the window; "turned" leaves their norm and gives them the direction of a
            token drawn as before.
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
    """Keep the last `size` tokens: the cache is bounded, and the model collapses once its first token is evicted.

    >>> sinkscope.perplexity(model, ids, [sinkscope.Window(16)]).policy.item()
    'window 16'
    """

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

    >>> sinkscope.perplexity(model, ids, [sinkscope.Recompute(8)], samples=4).policy.item()
    'recompute 8'
    """

    size: int

    recomputed = True
    _asked = ()

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
