"""A policy as one layer carries it out.

What a query sees falls into two disjoint sets of keys: the *anchors* (sinks, or keys chosen one by one), to which a
query may have to be turned, and the rest. Every eviction says which they are; what becomes of the anchors' logits and
values is the same for all. Attention goes over each set and is merged through the log-sum-exp, where a bias on the
anchors' logits and another value for them are one term each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from sinkscope.attention.attend import merge
from sinkscope.attention.attend_layer import (
    Attended,
    Block,
    KeySet,
    Weighing,
    attend_dense,
    by_head,
    joined,
    weighted_sums,
)
from sinkscope.attention.masks import BandMask, CausalMask, FullMask, IndexedMask, Mask, PerHeadMask
from sinkscope.attention.placement import is_built_in
from sinkscope.errors import SinkscopeError
from sinkscope.models.rotary import Rotation


@dataclass(frozen=True, kw_only=True, eq=False)
class Eviction(ABC):
    """What one layer keeps."""

    since: int  # the first query that notices; everything before it is dense
    heads: Tensor | None = None  # booleans [head], where it acts; in all heads when None
    bias: float = 0.0  # added to the logits of the anchors
    values: str = "kept"  # what an anchor's value is, as in `SinkWindow`; "given" for that below
    given: Tensor | None = None  # [kv_head, dim]

    @property
    def turns(self) -> bool:
        """Whether anchors see the queries turned."""
        return False

    def anchors_among(self, start: int, stop: int) -> list[int]:
        """The anchors at places from `start` to `stop`, in the text and among the keys that attention is given."""
        return []

    @abstractmethod
    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether queries at some places see keys at others, none of them before `since`, broadcast."""

    def rest(self, block: Block) -> list[KeySet]:
        """All but the anchors, for queries of which none is before `since`."""
        return [_set_seen(block, self.sees)]

    def mean_seen(self, block: Block, states: Tensor) -> Tensor:
        """The mean state [batch, kv_head, query, dim] of the rest of the keys that each query sees."""
        raise NotImplementedError("there are no anchors whose values could be replaced")

    def drawn(self, block: Block) -> Tensor:
        """For each query one of the rest of the keys that it sees, drawn at random by its place: columns [query]."""
        raise NotImplementedError("there are no anchors whose values could be replaced")

    def anchored(self, block: Block) -> KeySet | None:
        """The anchors, for queries of which none is before `since`; None where they are gone."""
        anchors = self.anchors_among(0, block.key.shape[2])
        if not anchors or self.bias == -math.inf:
            return None
        mask: Mask = FullMask()
        if max(anchors) > block.start:
            columns = torch.tensor(anchors, device=block.key.device)
            mask = _causal(block.query, block.start, columns)
        query = self.toward_anchors(block.query, block.start)
        return KeySet(block.at(anchors)._replace(query=query), mask, self.bias)

    def in_head(self, head: int) -> tuple[Eviction, ...]:
        """The eviction as one head carries it out; none where it does not act."""
        if self.heads is None:
            return (self,)
        return (replace(self, heads=None),) if bool(self.heads[head]) else ()

    def begin(self, cache: Any, start: int) -> None:  # noqa: B027 - most have nothing to remember
        """A forward pass begins, on a cache or None, after `start` tokens that were read before."""

    def end(self, cache: Any) -> None:  # noqa: B027
        """A forward pass has ended, and `cache` holds what it read; None where nothing does."""

    def attend(self, block: Block, weighing: Weighing) -> Attended:
        """Attention of a layer under it, in all heads."""
        count = block.query.shape[2]
        early = min(count, max(0, self.since - block.start))
        parts = []
        if early:
            whole = block.rows(0, early)
            parts.append(attend_dense(whole, CausalMask(whole.key.shape[2] - early), weighing))
        if early < count:
            parts.append(_evicted(block.rows(early, count), self, weighing))
        return joined(parts)

    def toward_anchors(self, query: Tensor, start: int) -> Tensor:
        """The queries [batch, head, query, dim] as the anchors see them, the first one at position `start`."""
        return query

    def mask(self, query: Tensor, start: int) -> Mask:
        """Which of all the text's keys the queries see where it acts, the first query at position `start`."""
        columns = torch.arange(start + query.shape[2], device=query.device)
        return _causal(query, start, columns, lambda q, k: (q < self.since) | self.sees(q, k))


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowEviction(Eviction):
    """The first tokens and the last ones; keys are given as sinks, then neighbours as far back as anyone sees."""

    sinks: int
    window: int
    rotation: Rotation | None  # the layer's; None where sinks keep their place (no positions, or original ones)

    @property
    def turns(self) -> bool:
        return self.rotation is not None and self.sinks > 0

    def anchors_among(self, start: int, stop: int) -> list[int]:
        return list(range(start, min(stop, self.sinks)))

    def rest(self, block: Block) -> list[KeySet]:
        past = block.key.shape[2] - self.sinks - block.query.shape[2]  # neighbours before the first query
        return [KeySet(block.at(slice(self.sinks, None)), BandMask(past, self.window))]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        near = key >= query - self.window
        return near if self.bias == -math.inf else near | (key < self.sinks)

    def mean_seen(self, block: Block, states: Tensor) -> Tensor:
        last = torch.arange(states.shape[2], device=states.device)[-block.query.shape[2] :]
        return _running_mean(states, torch.ones_like(states[0, 0, :, 0]), last - self.window, last)

    def drawn(self, block: Block) -> Tensor:
        last = torch.arange(block.value.shape[2], device=block.value.device)[-block.query.shape[2] :]
        return last - _random_below(_places(block), torch.full_like(last, self.window + 1))

    def toward_anchors(self, query: Tensor, start: int) -> Tensor:
        if self.rotation is None:
            return query
        reach = self.sinks + self.window
        angles = _angles_back(self.rotation, start, query.shape[2], reach, query.device, query.dtype)
        return self.rotation.of_query(query.shape[-1]).turned_by(query, *angles)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyEviction(Eviction):
    """The keys at some places apart; attention is given all keys of the text."""

    keys: tuple[int, ...]

    def anchors_among(self, start: int, stop: int) -> list[int]:
        return [key for key in self.keys if start <= key < stop]

    def rest(self, block: Block) -> list[KeySet]:
        first = len(self.keys)
        if set(self.keys) == set(range(first)) and block.start >= first:
            return [KeySet(block.at(slice(first, None)), CausalMask(block.start - first))]
        return [_set_seen(block, lambda q, k: ~_among(k, self.keys))]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return ~_among(key, self.keys) if self.bias == -math.inf else key == key

    def mean_seen(self, block: Block, states: Tensor) -> Tensor:
        columns, last = torch.arange(states.shape[2], device=states.device), _places(block)
        return _running_mean(states, (~_among(columns, self.keys)).to(states.dtype), torch.zeros_like(last), last)

    def drawn(self, block: Block) -> Tensor:
        columns, last = torch.arange(block.value.shape[2], device=block.value.device), _places(block)
        others = columns[~_among(columns, self.keys)]
        return others[_random_below(last, torch.searchsorted(others, last, right=True).clamp(min=1))]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadKeyEviction(Eviction):
    """The keys at some places gone for every query behind their own; attention is given all keys of the text."""

    keys: tuple[int, ...]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key == query) | ~_among(key, self.keys)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecentEviction(Eviction):
    """`recent` tokens gone, before a query's own and the last `behind`; attention is given all keys of the text."""

    recent: int
    behind: int = 0

    def rest(self, block: Block) -> list[KeySet]:
        first = max(0, block.start - self.behind)
        near = block.at(slice(first, block.start + block.query.shape[2]))
        far = KeySet(block, CausalMask(block.start - 1 - self.recent - self.behind))
        return [far, KeySet(near, BandMask(block.start - first, self.behind))]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key >= query - self.behind) | (key < query - self.behind - self.recent)


