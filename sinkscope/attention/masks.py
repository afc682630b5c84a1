"""Which keys a query may see, answered block by block so that no T x T mask is ever made.

Rows are the queries and columns the keys of one attention call, both counted from the first that the call was given.
A hidden entry is filled with the lowest finite number of its dtype instead of minus infinity: it vanishes from every
softmax all the same, and no `inf - inf` can turn a row that sees nothing into NaN.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

ALL = slice(None)
NEXT = 256  # queries looked at together for whether they see the next key
# no score is as low, and every way to hide a key is lower: infinity, or the lowest float16 and less
HIDDEN_BELOW = -1e4


def is_hidden(scores: Tensor) -> Tensor:
    """Where a score is one that hides its key."""
    return scores <= HIDDEN_BELOW


def weights_of(logs: Tensor, out: Tensor | None = None) -> Tensor:
    """``exp(logs)``, with weights too small for a normal float as the zeros that hidden keys have.

    Processors take four to fifteen times as long for those, and for the exp of what is hidden.

    Args:
        logs: float32 or float64, of any shape; left as they are, unless `out` is `logs`.
        out: where the weights may go; a tensor of their own when None, and where gradients flow.
    """
    floor = math.log(torch.finfo(logs.dtype).tiny) + 0.1
    smallest = math.exp(floor) * (1 + 1e-4)  # no less than the exp of the floor is on any device
    if out is None or logs.requires_grad:
        return F.threshold(logs.clamp(min=floor).exp(), smallest, 0.0)
    return F.threshold(torch.clamp(logs, min=floor, out=out).exp_(), smallest, 0.0, inplace=True)


def ranges(start: int, stop: int, step: int) -> list[slice]:
    """Neighbouring slices of at most `step`, from start to stop."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


class Mask(ABC):
    """The visibility of keys to queries."""

    outer: tuple[int, ...] = (1, 1)  # sequences and heads that it tells apart

    def columns(self, rows: slice, key_length: int) -> slice:
        """A range of columns that holds every key some query in `rows` may see."""
        return slice(0, key_length)

    @abstractmethod
    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        """Fill the hidden entries of `scores` [batch, heads, rows, columns] in place."""

    @abstractmethod
    def seen(self, rows: slice, key_length: int) -> Tensor:
        """How many keys each query sees: [batch or 1, head or 1, rows]."""

    @abstractmethod
    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        """The mask of one sequence of the batch (and one head), with only the given rows and columns left."""


class FullMask(Mask):
    """Every query sees every key (encoders, vision models)."""

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        pass

    def seen(self, rows: slice, key_length: int) -> Tensor:
        return torch.full((1, 1, rows.stop - rows.start), key_length)

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        return self


class CausalMask(Mask):
    """Query `i` sees the keys up to column `i + past`, where `past` keys were there before the first query."""

    def __init__(self, past: int = 0) -> None:
        self.past = past

    def columns(self, rows: slice, key_length: int) -> slice:
        return slice(0, min(key_length, rows.stop + self.past))

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        first_hidden = max(columns.start, rows.start + self.past + 1)  # for the first row; later rows see more
        if first_hidden >= columns.stop:
            return
        queries = torch.arange(rows.start, rows.stop, device=scores.device)[:, None] + self.past
        keys = torch.arange(first_hidden, columns.stop, device=scores.device)
        tail = scores[..., first_hidden - columns.start :]
        tail.masked_fill_(keys > queries, torch.finfo(scores.dtype).min)

    def seen(self, rows: slice, key_length: int) -> Tensor:
        return (torch.arange(rows.start, rows.stop) + self.past + 1).clamp(0, key_length)[None, None]

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        if (moved := _moved(rows, columns)) is not None and self.past + moved >= 0:
            return CausalMask(self.past + moved)
        return IndexedMask(lambda b, h, q, k: k <= q + self.past, batch, rows, columns)


class BandMask(Mask):
    """Query `i` sees its own column, `i + past`, and the `window` columns before it."""

    def __init__(self, past: int, window: int) -> None:
        self.past, self.window = past, window

    def columns(self, rows: slice, key_length: int) -> slice:
        return slice(max(0, rows.start + self.past - self.window), min(key_length, rows.stop + self.past))

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        own = torch.arange(rows.start, rows.stop, device=scores.device)[:, None] + self.past
        keys = torch.arange(columns.start, columns.stop, device=scores.device)
        scores.masked_fill_((keys > own) | (keys < own - self.window), torch.finfo(scores.dtype).min)

    def seen(self, rows: slice, key_length: int) -> Tensor:
        own = torch.arange(rows.start, rows.stop) + self.past
        return (1 + own.clamp(max=key_length - 1) - (own - self.window).clamp(min=0))[None, None]

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        moved = _moved(rows, columns)
        if moved is not None and 0 <= self.past + moved <= len(columns) - len(rows):  # their own keys are among them
            return BandMask(self.past + moved, self.window)
        return IndexedMask(
            lambda b, h, q, k: (k <= q + self.past) & (k >= q + self.past - self.window), batch, rows, columns
        )


