"""A policy as one layer carries it out.

What a query sees falls into two disjoint sets of keys: the *anchors* (sinks, or keys chosen one by one), and the rest.
Every eviction says which they are; what becomes of the anchors' logits and values is the same for all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from sinkscope.core.key_set import KeySet
from sinkscope.core.masks import BandMask, CausalMask, FullMask, IndexedMask, Mask, PerHeadMask
from sinkscope.core.rotation import Rotation


@dataclass(frozen=True, kw_only=True)
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

    def in_head(self, head: int) -> Eviction:
        """The eviction as one head carries it out."""
        return self if self.heads is None else replace(self, heads=self.heads[head : head + 1])

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
        return inside if self.heads is None else PerHeadMask(self.heads, inside, plain)


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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
