"""Keys taken away or given another logit, by their places in the text or by how recent they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinkscope.arguments import are_places, is_whole, one_of
from sinkscope.attention.eviction import Eviction, KeyEviction, ReadKeyEviction, RecentEviction
from sinkscope.errors import SinkscopeError, shown
from sinkscope.policies.base import VALUES, BoundLayer, Policy, check_bias, check_count
from sinkscope.policies.static import StaticPolicy


class _ChosenKeys(StaticPolicy):
    """What `Evict` and `Dose` share: keys, and what becomes of their logits from query `start` on."""

    keys: Sequence[int]
    start: int | None
    bias: float
    values: str = "kept"
    once_read: bool = False

    def __post_init__(self) -> None:
        if not are_places(self.keys):
            raise SinkscopeError(
                f"{shown(self)} names no keys; give different places in the text, such as keys=(0, 1)."
            )
        if self.start is None:
            object.__setattr__(self, "start", 1 + (min(self.keys) if self.once_read else max(self.keys)))
        start: Any = self.start
        if not is_whole(start) or start < 0:
            raise SinkscopeError(f"start={shown(start)} is no place in a text; give a whole number, 0 or more.")
        if not isinstance(self.once_read, bool):
            raise SinkscopeError(f"once_read={shown(self.once_read)} is neither True nor False; give one of them.")
        is_whole_text = start < len(self.keys) and set(range(start + 1)) <= set(self.keys)
        if self.bias == -math.inf and not self.once_read and is_whole_text:
            raise SinkscopeError(
                f"query {start} would see no key: all {start + 1} up to its own are evicted; give "
                f"start={max(self.keys) + 1}, so that they are evicted once they have been read, or fewer keys."
            )

    def check_places(self, tokens: int) -> None:
        if (last := max(self.keys)) >= tokens:
            raise beyond(self, f"key {last}", tokens)
        if (self.start or 0) > tokens:
            raise beyond(self, f"query {self.start}", tokens)

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

    >>> with torch.no_grad(), sinkscope.attached(model, policy=sinkscope.Evict((0, 1), heads=[0])):
    ...     logits = model(ids).logits

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

    >>> with torch.no_grad(), sinkscope.attached(model, policy=sinkscope.Dose(-2.0, keys=(0,), layers=[1])):
    ...     logits = model(ids).logits

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

    The control for evicting as many sinks: those tokens are of use. With `behind`, those before the last ones go
    instead, at nearly the same distance.

    >>> with torch.no_grad(), sinkscope.attached(model, policy=sinkscope.EvictRecent(4)):
    ...     logits = model(ids).logits

    Args:
        recent: how many tokens.
        start: the first query that does not see them; the first that has another one left when None.
        behind: how many of the last tokens stay.
    """

    recent: int
    start: int | None = field(default=None, kw_only=True)
    behind: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_count(self, "recent", 1)
        check_count(self, "behind", 0)
        reach = self.recent + self.behind
        if self.start is None:
            object.__setattr__(self, "start", reach + 1)
        elif not isinstance(self.start, int) or self.start <= reach:
            left, last = ("itself", "last") if not self.behind else (f"the last {self.behind} and itself", "others")
            raise SinkscopeError(
                f"query {shown(self.start)} has no token left but {left} when the {last} {self.recent} are evicted; "
                f"give start > {reach}."
            )

    def check_places(self, tokens: int) -> None:
        if (self.start or 0) > max(tokens, self.recent + self.behind + 1):
            raise beyond(self, f"query {self.start}", tokens)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        since = query - self.behind
        return (query < (self.start or 0)) | (key >= since) | (key < since - self.recent)

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        heads, since = self.acting_heads(layer.heads), self.start or 0
        return (RecentEviction(recent=self.recent, behind=self.behind, since=since, heads=heads),)

    @property
    def description(self) -> str:
        before = f" before the last {self.behind}" if self.behind else ""
        return f"evict the {'' if before else 'last '}{self.recent}{before}"


def beyond(policy: Policy, place: str, tokens: int) -> SinkscopeError:
    """The error for a place in the text that is not there."""
    return SinkscopeError(
        f"`{policy.name}` names {place}, and the longest text has {tokens} tokens, numbered from 0; give places in it."
    )
