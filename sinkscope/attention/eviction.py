"""A policy as one layer carries it out.

What a query sees falls into two disjoint sets of keys: the *anchors* (sinks, or keys chosen one by one), to which a
query may have to be turned, and the rest. Every eviction says which they are; what becomes of the anchors' logits and
values is the same for all. Attention goes over each set and is merged through the log-sum-exp, where a bias on the
anchors' logits and another value for them are one term each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from einops import repeat
from torch import Tensor

from sinkscope.attention.attend import KeySet, merge
from sinkscope.attention.attend_layer import Attended, Block, Weighing, attend_dense, weighted_sum
from sinkscope.attention.masks import BandMask, CausalMask, FullMask, IndexedMask, Mask, PerHeadMask
from sinkscope.errors import SinkscopeError
from sinkscope.models.rotary import Rotation


@dataclass(frozen=True, kw_only=True, eq=False)
class Eviction(ABC):
    """What one layer keeps.

    Attributes:
        since: the first query that notices; everything before it is dense.
        heads: booleans [head], where it acts; in all heads when None.
        bias: added to the logits of the anchors.
        values: what an anchor's value is, as in `Policy`.
    """

    since: int
    heads: Tensor | None = None
    bias: float = 0.0
    values: str = "kept"

    @property
    def turns(self) -> bool:
        """Whether anchors see the queries turned."""
        return False

    @property
    @abstractmethod
    def anchors(self) -> tuple[int, ...]:
        """Places of the anchors, in the text and among the keys that attention is given."""

    @abstractmethod
    def rest(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> list[KeySet]:
        """All but the anchors, for queries from `start` on, none before `since`."""

    @abstractmethod
    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether queries at some places see keys at others, none of them before `since`, broadcast."""

    @abstractmethod
    def mean_values(self, value: Tensor, start: int, rows: int) -> Tensor:
        """The mean value [batch, kv_head, query, dim] of the rest of the keys that each query sees."""

    def anchored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> KeySet | None:
        """The anchors, for queries from `start` on, none before `since`; None where they are gone."""
        anchors = [anchor for anchor in self.anchors if anchor < key.shape[2]]
        if not anchors or self.bias == -math.inf:
            return None
        key, value = (state[:, :, anchors] for state in (key, value))
        mask: Mask = FullMask()
        if max(anchors) > start:
            columns = torch.tensor(anchors, device=query.device)
            rows = torch.arange(start, start + query.shape[2], device=query.device)
            mask = IndexedMask(lambda b, h, q, k: (k <= q) & (b >= 0), _batch(query), rows, columns)
        return KeySet(self.toward_anchors(query, start), key, value, mask, self.bias)

    def in_head(self, head: int) -> tuple[Eviction, ...]:
        """The eviction as one head carries it out; none where it does not act."""
        if self.heads is None:
            return (self,)
        return (replace(self, heads=None),) if bool(self.heads[head]) else ()

    def begin(self, cache: Any, start: int) -> None:  # noqa: B027 - most have nothing to remember
        """A forward pass begins.

        Args:
            cache: the cache it uses, or None.
            start: tokens that were read before.
        """

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
        output, lse = (torch.cat(states, 2) for states in list(zip(*parts, strict=True))[:2])
        return Attended(output, lse, _joined_shift(parts))

    def toward_anchors(self, query: Tensor, start: int) -> Tensor:
        """The queries [batch, head, query, dim] as the anchors see them, the first one at position `start`."""
        return query

    def mask(self, query: Tensor, start: int, plain: Mask) -> Mask:
        """Which of all the text's keys the queries see, the first one at position `start`."""
        rows = torch.arange(start, start + query.shape[2], device=query.device)
        columns = torch.arange(start + query.shape[2], device=query.device)

        def seen(batch: Tensor, head: Tensor, at: Tensor, key: Tensor) -> Tensor:
            return (key <= at) & ((at < self.since) | self.sees(at, key)) & (batch >= 0)

        inside = IndexedMask(seen, _batch(query), rows, columns)
        return in_heads(self.heads, inside, plain)


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowEviction(Eviction):
    """The first tokens and the last ones; keys are given as sinks, then neighbours as far back as anyone sees.

    Attributes:
        sinks, window: tokens kept.
        rotation: the layer's rotary geometry; None where sinks keep their place (no positions, or original ones).
    """

    sinks: int
    window: int
    rotation: Rotation | None

    @property
    def turns(self) -> bool:
        return self.rotation is not None and self.sinks > 0

    @property
    def anchors(self) -> tuple[int, ...]:
        return tuple(range(self.sinks))

    def rest(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> list[KeySet]:
        past = key.shape[2] - self.sinks - query.shape[2]  # neighbours before the first query
        return [KeySet(query, key[:, :, self.sinks :], value[:, :, self.sinks :], BandMask(past, self.window))]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        near = key >= query - self.window
        return near if self.bias == -math.inf else near | (key < self.sinks)

    def mean_values(self, value: Tensor, start: int, rows: int) -> Tensor:
        last = torch.arange(value.shape[2] - rows, value.shape[2], device=value.device)
        return _running_mean(value, torch.ones_like(value[0, 0, :, 0]), last - self.window, last)

    def toward_anchors(self, query: Tensor, start: int) -> Tensor:
        if self.rotation is None:
            return query
        rotation = self.rotation.of_query(query.shape[-1])
        reach = self.sinks + self.window
        return rotation.turned_by(
            query, *_angles_back(self.rotation, start, query.shape[2], reach, query.device, query.dtype)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyEviction(Eviction):
    """Chosen keys apart; attention is given all keys of the text.

    Attributes:
        keys: their places.
    """

    keys: tuple[int, ...]

    @property
    def anchors(self) -> tuple[int, ...]:
        return self.keys

    def rest(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> list[KeySet]:
        first = len(self.keys)
        if set(self.keys) == set(range(first)) and start >= first:
            return [KeySet(query, key[:, :, first:], value[:, :, first:], CausalMask(start - first))]
        columns = torch.arange(key.shape[2], device=key.device)
        rows = torch.arange(start, start + query.shape[2], device=key.device)
        mask = IndexedMask(lambda b, h, q, k: (k <= q) & ~_among(k, self.keys) & (b >= 0), _batch(query), rows, columns)
        return [KeySet(query, key, value, mask)]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return ~_among(key, self.keys) if self.bias == -math.inf else key == key

    def mean_values(self, value: Tensor, start: int, rows: int) -> Tensor:
        columns = torch.arange(value.shape[2], device=value.device)
        last = columns[start : start + rows]
        return _running_mean(value, (~_among(columns, self.keys)).to(value.dtype), torch.zeros_like(last), last)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadKeyEviction(Eviction):
    """Chosen keys gone for every query behind their own; attention is given all keys of the text.

    Attributes:
        keys: their places.
    """

    keys: tuple[int, ...]

    @property
    def anchors(self) -> tuple[int, ...]:
        return ()

    def rest(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> list[KeySet]:
        columns = torch.arange(key.shape[2], device=key.device)
        rows = torch.arange(start, start + query.shape[2], device=key.device)
        mask = IndexedMask(lambda b, h, q, k: (k <= q) & self.sees(q, k) & (b >= 0), _batch(query), rows, columns)
        return [KeySet(query, key, value, mask)]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key == query) | ~_among(key, self.keys)

    def mean_values(self, value: Tensor, start: int, rows: int) -> Tensor:
        raise NotImplementedError("there are no anchors whose values could be replaced")


@dataclass(frozen=True, kw_only=True, eq=False)
class RecentEviction(Eviction):
    """The last tokens gone, but for the query's own; attention is given all keys of the text.

    Attributes:
        recent: how many.
    """

    recent: int

    @property
    def anchors(self) -> tuple[int, ...]:
        return ()

    def rest(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> list[KeySet]:
        far = KeySet(query, key, value, CausalMask(start - 1 - self.recent))
        own, own_value = (state[:, :, start : start + query.shape[2]] for state in (key, value))
        return [far, KeySet(query, own, own_value, BandMask(0, 0))]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key == query) | (key < query - self.recent)

    def mean_values(self, value: Tensor, start: int, rows: int) -> Tensor:
        raise NotImplementedError("there are no anchors whose values could be replaced")


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenEviction(Eviction):
    """Whatever a policy's `sees` says; attention is given all keys of the text.

    Attributes:
        policy: the policy, which is asked about places in the text.
    """

    policy: Seeing

    @property
    def anchors(self) -> tuple[int, ...]:
        return ()

    def rest(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> list[KeySet]:
        columns = torch.arange(key.shape[2], device=key.device)
        rows = torch.arange(start, start + query.shape[2], device=key.device)
        blind = ~self.sees(rows, rows)
        if bool(blind.any()):
            raise SinkscopeError(
                f"query {int(rows[blind][0])} does not see its own key under {self.policy!r}; a query has to see "
                "itself, or it could be left with nothing to attend to."
            )
        mask = IndexedMask(lambda b, h, q, k: (k <= q) & self.sees(q, k) & (b >= 0), _batch(query), rows, columns)
        return [KeySet(query, key, value, mask)]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(query.shape, key.shape)
        seen = self.policy.sees(query.clone(), key.clone())
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

    def mean_values(self, value: Tensor, start: int, rows: int) -> Tensor:
        raise NotImplementedError("there are no anchors whose values could be replaced")


class Seeing(Protocol):
    """What answers whether queries see keys."""

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Booleans that broadcast over places in the text."""


def in_heads(heads: Tensor | None, inside: Mask, outside: Mask) -> Mask:
    """One mask in some heads, another one in the rest; the first in all when `heads` is None."""
    return inside if heads is None else PerHeadMask(heads, inside, outside)


def _evicted(block: Block, eviction: Eviction, weighing: Weighing) -> Attended:
    """Attention of queries that notice the eviction, all of them."""
    rest = eviction.rest(block.query, block.key, block.value, block.start)
    anchored = eviction.anchored(block.query, block.key, block.value, block.start)
    parts = [part.attended(block.scale, block.softcap) for part in rest]
    if anchored is not None:
        parts.append(anchored.attended(block.scale, block.softcap))
    if anchored is None or eviction.values == "kept":
        output, lse = weighing.normalised(*merge(*parts))
        shift = torch.full_like(lse, eviction.bias) if anchored is not None and eviction.bias else None
        attended = Attended(output, lse, shift)
    else:
        attended = _with_other_values(block, eviction, weighing, merge(*parts[: len(rest)]), parts[-1])
    if not weighing.replaces_softmax:
        return attended
    sets = [*rest, *([] if anchored is None else [anchored])]
    sums = weighted_sum(sets, attended.lse, weighing, block.scale, block.softcap)
    if anchored is not None and eviction.values != "kept":
        ones = anchored._replace(value=torch.ones_like(anchored.value[..., :1]))
        weight = weighted_sum([*rest, ones], attended.lse, weighing, block.scale, block.softcap)[-1]
        sums[-1] = _replaced(eviction, block, sums[-1], weight)
    together = torch.stack(sums).sum(0).to(attended.output.dtype)
    return attended._replace(output=weighing.in_its_heads(together, attended.output))


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


def _replaced(eviction: Eviction, block: Block, weighed: Tensor, weight: Tensor) -> Tensor:
    """What the anchors contribute with other values.

    Args:
        weighed: [batch, head, query, dim] what they contribute with their own.
        weight: [batch, head, query, 1] the weight they have together.
    """
    if eviction.values == "zeroed":
        return torch.zeros_like(weighed)
    if eviction.values == "mean":
        means = eviction.mean_values(block.value, block.start, block.query.shape[2])
        group = block.query.shape[1] // means.shape[1]
        return weight * repeat(means, "batch kv_head query dim -> batch (kv_head group) query dim", group=group)
    return weighed


def _joined_shift(parts: list[Attended]) -> Tensor | None:
    if parts[-1].shift is None:
        return None
    return torch.cat([torch.zeros_like(part.lse) if part.shift is None else part.shift for part in parts], 2)


def _running_mean(value: Tensor, counted: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Means of `value` [..., token, dim] over the counted tokens from `first` to `last`, both included."""
    weights = counted.double()[:, None]
    sums, counts = (
        torch.nn.functional.pad(states.cumsum(-2), (0, 0, 1, 0)) for states in (value.double() * weights, weights)
    )
    totals, numbers = (states[..., last + 1, :] - states[..., first, :] for states in (sums, counts))
    return (totals / numbers.clamp(min=1)).to(value.dtype)


def _among(key: Tensor, keys: tuple[int, ...]) -> Tensor:
    return torch.isin(key, torch.tensor(keys, device=key.device))


def _batch(query: Tensor) -> Tensor:
    return torch.arange(len(query), device=query.device)


@lru_cache(maxsize=8)  # layers that rotate alike share them
def _angles_back(
    rotation: Rotation, start: int, count: int, reach: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Angles by which queries from `start` on are turned back, so that none is farther than `reach` from the first."""
    at = torch.arange(start, start + count, device=device)
    return rotation.angles(at.clamp(max=reach) - at, dtype)