class Seeing(Protocol):
    """What answers whether queries see keys, as `sinkscope.StaticPolicy`."""

    def sees(self, query: Tensor, key: Tensor) -> Tensor: ...


class RuleRaised(SinkscopeError):
    """A rule of one's own that raised something; one that looks into a table knows the places of its texts alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenEviction(Eviction):
    """Whatever a policy's `sees` says of places in the text; attention is given all keys of the text."""

    policy: Seeing

    def rest(self, block: Block) -> list[KeySet]:
        rows = torch.arange(block.start, block.start + block.query.shape[2], device=block.key.device)
        self.check_own(self.sees(rows, rows), block.start)
        return super().rest(block)

    def check_own(self, seen: Tensor, start: int = 0) -> None:
        """Raise SinkscopeError unless all queries, the first at place `start`, see their own keys: booleans [query]."""
        if not bool(seen.all()):
            raise SinkscopeError(
                f"query {start + int((~seen).nonzero()[0])} does not see its own key under {self.policy!r}; a query "
                "has to see itself, or it could be left with nothing to attend to."
            )

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(query.shape, key.shape)
        try:
            seen = self.policy.sees(query.clone(), key.clone())
        except Exception as problem:
            if isinstance(problem, SinkscopeError) or is_built_in(type(self.policy)):
                raise
            raise RuleRaised(
                f"`sees` of {self.policy!r} raised {type(problem).__name__} for queries up to {int(query.max())} and "
                f"keys up to {int(key.max())}: {problem}"
            ) from problem
        if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
            given = f"{seen.dtype} numbers" if isinstance(seen, Tensor) else f"a {type(seen).__name__}"
            raise SinkscopeError(f"`sees` of {self.policy!r} gave {given}; it has to give a tensor of booleans.")
        try:
            return seen.expand(shape)
        except RuntimeError as problem:
            raise SinkscopeError(
                f"`sees` of {self.policy!r} gave booleans of shape {tuple(seen.shape)} for queries of shape "
                f"{tuple(query.shape)} and keys of shape {tuple(key.shape)}; expected {tuple(shape)}."
            ) from problem


