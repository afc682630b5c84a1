"""What one attention layer did in one forward pass: the object that probes look at.

A layer is seen either through its queries, keys and log-sum-exp (`FusedLayer`: nothing of size T x T exists), or
through the score matrix that a model outside the attention interface made itself (`ScoredLayer`). Rows are the
queries of this forward and columns the keys it saw; both are real tokens only, padding is removed before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinkscope.attention.attend import capped, scores_of
from sinkscope.attention.attend_layer import PLAIN, Weighing, by_head
from sinkscope.attention.eviction import Eviction
from sinkscope.attention.masks import ALL, CausalMask, FullMask, Mask, is_hidden, ranges, weights_of

TILE_ENTRIES = 3 << 17  # a tile of probabilities, 1.5 MB: it stays in the cache while every probe reads it
TILE_COLUMNS = 1024
AHEAD = 256  # queries whose next key is looked at in one go


@dataclass(frozen=True)
class Tile:
    """A block of one layer's probabilities.

    Attributes:
        heads, rows, columns: where the tile lies in the layer.
        probabilities: [sequence, heads, rows, columns], float32; 0 where the key is hidden.
        log_probabilities: their natural logarithms; the lowest float where the key is hidden.
        padded: the probabilities with zeros on both sides of each row, as many as there are other rows.
    """

    heads: slice
    rows: slice
    columns: slice
    probabilities: Tensor
    log_probabilities: Tensor
    padded: Tensor

    @classmethod
    def from_logs(cls, heads: slice, rows: slice, columns: slice, logs: Tensor) -> Tile:
        """The tile whose log-probabilities are `logs`."""
        height, width = logs.shape[-2:]
        margin = height - 1
        padded = logs.new_empty(*logs.shape[:-1], width + 2 * margin)
        padded[..., :margin] = 0
        padded[..., margin + width :] = 0
        inside = padded[..., margin : margin + width]
        weights_of(logs, out=inside)
        return cls(heads, rows, columns, inside, logs, padded)

    def diagonal_sums(self) -> Tensor:
        """Sums [sequence, heads, diagonal], from the lowest left corner of the tile to the highest right one.

        Each row is read one step further right than the row above it, so that the diagonals become columns.
        """
        *outer, height, _ = self.padded.shape
        stride = self.padded.stride()
        diagonals = self.probabilities.shape[-1] + height - 1
        return self.padded.as_strided((*outer, height, diagonals), (*stride[:-2], stride[-2] + 1, 1)).sum(-2)


@dataclass(frozen=True, kw_only=True)
class Layer(ABC):
    """One attention layer in one forward pass, for one or several sequences of equal length.

    Attributes:
        lse: [sequence, head, query] log of the softmax denominator, a learned sink included; also where another
            normaliser makes the weights.
        key, value: [sequence, kv_head, key, dim] as attention saw them, or None where the model does not show them.
        start: position of the first query in its sequence (more than 0 when a cache was filled before).
        key_start: position of the first key (more than 0 when a sliding cache dropped the older ones).
        virtual_logit: logit of a learned sink, [head], or [sequence, head, query] where tokens have their own; or None.
        output: [sequence, head, query, dim] what each head hands on, or None where the model does not show it.
        others: keys that are no tokens (compressed ones); they take attention as a learned sink does.
        sequences: [sequence] their numbers in the record; empty where nobody counted them.
        projection: [head, width, dim] the columns of W_O that each head's output meets; None where no probe asks.
        gate: [sequence, head, query, dim] what the output is multiplied by before W_O, NaN where the output is 0; None
            where there is no gate, or no probe asks.
        spans: [sequence, head, query, span] attention on the keys of each of some spans; None where no probe asks, or
            where attention could not make it beside the output.
        received: [sequence, head, key] attention that each key receives, summed over the queries; None where no probe
            asks for these sums.
    """

    lse: Tensor
    key: Tensor | None
    value: Tensor | None
    start: int = 0
    key_start: int = 0
    virtual_logit: Tensor | None = None
    output: Tensor | None = None
    others: int = 0
    sequences: tuple[int, ...] = ()
    projection: Tensor | None = None
    gate: Tensor | None = None
    spans: Tensor | None = None
    received: Tensor | None = None

    _by_query: ClassVar[tuple[str, ...]] = ("lse", "output", "gate", "spans")  # what has one entry for each query

    @property
    def rows(self) -> int:
        """Queries in this forward pass."""
        return self.lse.shape[2]

    @property
    def heads(self) -> int:
        return self.lse.shape[1]

    @property
    def length(self) -> int:
        """Tokens of the sequence up to and including the last query."""
        return self.start + self.rows

    @property
    @abstractmethod
    def reach(self) -> int:
        """Keys up to and including the last that is there: `length`, but where another model made the keys."""

    @abstractmethod
    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Scores [sequence, head, rows, columns] in float32; the lowest float where the key is hidden."""

    @abstractmethod
    def hidden(self, rows: slice, columns: slice, heads: slice = ALL) -> Tensor:
        """Which keys are hidden from which queries: booleans [sequence, heads, rows, columns]."""

    @abstractmethod
    def tiles(self) -> Iterator[Tile]:
        """All the layer's probabilities, tile by tile."""

    def keys_seen(self) -> Tensor:
        """How many keys each query sees: [sequence or 1, head or 1, query]."""
        keys = slice(0, self.reach - self.key_start)
        return torch.cat([(~self.hidden(rows, keys)).sum(-1) for rows in ranges(0, self.rows, AHEAD)], -1)

    def looks_ahead(self) -> bool:
        """Whether some query sees the key behind its own."""
        return any(bool(seen.any()) for _, seen in self._ahead())

    def next_seen(self) -> Tensor:
        """Whether each query sees the key behind its own: booleans [sequence, head, query]."""
        found = torch.zeros_like(self.lse, dtype=torch.bool)
        for rows, seen in self._ahead():
            found[..., rows] = seen
        return found

    def _ahead(self) -> Iterator[tuple[slice, Tensor]]:
        """Queries, as many as are looked at in one go, and whether each sees the key behind its own."""
        first = self.start - self.key_start + 1  # the key behind the first query
        for rows in ranges(0, min(self.rows, self.reach - self.key_start - first), AHEAD):
            hidden = is_hidden(self.logits(rows, slice(first + rows.start, first + rows.stop)))
            yield rows, ~hidden.diagonal(dim1=-2, dim2=-1)

    def one_head(self, batch: int, head: int, rows: Tensor) -> Self:
        """Some queries of one head of one sequence, with all their keys."""
        return self.part(batch, rows, head=head)

    def probabilities(self, rows: slice, columns: slice) -> Tensor:
        """Probabilities [sequence, head, rows, columns] in float32: ``exp(logit - lse)``."""
        return self.weights(self.logits(rows, columns), rows, columns)

    def weights(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        """The probabilities of some logits, made in their place where that can be."""
        logs = self._logs(logits, ALL, rows)
        return weights_of(logs, out=logs)

    def _logs(self, scores: Tensor, heads: slice, rows: slice) -> Tensor:
        """Logarithms of the weights of some scores, in their place."""
        return scores.sub_(self.lse[:, heads, rows, None])

    def _row_tiles(self, keys: int) -> Iterator[Tile]:
        """Tiles of whole rows of all heads."""
        sequences, heads, _ = self.lse.shape
        columns = slice(0, keys)
        for rows in ranges(0, self.rows, max(1, TILE_ENTRIES // (sequences * heads * keys))):
            yield Tile.from_logs(slice(0, heads), rows, columns, self._logs(self.logits(rows, columns), ALL, rows))

    def part(
        self, batch: int, rows: Tensor, columns: Tensor | slice = ALL, head: int | None = None, **fields: Any
    ) -> Self:
        """Some queries and keys of one sequence, in one head or in all, with some other fields."""
        kv_head = None if head is None or self.key is None else head * self.key.shape[1] // self.heads
        tokens_have_sinks = self.virtual_logit is not None and self.virtual_logit.dim() == 3
        by_query = (*self._by_query, "virtual_logit") if tokens_have_sinks else self._by_query
        for names, one, places in ((by_query, head, rows), (("key", "value"), kv_head, columns)):
            for name in names:
                states = getattr(self, name)
                if states is not None:
                    heads = ALL if one is None else slice(one, one + 1)
                    fields[name] = states[batch : batch + 1, heads][:, :, places]
        return replace(self, **{"received": None} | fields)


@dataclass(frozen=True, kw_only=True)
class FusedLayer(Layer):
    """A layer whose attention went through `attend_layer`."""

    query: Tensor
    key: Tensor
    mask: Mask
    scale: float
    softcap: float | None = None
    evictions: tuple[Eviction, ...] = ()  # the policy on it, in disjoint heads
    shift: Tensor | None = None  # of the logits of their anchors, as in `Attended`
    weighing: Weighing = PLAIN  # the normaliser on it

    _by_query: ClassVar[tuple[str, ...]] = (*Layer._by_query, "query", "shift")

    @property
    def reach(self) -> int:
        return self.key_start + self.key.shape[2]

    def looks_ahead(self) -> bool:
        if isinstance(self.mask, CausalMask):
            return False
        if isinstance(self.mask, FullMask):
            return self.rows > 1
        return super().looks_ahead()

    def hidden(self, rows: slice, columns: slice, heads: slice = ALL) -> Tensor:
        size = (rows.stop - rows.start, columns.stop - columns.start)
        scores = self.lse.new_zeros(*self.lse[:, heads].shape[:2], *size)
        self.mask.hide(scores, rows, columns, heads)
        return is_hidden(scores)

    def keys_seen(self) -> Tensor:
        keys = self.key.shape[2]
        return torch.cat([self.mask.seen(rows, keys) for rows in ranges(0, self.rows, AHEAD)], -1)

    def logits(self, rows: slice, columns: slice) -> Tensor:
        scores = scores_of(self.query, self.key, self.mask, rows, columns, self.scale, self.softcap)
        for eviction, keys, places in self._anchors_among(columns):
            key = self.key[:, :, keys]
            given = (FullMask(), rows, slice(0, len(keys)), self.scale, self.softcap)
            seen = self._shifted(scores_of(eviction.toward_anchors(self.query, self.start), key, *given), ALL, rows)
            scores[..., places] = by_head(eviction.heads, seen, scores[..., places])
        if self.evictions:
            self.mask.hide(scores, rows, columns)
        return scores

    def weights(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        if self.weighing.whole is None:
            return super().weights(logits, rows, columns)
        every = self.logits(rows, slice(0, self.key.shape[2]))  # such a normaliser needs whole rows
        return super().weights(every, rows, columns)[..., columns]

    def tiles(self) -> Iterator[Tile]:
        sequences, kv_heads, keys, _ = self.key.shape
        if self.weighing.whole is not None:
            yield from self._row_tiles(keys)
            return
        group = self.heads // kv_heads
        width = min(keys, TILE_COLUMNS)
        height = max(1, TILE_ENTRIES // (sequences * group * width))
        turned = {eviction: eviction.toward_anchors(self.query, self.start) for eviction in self.evictions}
        for kv_head in range(kv_heads):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            query = self.query[:, heads].float() * self.scale
            key = self.key[:, kv_head].float().mT
            for rows in ranges(0, self.rows, height):
                stacked = query[:, :, rows].flatten(1, 2)  # one product for all heads that share the keys
                seen = self.mask.columns(rows, keys)
                for columns in ranges(seen.start, seen.stop, width):
                    scores = capped((stacked @ key[..., columns]).unflatten(1, (group, -1)), self.softcap)
                    for eviction, anchors, places in self._anchors_among(columns):
                        turned_rows = turned[eviction][:, heads, rows].float().flatten(1, 2) * self.scale
                        part = capped((turned_rows @ key[..., anchors]).unflatten(1, (group, -1)), self.softcap)
                        acting = None if eviction.heads is None else eviction.heads[heads]
                        scores[..., places] = by_head(acting, self._shifted(part, heads, rows), scores[..., places])
                    self.mask.hide(scores, rows, columns, heads)
                    yield Tile.from_logs(heads, rows, columns, self._logs(scores, heads, rows))

    def part(
        self, batch: int, rows: Tensor, columns: Tensor | slice = ALL, head: int | None = None, **fields: Any
    ) -> Self:
        if head is not None:
            fields["evictions"] = tuple(part for eviction in self.evictions for part in eviction.in_head(head))
            fields["weighing"] = self.weighing.in_head(head)
        places = torch.arange(self.key.shape[2], device=rows.device)[columns]
        mask = self.mask.restricted(batch, rows, places, head)
        return super().part(batch, rows, columns, head, mask=mask, **fields)

    def _logs(self, scores: Tensor, heads: slice, rows: slice) -> Tensor:
        lse = self.lse[:, heads, rows, None]
        return self.weighing.logs(scores, lse, lambda: self.mask.seen(rows, self.key.shape[2]), heads)

    def _anchors_among(self, columns: slice) -> Iterator[tuple[Eviction, list[int], list[int]]]:
        """By eviction: keys of some columns that see the queries in another way, and their places among the columns."""
        for eviction in self.evictions:
            acts = eviction.turns or self.shift is not None
            if acts and (keys := eviction.anchors_among(columns.start, columns.stop)):
                yield eviction, keys, [key - columns.start for key in keys]

    def _shifted(self, scores: Tensor, heads: slice, rows: slice) -> Tensor:
        return scores if self.shift is None else scores + self.shift[:, heads, rows, None]


@dataclass(frozen=True, kw_only=True)
class ScoredLayer(Layer):
    """A layer that made its own score matrix [sequence, head, query, key], hidden entries at a lowest float."""

    scores: Tensor

    _by_query: ClassVar[tuple[str, ...]] = (*Layer._by_query, "scores")

    @property
    def reach(self) -> int:
        return self.key_start + self.scores.shape[3]

    def logits(self, rows: slice, columns: slice) -> Tensor:
        part = self.scores[:, :, rows, columns]
        return part.float().masked_fill(is_hidden(part), torch.finfo(torch.float32).min)

    def hidden(self, rows: slice, columns: slice, heads: slice = ALL) -> Tensor:
        return is_hidden(self.scores[:, heads, rows, columns])

    def tiles(self) -> Iterator[Tile]:
        return self._row_tiles(self.scores.shape[3])

    def part(
        self, batch: int, rows: Tensor, columns: Tensor | slice = ALL, head: int | None = None, **fields: Any
    ) -> Self:
        part = super().part(batch, rows, columns, head, **fields)
        return replace(part, scores=part.scores[..., columns])
