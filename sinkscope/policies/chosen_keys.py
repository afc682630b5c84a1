"""Policies of chosen keys: a dial on their logits, down to taking them away; and the last tokens taken away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.arguments import are_places, one_of
from sinkscope.attention.eviction import Eviction, KeyEviction, ReadKeyEviction, RecentEviction
from sinkscope.errors import SinkscopeError
from sinkscope.policies.base import VALUES, BoundLayer, StaticPolicy, check_bias, check_count


class _ChosenKeys(StaticPolicy):
    """A bias on the logits of keys from query `start` on, or what `Evict` and `Dose` share."""

    keys: Sequence[int]
    start: int | None
    bias: float
    values: str = "kept"
    once_read: bool = False

    def __post_init__(self) -> None:
        if not are_places(self.keys):
            raise SinkscopeError(f"{self!r} names no keys; give different places in the text, such as keys=(0, 1).")
        if self.start is None:
            object.__setattr__(self, "start", 1 + (min(self.keys) if self.once_read else max(self.keys)))
        start = self.start
        if not isinstance(start, int) or start < 0:
            raise SinkscopeError(f"start={start!r} is no place in a text; give a whole number, 0 or more.")
        if self.bias == -math.inf and not self.once_read and set(range(start + 1)) <= set(self.keys):
            raise SinkscopeError(
                f"query {start} would see no key: all {start + 1} up to its own are evicted; give "
                f"start={max(self.keys) + 1}, so that they are evicted once they have been read, or fewer keys."
            )

    @property
    def coordinates(self) -> dict[str, str | int | float]:
        return super().coordinates | {"sink_values": self.values, "sink_bias": float(self.bias)}

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        gone = torch.isin(key, torch.tensor(list(self.keys), device=key.device)) & (query >= (self.start or 0))
        return ~gone | ((key == query) & self.once_read) | (self.bias > -math.inf)

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        since, heads, keys = self.start or 0, self.acting_heads(layer.heads), tuple(self.keys)
        if self.once_read:
            return (ReadKeyEviction(since=since, heads=heads, keys=keys),)
        return (KeyEviction(since=since, heads=heads, keys=keys, bias=self.bias, values=self.values),)

    @property
    def named_keys(self) -> str:
        """The keys in words, as "keys 0-3"."""
        keys = sorted(self.keys)
        if keys == list(range(keys[0], keys[-1] + 1)) and len(keys) > 1:
            return f"keys {keys[0]}-{keys[-1]}"
        return f"key{'s' * (len(keys) > 1)} " + " ".join(map(str, keys))


@dataclass(frozen=True, repr=False)
class Evict(_ChosenKeys):
    """Take keys away from every query from `start` on; all other keys stay at their places.

    Args:
        keys: places in the text.
        start: the first query that does not see them; the one behind the last of them when None, as when a cache
            evicts tokens that have all been read.
        once_read: whether each key stays for its own query, which reads it, and leaves behind it: as when a cache
            evicts tokens one by one. `start` is then the query behind the first of them when None; given a later one,
            those read by then leave together.

    Raises:
        SinkscopeError: no keys, or a key that is no place in a text; keys that would leave a query nothing to see.
    """

    keys: Sequence[int]
    start: int | None = field(default=None, kw_only=True)
    once_read: bool = field(default=False, kw_only=True)

    bias = -math.inf

    @property
    def description(self) -> str:
        return f"evict {self.named_keys}" + f" from query {self.start}" * self.once_read


@dataclass(frozen=True, repr=False)
class Dose(_ChosenKeys):
    """Add a bias to the logits of keys: a dial from evicting them (minus infinity) over 0 to strengthening them.

    Args:
        bias: added to the logits, natural logarithm: with log(2) the keys weigh twice as much against the others.
        keys: places in the text.
        start: the first query that notices; the one behind the last of the keys when None.
        values: what is left of the keys' values, as in `SinkWindow`.

    Raises:
        SinkscopeError: as `Evict`; also a bias that is no number.
    """

    bias: float
    keys: Sequence[int] = (0,)
    start: int | None = field(default=None, kw_only=True)
    values: str = field(default="kept", kw_only=True)

    def __post_init__(self) -> None:
        one_of(self.values, "values", VALUES)
        check_bias(self.bias)
        super().__post_init__()

    @property
    def description(self) -> str:
        left = "" if self.values == "kept" else f", values {self.values}"
        return f"dose {self.bias:+g} on {self.named_keys}{left}"


@dataclass(frozen=True, repr=False)
class EvictRecent(StaticPolicy):
    """Take the last `recent` tokens before it away from every query; it sees itself and all older ones.

    The control for evicting as many sinks: those tokens are of use.

    Args:
        recent: how many tokens.
        start: the first query that does not see them; the first that has another one left when None.
    """

    recent: int
    start: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_count(self, "recent", 1)
        if self.start is None:
            object.__setattr__(self, "start", self.recent + 1)
        elif not isinstance(self.start, int) or self.start <= self.recent:
            raise SinkscopeError(
                f"query {self.start!r} has no token left but itself when the last {self.recent} are evicted; "
                f"give start > {self.recent}."
            )

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (query < (self.start or 0)) | (key == query) | (key < query - self.recent)

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        return (RecentEviction(recent=self.recent, since=self.start or 0, heads=self.acting_heads(layer.heads)),)

    @property
    def description(self) -> str:
        return f"evict the last {self.recent}"