class VisibleMask(Mask):
    """A mask that answers with booleans."""

    @abstractmethod
    def visible(self, rows: slice, columns: slice, heads: slice = ALL) -> Tensor:
        """Which keys are seen, [batch, heads or 1, rows, columns]."""

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        seen = self.visible(rows, columns, heads).to(scores.device)  # one mask serves layers on several
        scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)

    def seen(self, rows: slice, key_length: int) -> Tensor:
        return self.visible(rows, slice(0, key_length)).sum(-1)


class IndexedMask(VisibleMask):
    """A mask given as a function of (batch, head, query, key) indices: transformers' own `mask_function`.

    Args:
        function: gives booleans, True where the key may be seen; of broadcast index tensors if `vectorised`, else of
            scalars only.
        batch, rows, columns: the indices of each sequence, query and key of the attention call.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        batch: Tensor | int,
        rows: Tensor,
        columns: Tensor,
        vectorised: bool = True,
    ) -> None:
        self.function, self.rows, self.column_indices = function, rows, columns
        self.batch = torch.as_tensor([batch] if isinstance(batch, int) else batch, device=rows.device)
        self.vectorised, self.outer = vectorised, (len(self.batch), 1)
        # one mask serves many layers, so each range is looked at once
        self._extent: dict[tuple[int, int], slice] = {}
        self._nothing_hidden: dict[tuple[int, int, int, int], bool] = {}

    @cached_property
    def looks_ahead(self) -> bool:
        """Whether some query sees the key behind its own."""
        first = int(self.rows[0] - self.column_indices[0]) + 1  # the key behind the first query
        for start in range(0, min(len(self.rows), len(self.column_indices) - first), NEXT):
            stop = min(start + NEXT, len(self.rows))
            seen = self.visible(slice(start, stop), slice(first + start, first + stop))
            if bool(seen.diagonal(dim1=-2, dim2=-1).any()):
                return True
        return False

    def visible(self, rows: slice, columns: slice, heads: slice = ALL) -> Tensor:
        head = torch.zeros(1, dtype=torch.long, device=self.rows.device)
        query, key = self.rows[rows], self.column_indices[columns]
        if self.vectorised:
            seen = self.function(
                self.batch[:, None, None, None], head[None, :, None, None], query[:, None], key[None, :]
            )
        else:
            seen = _map_over_indices(self.function)(self.batch, head, query, key)
        return seen.expand(len(self.batch), 1, len(query), len(key))

    def columns(self, rows: slice, key_length: int) -> slice:
        asked = (rows.start, rows.stop)
        if asked not in self._extent:
            seen = self.visible(rows, slice(0, key_length)).flatten(0, 2).any(0).nonzero().flatten()
            # a block that sees nothing (padding) still needs one column for its kernels
            self._extent[asked] = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)
        return self._extent[asked]

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        asked = (rows.start, rows.stop, columns.start, columns.stop)
        if self._nothing_hidden.get(asked):
            return
        seen = self.visible(rows, columns).to(scores.device)
        if asked not in self._nothing_hidden:
            self._nothing_hidden[asked] = bool(seen.all())
        scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        sequence = int(self.batch[batch])
        rows, columns = (places.to(self.rows.device) for places in (rows, columns))
        return IndexedMask(self.function, sequence, self.rows[rows], self.column_indices[columns], self.vectorised)


class TensorMask(VisibleMask):
    """A mask, or an additive bias, that the model or its user made as a tensor [batch, head, query, key]."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.outer = tensor, tensor.shape[:2]

    def _part(self, rows: slice, columns: slice, heads: slice) -> Tensor:
        return self.tensor[:, heads if self.tensor.shape[1] > 1 else ALL, rows, columns]

    def visible(self, rows: slice, columns: slice, heads: slice = ALL) -> Tensor:
        part = self._part(rows, columns, heads)
        return part if part.dtype == torch.bool else ~(part <= torch.finfo(part.dtype).min / 2)

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        if self.tensor.dtype != torch.bool:
            scores.add_(self._part(rows, columns, heads).to(scores.dtype))
        super().hide(scores, rows, columns, heads)

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        sequence = min(batch, len(self.tensor) - 1)
        heads = ALL if head is None or self.tensor.shape[1] == 1 else slice(head, head + 1)
        return TensorMask(self.tensor[sequence : sequence + 1, heads][:, :, rows][..., columns])


class BiasedMask(Mask):
    """A mask with a bias [batch or 1, head or 1, query, key] on the scores of the keys that are seen."""

    def __init__(self, mask: Mask, bias: Tensor) -> None:
        self.mask, self.bias = mask, bias
        self.outer = tuple(map(max, mask.outer, bias.shape))

    def columns(self, rows: slice, key_length: int) -> slice:
        return self.mask.columns(rows, key_length)

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        heads_of_bias = heads if self.bias.shape[1] > 1 else ALL
        scores.add_(self.bias[:, heads_of_bias, rows, columns].to(scores.dtype))
        self.mask.hide(scores, rows, columns, heads)

    def seen(self, rows: slice, key_length: int) -> Tensor:
        return self.mask.seen(rows, key_length)

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        sequence = min(batch, len(self.bias) - 1)
        heads = ALL if head is None or self.bias.shape[1] == 1 else slice(head, head + 1)
        bias = self.bias[sequence : sequence + 1, heads][:, :, rows][..., columns]
        return BiasedMask(self.mask.restricted(batch, rows, columns, head), bias)