def _evicted(block: Block, eviction: Eviction, weighing: Weighing) -> Attended:
    """Attention of queries that notice the eviction, all of them."""
    rest, anchored = eviction.rest(block), _changed(eviction, eviction.anchored(block))
    sets = rest if anchored is None else [*rest, anchored]
    parts = [part.attended() for part in sets]
    if anchored is None or eviction.values == "kept":
        output, lse = weighing.normalised(*merge(*parts))
        shift = torch.full_like(lse, eviction.bias) if anchored is not None and eviction.bias else None
        attended = Attended(output, lse, shift)
    else:
        attended = _with_other_values(block, eviction, weighing, merge(*parts[:-1]), parts[-1])
    if not weighing.replaces_softmax:
        return attended
    sums = weighted_sums(sets, attended.lse, weighing)
    if anchored is not None and eviction.values != "kept":
        ones = torch.ones_like(anchored.block.value[..., :1])
        alone = anchored._replace(block=anchored.block._replace(value=ones))
        weight = weighted_sums([*rest, alone], attended.lse, weighing)[-1]
        sums[-1] = _replaced(eviction, block, sums[-1], weight)
    together = torch.stack(sums).sum(0).to(attended.output.dtype)
    return attended._replace(output=by_head(weighing.heads, together, attended.output))


def _with_other_values(
    block: Block, eviction: Eviction, weighing: Weighing, rest: tuple[Tensor, Tensor], anchors: tuple[Tensor, Tensor]
) -> Attended:
    """Softmax attention with the values of the anchors replaced, or with their keys out of the denominator."""
    total = weighing.denominator(torch.logaddexp(rest[1], anchors[1]))
    denominator = weighing.denominator(rest[1]) if eviction.values == "added" else total
    taken = (anchors[1] - total).exp()[..., None]
    left = rest[0] * (rest[1] - denominator).exp()[..., None]
    output = left + _replaced(eviction, block, taken * anchors[0], taken)
    return Attended(output.to(block.query.dtype), denominator, eviction.bias + denominator - total)


