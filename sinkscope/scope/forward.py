"""One forward pass: which tokens of the batch are real, and which texts they continue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.attention.layer import Layer
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import Cache, given_cache, held_layers, held_states, returned_cache
from sinkscope.hf.models import input_embeddings
from sinkscope.scope.collect import Collector, Text
from sinkscope.scope.lazy_mask import LazyMask
from sinkscope.scope.watch import Scores


@dataclass
class Filled:
    """What a cache holds: whose tokens, in how many columns (padding included), and the last key of its first layer."""

    texts: list[Text]
    columns: int
    last_key: Tensor | None


Caches = WeakKeyDictionary[Cache, Filled]


@dataclass
class Forward:
    """A forward pass under way."""

    texts: list[Text]  # in the rows of the batch
    cache: Cache | None  # that it was given
    past: int  # columns that the cache held before, padding included
    real: Tensor | None  # booleans [batch, column] over past and new columns; None when there is no padding
    ids: Tensor | None  # [batch, token] of the new columns; None for embeddings and images
    tokens: int | None  # new columns; None until a layer was seen, where the arguments do not say
    offset: int = 0  # keys before the first new one, as a cache counts that drops some
    crosses: bool = False  # whether the keys are another model's
    real_keys: Tensor | None = None  # booleans [batch, key] over these; None when there is no padding

    @property
    def scores(self) -> Scores:
        """What the scores of its layers look like."""
        return Scores(len(self.texts), self.tokens, None if self.crosses else self.past)

    def check(self, layer: Layer, name: str) -> None:
        """Raise SinkscopeError unless a layer attends from every new token of every text to the tokens."""
        batch, rows = len(layer.lse), layer.rows
        tokens = rows if self.tokens is None else self.tokens
        placed = self.crosses or layer.start in (
            self.past,
            self.offset,
        )  # or of another text
        if (batch, rows) != (len(self.texts), tokens) or not placed:
            keys, after = layer.length - layer.key_start, f" after {self.past} others" if self.past else ""
            raise SinkscopeError(
                f"{name} attends from {batch} x {rows} queries to {keys} keys, while the model reads "
                f"{len(self.texts)} x {tokens} tokens{after}, so which token is which cannot be told (attention in "
                "windows, at another resolution, or to other states); measure its maps elsewhere and use "
                "sinkscope.from_maps."
            )
        self.tokens = tokens

    def batch_first(self, hidden: Tensor, number: int, sure: bool) -> Tensor:
        """The hidden states [batch, token, dim] that layer `number` hands on; some families put the tokens first.

        Args:
            hidden: as the layer gives them.
            number: of the layer.
            sure: whether this family is known to put the batch first.

        Raises:
            SinkscopeError: they are something else, or the batch and the tokens cannot be told apart.
        """
        texts, tokens, shape = len(self.texts), self.tokens, tuple(hidden.shape)
        if shape[:2] == (texts, tokens) and (sure or texts != tokens or tokens == 1):
            return hidden
        if shape[:2] == (tokens, texts) and texts != tokens:
            return hidden.transpose(0, 1)
        raise SinkscopeError(
            f"layer {number} hands on hidden states of shape {shape} for {texts} texts of {tokens} tokens, and which "
            "axis is which cannot be told; give probes that do not look at hidden states, or another number of texts."
        )

    def split(self, layer: Layer) -> Iterator[tuple[list[Text], Layer]]:
        """The layer without padding, with the texts it belongs to: one at a time where there was some."""
        if self.crosses:
            yield from self._split_crossing(replace(layer, start=self.past, key_start=0))
            return
        if self.real is None:
            yield self.texts, layer
            return
        for batch, real in enumerate(self.real.to(layer.lse.device)):
            query_columns = real[layer.start : layer.start + layer.rows].nonzero().flatten()
            key_columns = real[layer.key_start : layer.start + layer.rows].nonzero().flatten()
            if len(query_columns):
                start, key_start = int(real[: layer.start].sum()), int(real[: layer.key_start].sum())
                alone = layer.part(batch, query_columns, key_columns, start=start, key_start=key_start)
                yield [self.texts[batch]], alone

    def _split_crossing(self, layer: Layer) -> Iterator[tuple[list[Text], Layer]]:
        """As `split`, for keys that are no tokens of these texts."""
        if self.real is None and self.real_keys is None:
            for text in self.texts:
                text.keys = layer.reach
            yield self.texts, layer
            return
        for batch, text in enumerate(self.texts):
            keys = torch.arange(layer.reach, device=layer.lse.device)
            if self.real_keys is not None:
                keys = keys[self.real_keys[batch].to(keys.device)]
            text.keys = len(keys)
            queries = torch.arange(layer.rows, device=keys.device)
            if self.real is not None:
                queries = queries[self.real[batch, layer.start : layer.start + layer.rows].to(keys.device)]
            if len(queries):
                start = layer.start if self.real is None else int(self.real[batch, : layer.start].sum())
                yield [text], layer.part(batch, queries, keys, start=start)

    def of_keys(self, make: Callable[[Sequence[int], int], Tensor | None], collector: Collector) -> Tensor | None:
        """What `make` gives for texts of some numbers and tokens [text or 1, token, last], 0 where padding is."""
        numbers, real = collector.numbers(self.texts, self.texts), self.real
        if self.tokens is None or real is None:
            return None if self.tokens is None else make(numbers, self.tokens)
        each = [
            make([number], int(row.sum())) if row.any() else None for number, row in zip(numbers, real, strict=True)
        ]
        known = [own for own in each if own is not None]
        if len(known) < int(real.any(1).sum()) or not known:
            return None
        placed = known[0].new_zeros(*real.shape, known[0].shape[-1])
        placed[real.to(placed.device)] = torch.cat([own[0] for own in known])
        return placed

    def split_hidden(self, hidden: Tensor) -> Iterator[tuple[list[Text], Tensor]]:
        """Hidden states [batch, token, dim] without padding, as `split`."""
        if self.real is None:
            yield self.texts, hidden
            return
        for batch, real in enumerate(self.real.to(hidden.device)):
            new = real[self.past : self.past + hidden.shape[1]]
            if bool(new.any()):
                yield [self.texts[batch]], hidden[batch : batch + 1, new]

    def commit(self, caches: Caches, output: Any) -> Cache | None:
        """Count the tokens of a forward pass that finished, and note what its cache holds now; gives the cache."""
        tokens = self.tokens or 0
        new = slice(self.past, self.past + tokens)
        for batch, text in enumerate(self.texts):
            count = tokens if self.real is None else int(self.real[batch, new].sum())
            ids = torch.full((count,), -1)
            if self.ids is not None:
                ids = self.ids[batch] if self.real is None else self.ids[batch, self.real[batch, new]]
            text.token_ids.append(ids.cpu().numpy().astype(np.int64))
            text.tokens += count
        cache = self.cache if self.cache is not None else returned_cache(output)
        if not isinstance(cache, Cache):
            return None
        caches[cache] = Filled(self.texts, self.past + tokens, _last_key(cache))
        return cache


def read_forward(base: nn.Module, given: dict[str, Any], caches: Caches, crosses: bool = False) -> Forward:
    """Read the arguments of a model's forward, by name.

    Raises:
        SinkscopeError: token ids outside the vocabulary, texts packed into one row, or a cache that was cropped,
            reordered (beam search) or filled with another batch size since it was last seen.
    """
    ids, cache, mask = given.get("input_ids"), given_cache(given), given.get("attention_mask")
    if isinstance(mask, dict):  # one for each kind of layer
        mask = next(iter(mask.values()), None)
    if isinstance(mask, LazyMask):  # made before the forward pass, by `generate` or by a model around this one
        mask = mask.sight.padding
    cache = cache if isinstance(cache, Cache) else None
    past = 0 if cache is None else int(cache.get_seq_length())
    check_vocabulary(base, ids)
    positions = given.get("position_ids")
    if mask is None and isinstance(positions, Tensor) and positions.dim() == 2 and bool((positions.diff() < 0).any()):
        raise SinkscopeError(
            "the positions restart within a row: several texts packed into one cannot be told apart; give each its row."
        )
    real = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all()) else None
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    read = [tensors[name] for name in ("input_ids", "inputs_embeds", "pixel_values", *tensors) if name in tensors]
    if not read:
        raise SinkscopeError("the model was called with nothing to read; give it input_ids.")
    batch = len(read[0])
    if past and cache is not None and cache in caches:
        _check_cache(cache, caches[cache], past, batch)
        texts = caches[cache].texts
    else:
        texts = [Text(start=past if real is None else int(real[row, :past].sum())) for row in range(batch)]
    seen = given.get("encoder_attention_mask") if crosses else None
    real_keys = seen.bool() if isinstance(seen, Tensor) and seen.dim() == 2 else None
    embedded = ids if ids is not None else tensors.get("inputs_embeds")
    offset = past if cache is None else int(getattr(cache, "self_attention_cache", cache).get_query_offset())
    tokens = None if embedded is None else embedded.shape[1]
    return Forward(texts, cache, past, real, ids, tokens, offset, crosses, real_keys)


def check_vocabulary(base: nn.Module, ids: Tensor | None) -> None:
    """Raise SinkscopeError when a token id is none of the model's."""
    if ids is None or not ids.numel() or (size := getattr(input_embeddings(base), "num_embeddings", None)) is None:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise SinkscopeError(
            f"token id {low if low < 0 else high} is outside the vocabulary of {size} tokens; "
            "use the tokenizer that belongs to this model."
        )


def _check_cache(cache: Cache, filled: Filled, past: int, batch: int) -> None:
    if len(filled.texts) != batch:
        raise SinkscopeError(
            f"the batch has {batch} rows, but this cache was filled with {len(filled.texts)}; "
            "leave the scope and attach it again for another batch."
        )
    last_key = _last_key(cache)
    unchanged = last_key is None or filled.last_key is None or torch.equal(last_key, filled.last_key)
    if past != filled.columns or not unchanged:
        raise SinkscopeError(
            "the cache holds other tokens than those that were read in this scope: it was cropped or its rows "
            "reordered (beam search, assisted decoding), or a forward pass into it was interrupted; start again with "
            "an empty cache, and use greedy search or sampling, or beams with use_cache=False.",
            page="Probes on a forward pass of my own",
        )


def _last_key(cache: Cache) -> Tensor | None:
    """The key [batch, dim] that a cache's first layer with keys appended last, a fingerprint of its rows."""
    held = (held_states(cache, place) for place in range(len(held_layers(cache))))
    keys = next((states["keys"] for states in held if "keys" in states), None)
    return None if keys is None or not keys.shape[2] else keys[:, 0, -1].clone()