class ChosenMask(Mask):
    """A mask of whose keys each query sees only some.

    Args:
        mask: which keys may be seen.
        places: [batch, query, chosen] columns of the chosen keys; below 0 for none.
    """

    def __init__(self, mask: Mask, places: Tensor) -> None:
        self.mask, self.places, self.outer = mask, places, (len(places), mask.outer[1])

    def columns(self, rows: slice, key_length: int) -> slice:
        return self.mask.columns(rows, key_length)

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        places = self.places[:, None, rows].long().clamp(min=-1) + 1  # column 0 is for none
        width = max(columns.stop, int(places.max())) + 1
        chosen = torch.zeros(*places.shape[:3], width, dtype=torch.bool, device=places.device)
        chosen.scatter_(-1, places, True)
        scores.masked_fill_(~chosen[..., columns.start + 1 : columns.stop + 1], torch.finfo(scores.dtype).min)
        self.mask.hide(scores, rows, columns, heads)

    def seen(self, rows: slice, key_length: int) -> Tensor:
        scores = torch.zeros(*self.outer, rows.stop - rows.start, key_length, device=self.places.device)
        self.hide(scores, rows, slice(0, key_length))
        return (~is_hidden(scores)).sum(-1)

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        places = self.places[batch : batch + 1, rows].long()
        moved = places.new_full((max(int(places.max()), int(columns.max())) + 1,), -1)
        moved[columns] = torch.arange(len(columns), device=places.device)
        inside = self.mask.restricted(batch, rows, columns, head)
        return ChosenMask(inside, torch.where(places < 0, -1, moved[places.clamp(min=0)]))


class LastSeenMask(VisibleMask):
    """Queries at places `rows` see keys up to their own, until the last query [batch, head, key] that sees each."""

    def __init__(self, last_seen: Tensor, rows: Tensor, columns: Tensor | None = None) -> None:
        self.last_seen, self.rows = last_seen, rows
        self.column_indices = torch.arange(last_seen.shape[2], device=rows.device) if columns is None else columns

    def visible(self, rows: slice, columns: slice, heads: slice = ALL) -> Tensor:
        query, key = self.rows[rows, None], self.column_indices[columns]
        return (key <= query) & (query <= self.last_seen[:, heads, None, columns])

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        heads = ALL if head is None else slice(head, head + 1)
        last_seen = self.last_seen[batch : batch + 1, heads][..., columns]
        return LastSeenMask(last_seen, self.rows[rows], self.column_indices[columns])


class PerHeadMask(Mask):
    """One mask in the chosen heads (booleans [head]), another one in the rest."""

    def __init__(self, chosen: Tensor, inside: Mask, outside: Mask) -> None:
        self.chosen, self.inside, self.outside = chosen, inside, outside

    def columns(self, rows: slice, key_length: int) -> slice:
        both = [mask.columns(rows, key_length) for mask in (self.inside, self.outside)]
        return slice(min(part.start for part in both), max(part.stop for part in both))

    def hide(self, scores: Tensor, rows: slice, columns: slice, heads: slice = ALL) -> None:
        chosen, inside = self.chosen[heads].to(scores.device), scores.clone()
        self.inside.hide(inside, rows, columns, heads)
        self.outside.hide(scores, rows, columns, heads)
        scores[:, chosen] = inside[:, chosen]

    def seen(self, rows: slice, key_length: int) -> Tensor:
        inside, outside = (mask.seen(rows, key_length) for mask in (self.inside, self.outside))
        return torch.where(self.chosen[:, None].to(inside.device), inside, outside)

    def restricted(self, batch: int, rows: Tensor, columns: Tensor, head: int | None = None) -> Mask:
        if head is not None:
            return (self.inside if self.chosen[head] else self.outside).restricted(batch, rows, columns, head)
        both = (mask.restricted(batch, rows, columns) for mask in (self.inside, self.outside))
        return PerHeadMask(self.chosen, *both)


def _map_over_indices(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Map a scalar mask function over key, query, head and batch indices, innermost first."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    for dims in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)):
        function = torch.vmap(function, in_dims=dims, out_dims=0)

    def mapped(*indices: Tensor) -> Tensor:
        with TransformGetItemToIndex():  # lets vmap index a mask by a mapped scalar
            return function(*indices)

    return mapped


def _moved(rows: Tensor, columns: Tensor) -> int | None:
    """How much farther right the first of some rows lies than the first of some columns, if both follow each other."""
    if not len(rows) or not len(columns):
        return None
    for places in (rows, columns):
        if len(places) > 1 and not bool((places.diff() == 1).all()):
            return None
    return int(rows[0]) - int(columns[0])
