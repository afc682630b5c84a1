"""What one attention layer did in one forward pass: the object that probes look at.

A layer is seen either through its queries, keys and log-sum-exp (`FusedLayer`: nothing of size T x T exists), or
through the score matrix that a model outside the attention interface made itself (`ScoredLayer`). Rows are the
queries of this forward and columns the keys it saw; both are real tokens only, padding is removed before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinkscope.attention.attend import scores_of
from sinkscope.attention.attend_layer import PLAIN, Weighing
from sinkscope.attention.eviction import Eviction
from sinkscope.attention.masks import ALL, FullMask, Mask, is_hidden, ranges

TILE_ENTRIES = 3 << 17  # a tile of probabilities, 1.5 MB: it stays in the cache while every probe reads it
TILE_COLUMNS = 1024


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
        torch.exp(logs, out=inside)
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
        virtual_logit: [head] logit of a learned sink, or None.
        output: [sequence, head, query, dim] what each head hands on, or None where the model does not show it.
    """

    lse: Tensor
    key: Tensor | None
    value: Tensor | None
    start: int = 0
    key_start: int = 0
    virtual_logit: Tensor | None = None
    output: Tensor | None = None

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

    @abstractmethod
    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Scores [sequence, head, rows, columns] in float32; the lowest float where the key is hidden."""

    @abstractmethod
    def tiles(self) -> Iterator[Tile]:
        """All the layer's probabilities, tile by tile."""

    @abstractmethod
    def sequence(self, batch: int, rows: Tensor, columns: Tensor, start: int, key_start: int) -> Layer:
        """The layer for one sequence of the batch, with only its real tokens left."""

    @abstractmethod
    def one_head(self, batch: int, head: int, rows: Tensor) -> Layer:
        """Some queries of one head of one sequence, with all their keys."""

    def probabilities(self, rows: slice, columns: slice) -> Tensor:
        """Probabilities [sequence, head, rows, columns] in float32: ``exp(logit - lse)``."""
        return self.weights(self.logits(rows, columns), rows, columns)

    def weights(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        """The probabilities of some logits, made in their place where that can be."""
        return logits.sub_(self.lse[:, :, rows, None]).exp_()


@dataclass(frozen=True, kw_only=True)
class FusedLayer(Layer):
    """A layer whose attention went through `attend_layer`.

    Attributes:
        query, key: as attention saw them; `mask` says which keys each query sees.
        evictions: the policy on this layer, in disjoint heads, and the `shift` of its anchors' logits (see `Attended`).
        weighing: the normaliser on this layer.
    """

    query: Tensor
    key: Tensor
    mask: Mask
    scale: float
    softcap: float | None = None
    evictions: tuple[Eviction, ...] = ()
    shift: Tensor | None = None
    weighing: Weighing = PLAIN

    def logits(self, rows: slice, columns: slice) -> Tensor:
        scores = scores_of(self.query, self.key, self.mask, rows, columns, self.scale, self.softcap)
        for eviction, keys, places in self._anchors_among(columns):
            key = self.key[:, :, keys]
            given = (FullMask(), rows, slice(0, len(keys)), self.scale, self.softcap)
            seen = self._shifted(scores_of(self._toward_anchors(eviction), key, *given), ALL, rows)
            scores[..., places] = _where(eviction.heads, seen, scores[..., places])
        if self.evictions:
            self.mask.hide(scores, rows, columns)
        return scores

    def weights(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        if self.weighing.whole is None:
            return self._logs(logits, ALL, rows).exp_()
        every = self.logits(rows, slice(0, self.key.shape[2]))  # such a normaliser needs whole rows
        return self._logs(every, ALL, rows).exp_()[..., columns]

    def tiles(self) -> Iterator[Tile]:
        sequences, kv_heads, keys, _ = self.key.shape
        if self.weighing.whole is not None:
            for rows in ranges(0, self.rows, max(1, TILE_ENTRIES // (sequences * self.heads * keys))):
                columns = slice(0, keys)
                yield Tile.from_logs(
                    slice(0, self.heads), rows, columns, self._logs(self.logits(rows, columns), ALL, rows)
                )
            return
        group = self.heads // kv_heads
        width = min(keys, TILE_COLUMNS)
        height = max(1, TILE_ENTRIES // (sequences * group * width))
        turned = {eviction: self._toward_anchors(eviction) for eviction in self.evictions}
        for kv_head in range(kv_heads):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            query = self.query[:, heads].float() * self.scale
            key = self.key[:, kv_head].float().mT
            for rows in ranges(0, self.rows, height):
                stacked = query[:, :, rows].flatten(1, 2)  # one product for all heads that share the keys
                seen = self.mask.columns(rows, keys)
                for columns in ranges(seen.start, seen.stop, width):
                    scores = self._capped((stacked @ key[..., columns]).unflatten(1, (group, -1)))
                    for eviction, anchors, places in self._anchors_among(columns):
                        turned_rows = turned[eviction][:, heads, rows].float().flatten(1, 2) * self.scale
                        part = self._capped((turned_rows @ key[..., anchors]).unflatten(1, (group, -1)))
                        acting = None if eviction.heads is None else eviction.heads[heads]
                        scores[..., places] = _where(acting, self._shifted(part, heads, rows), scores[..., places])
                    self.mask.hide(scores, rows, columns, heads)
                    yield Tile.from_logs(heads, rows, columns, self._logs(scores, heads, rows))

    def sequence(self, batch: int, rows: Tensor, columns: Tensor, start: int, key_start: int) -> Layer:
        return replace(
            self,
            lse=self.lse[batch : batch + 1, :, rows],
            query=self.query[batch : batch + 1, :, rows],
            mask=self.mask.restricted(batch, rows, columns),
            start=start,
            key_start=key_start,
            key=self.key[batch : batch + 1, :, columns],
            value=_picked(self.value, batch, columns),
            output=_picked(self.output, batch, rows),
            shift=None if self.shift is None else self.shift[batch : batch + 1, :, rows],
        )

    def one_head(self, batch: int, head: int, rows: Tensor) -> FusedLayer:
        kv_head = head * self.key.shape[1] // self.heads
        columns = torch.arange(self.key.shape[2], device=rows.device)
        return replace(
            self,
            evictions=tuple(part for eviction in self.evictions for part in eviction.in_head(head)),
            weighing=self.weighing.in_head(head),
            shift=None if self.shift is None else self.shift[batch : batch + 1, head : head + 1, rows],
            lse=self.lse[batch : batch + 1, head : head + 1, rows],
            query=self.query[batch : batch + 1, head : head + 1, rows],
            mask=self.mask.restricted(batch, rows, columns, head),
            key=self.key[batch : batch + 1, kv_head : kv_head + 1],
            value=None if self.value is None else self.value[batch : batch + 1, kv_head : kv_head + 1],
            output=None if self.output is None else self.output[batch : batch + 1, head : head + 1, rows],
        )

    def _logs(self, scores: Tensor, heads: slice, rows: slice) -> Tensor:
        """Logarithms of the weights of some scores, in their place."""
        lse = self.lse[:, heads, rows, None]
        return self.weighing.logs(scores, lse, lambda: self.mask.seen(rows, self.key.shape[2]), heads)

    def _capped(self, scores: Tensor) -> Tensor:
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def _anchors_among(self, columns: slice) -> Iterator[tuple[Eviction, list[int], list[int]]]:
        """By eviction: keys of some columns that see the queries in another way, and their places among the columns."""
        for eviction in self.evictions:
            if eviction.turns or self.shift is not None:
                keys = [key for key in eviction.anchors if columns.start <= key < columns.stop]
                if keys:
                    yield eviction, keys, [key - columns.start for key in keys]

    def _toward_anchors(self, eviction: Eviction) -> Tensor:
        """The queries as the anchors of an eviction see them."""
        return eviction.toward_anchors(self.query, self.start) if eviction.turns else self.query

    def _shifted(self, scores: Tensor, heads: slice, rows: slice) -> Tensor:
        return scores if self.shift is None else scores + self.shift[:, heads, rows, None]


@dataclass(frozen=True, kw_only=True)
class ScoredLayer(Layer):
    """A layer that made its own score matrix [sequence, head, query, key], hidden entries at a lowest float."""

    scores: Tensor

    def logits(self, rows: slice, columns: slice) -> Tensor:
        part = self.scores[:, :, rows, columns]
        return part.float().masked_fill(is_hidden(part), torch.finfo(torch.float32).min)

    def tiles(self) -> Iterator[Tile]:
        sequences, heads, rows, keys = self.scores.shape
        height = max(1, TILE_ENTRIES // (sequences * heads * keys))
        everything, columns = slice(0, heads), slice(0, keys)
        for block in ranges(0, rows, height):
            logs = self.logits(block, columns) - self.lse[:, :, block, None]
            yield Tile.from_logs(everything, block, columns, logs)

    def sequence(self, batch: int, rows: Tensor, columns: Tensor, start: int, key_start: int) -> Layer:
        return replace(
            self,
            lse=self.lse[batch : batch + 1, :, rows],
            scores=self.scores[batch : batch + 1, :, rows][..., columns],
            start=start,
            key_start=key_start,
            key=_picked(self.key, batch, columns),
            value=_picked(self.value, batch, columns),
        )

    def one_head(self, batch: int, head: int, rows: Tensor) -> ScoredLayer:
        alone = slice(head, head + 1)
        return replace(
            self,
            lse=self.lse[batch : batch + 1, alone, rows],
            scores=self.scores[batch : batch + 1, alone, rows],
            key=None,
            value=None,
        )


def _where(heads: Tensor | None, inside: Tensor, outside: Tensor) -> Tensor:
    """Scores [sequence, head, query, key] of one kind in some heads, of another one in the rest."""
    return inside if heads is None else torch.where(heads[:, None, None], inside, outside)


def _picked(states: Tensor | None, batch: int, columns: Tensor) -> Tensor | None:
    return None if states is None else states[batch : batch + 1, :, columns]
