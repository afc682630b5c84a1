"""One forward pass: which tokens of the batch are real, and which sequences they continue."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sinkscope.core.collect import Sequence
from sinkscope.core.layer import Layer
from sinkscope.errors import SinkscopeError


@dataclass
class Forward:
    """A forward pass under way.

    Attributes:
        sequences: every sequence measured so far; `commit` adds those that begin here.
        rows: the sequences of this batch, which are `sequences[first:]` once committed.
        first: index of the first of them.
        past: columns of the batch that a cache held before, padding included.
        real: booleans [batch, column] over past and new columns, or None when there is no padding.
        ids: [batch, token] of the new columns, or None (vision models).
    """

    sequences: list[Sequence]
    rows: list[Sequence]
    first: int
    past: int
    real: Tensor | None
    ids: Tensor | None
    tokens: int = 0

    def split(self, layer: Layer) -> Iterator[tuple[int, Layer]]:
        """The layer without padding: (index of the first sequence, layer), one sequence at a time where needed."""
        self.tokens = layer.rows
        if self.real is None:
            yield self.first, layer
            return
        for batch, real in enumerate(self.real):
            query_columns = real[layer.start : layer.start + layer.rows].nonzero().flatten()
            key_columns = real[layer.key_start : layer.start + layer.rows].nonzero().flatten()
            if len(query_columns):
                start, key_start = int(real[: layer.start].sum()), int(real[: layer.key_start].sum())
                yield self.first + batch, layer.sequence(batch, query_columns, key_columns, start, key_start)

    def split_hidden(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Hidden states [batch, token, dim] without padding, as `split`."""
        if self.real is None:
            yield self.first, hidden
            return
        for batch, real in enumerate(self.real):
            new = real[self.past : self.past + hidden.shape[1]]
            if bool(new.any()):
                yield self.first + batch, hidden[batch : batch + 1, new]

    def commit(self) -> None:
        """Count the tokens of a forward pass that finished."""
        if self.first == len(self.sequences):
            self.sequences.extend(self.rows)
        new = slice(self.past, self.past + self.tokens)
        for batch, row in enumerate(self.rows):
            if self.ids is not None:
                ids = self.ids[batch] if self.real is None else self.ids[batch, self.real[batch, new]]
                row.token_ids.append(ids.cpu().numpy())
                row.tokens += len(ids)
            else:
                row.tokens += self.tokens if self.real is None else int(self.real[batch, new].sum())


def read_forward(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sequences: list[Sequence]) -> Forward:
    """Read the arguments of a model's forward.

    Raises:
        SinkscopeError: token ids outside the vocabulary, or another batch size than the cache was filled with.
    """
    given = inspect.signature(base.forward).bind_partial(*args, **kwargs).arguments
    given |= given.pop("kwargs", {})
    ids, cache = given.get("input_ids"), given.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    if ids is not None:
        _check_vocabulary(base, ids)
    batch = _batch_size(given)
    mask = given.get("attention_mask")
    real = None
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.bool().all()):
        real = mask.bool()
    first = len(sequences)
    if past and sequences:
        first -= batch
        if first < 0:
            raise SinkscopeError(
                f"the batch has {batch} rows, but the cache was filled while {len(sequences)} sequences were measured; "
                "leave the scope and attach it again for another batch."
            )
        rows = sequences[first:]
    else:
        held = [past] * batch if real is None else [int(row[:past].sum()) for row in real]
        rows = [Sequence(start) for start in held]
    return Forward(sequences, rows, first, past, real, ids)


def _batch_size(given: dict[str, Any]) -> int:
    for name in ("input_ids", "inputs_embeds", "pixel_values"):
        if isinstance(given.get(name), Tensor):
            return given[name].shape[0]
    return next(value.shape[0] for value in given.values() if isinstance(value, Tensor))


def _check_vocabulary(base: nn.Module, ids: Tensor) -> None:
    embeddings: Any = getattr(base, "get_input_embeddings", lambda: None)
    size = getattr(embeddings(), "num_embeddings", None)
    if size is None or ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise SinkscopeError(
            f"token id {low if low < 0 else high} is outside the vocabulary of {size} tokens; "
            "use the tokenizer that belongs to this model."
        )