def _changed(eviction: Eviction, anchored: KeySet | None) -> KeySet | None:
    """The anchors with what `_replaced` needs of each in the place of its value: its direction, or its length."""
    if anchored is None or eviction.values not in ("long", "turned"):
        return anchored
    value = anchored.block.value
    length = _length(value)
    value = value / length if eviction.values == "long" else length.expand_as(value).contiguous()
    return anchored._replace(block=anchored.block._replace(value=value))


def _replaced(eviction: Eviction, block: Block, weighed: Tensor, weight: Tensor) -> Tensor:
    """What the anchors contribute with other values, where it is `weighed` with their own, or what is left of those,
    and they weigh `weight`."""
    if eviction.values == "zeroed":
        return torch.zeros_like(weighed)
    if eviction.values == "added":
        return weighed
    if eviction.given is not None:
        other = eviction.given.to(block.value)[None, :, None]
    elif eviction.values == "mean":
        other = eviction.mean_seen(block, block.value)
    elif eviction.values == "long":
        other = eviction.mean_seen(block, _length(block.value))
    else:
        other = block.value[:, :, eviction.drawn(block)]
    if eviction.values == "turned":
        other = other / _length(other)
    group = block.query.shape[1] // other.shape[1]
    other = repeat(other, "batch kv_head query dim -> batch (kv_head group) query dim", group=group)
    return (weighed if eviction.values in ("long", "turned") else weight) * other


def _length(value: Tensor) -> Tensor:
    """Norms [.., 1], never zero."""
    return value.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)


def _places(block: Block) -> Tensor:
    """Places of the queries in the text [query]."""
    return torch.arange(block.start, block.start + block.query.shape[2], device=block.query.device)


def _random_below(place: Tensor, count: Tensor) -> Tensor:
    """Numbers from 0 to count - 1 that follow from the place alone, whatever block it is read in (Knuth's hash)."""
    return ((place * 2654435761) % 2**32 // 2**8) % count


def _running_mean(value: Tensor, counted: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Means of `value` [..., token, dim] over the counted tokens from `first` to `last`, both included."""
    weights = counted.double()[:, None]
    sums, counts = (F.pad(states.cumsum(-2), (0, 0, 1, 0)) for states in (value.double() * weights, weights))
    totals, numbers = (states[..., last + 1, :] - states[..., first, :] for states in (sums, counts))
    return (totals / numbers.clamp(min=1)).to(value.dtype)


def _among(key: Tensor, keys: tuple[int, ...]) -> Tensor:
    return torch.isin(key, torch.tensor(keys, device=key.device))


def _set_seen(block: Block, sees: Callable[[Tensor, Tensor], Tensor]) -> KeySet:
    """The keys of the whole text that queries see, none behind them."""
    columns = torch.arange(block.key.shape[2], device=block.key.device)
    return KeySet(block, _causal(block.query, block.start, columns, sees))


def mask_under(evictions: Sequence[Eviction], query: Tensor, start: int) -> Mask:
    """Which of all the text's keys the queries see under evictions in disjoint heads, as `Eviction.mask` has them."""
    mask: Mask = CausalMask(start)
    for eviction in evictions:
        own = eviction.mask(query, start)
        mask = own if eviction.heads is None else PerHeadMask(eviction.heads, own, mask)
    return mask


def _causal(
    query: Tensor, start: int, columns: Tensor, sees: Callable[[Tensor, Tensor], Tensor] | None = None
) -> IndexedMask:
    """Which keys at some places of the text queries see, the first one at position `start`."""
    batch = torch.arange(len(query), device=query.device)
    rows = torch.arange(start, start + query.shape[2], device=query.device)
    return IndexedMask(lambda b, h, q, k: k <= q if sees is None else (k <= q) & sees(q, k), batch, rows, columns)


@lru_cache(maxsize=8)  # layers that rotate alike share them
def _angles_back(
    rotation: Rotation, start: int, count: int, reach: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Angles by which queries from `start` on are turned back, so that none is farther than `reach` from the first."""
    at = torch.arange(start, start + count, device=device)
    return rotation.angles(at.clamp(max=reach) - at, dtype)
