"""Attention between spans of a text: from each part to each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sinkscope.attention.layer import Layer, Tile
from sinkscope.errors import SinkscopeError, shown
from sinkscope.probes.base import PER_HEAD, Measurements, TileProbe, Variable, check_whole
from sinkscope.spans import Spans

MOST = 2048  # spans, whose masses take 16 MB for each head
BESIDE = 64  # spans, up to which they cost less as columns of the values than as sums of probabilities


@dataclass(frozen=True)
class SpanMass(TileProbe):
    """Attention of the queries of one span to the keys of another: the mean over queries of the sum over keys.

    Makes ``span_mass`` [sequence, layer, head, query_span, key_span], in 0..1. Where the spans hold every token of a
    text (`Spans.with_rest`), it sums to 1 over `key_span`, or to less by what a learned sink takes. NaN for spans that
    a text lacks. The record has the name of every token's span as the coordinate `span` [sequence, token], and
    `sinkscope.span_mass(record)` sets the null beside the masses. No T x T tensor is made: up to 64 spans are columns
    beside the values, 1 for the keys inside, which attention itself sums in float32 and wider; for more of them, in
    half precision and outside the attention interface probabilities are read block by block.

    >>> spans = sinkscope.Spans(["question", "answer"], [(0, 12), (12, 40)])
    >>> record = sinkscope.measure(model, ids, [sinkscope.SpanMass(spans)])
    >>> record.span_mass.dims
    ('sequence', 'layer', 'head', 'query_span', 'key_span')

    Args:
        spans: the `Spans` of every text, or one for each text of the record, in its order.

    Raises:
        SinkscopeError: no spans, or more than 2,048 different ones; later, a text that they reach beyond, or one that
            is read in several forward passes.
    """

    spans: Spans | Sequence[Spans]

    makes: ClassVar = {
        "span_mass": Variable(
            (*PER_HEAD, "query_span", "key_span"), "1", "mean attention of the queries of a span to the keys of another"
        )
    }
    one_text: ClassVar = True

    def __post_init__(self) -> None:
        if not isinstance(self.spans, Spans):
            given: Any = self.spans
            listed = () if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence) else tuple(given)
            if not listed or not all(isinstance(each, Spans) for each in listed):
                raise SinkscopeError(
                    f"SpanMass({shown(given)}) has no spans; give sinkscope.Spans, or a list with one for each text."
                )
            object.__setattr__(self, "spans", listed)
        if len(self.names) > MOST:
            raise SinkscopeError(
                f"{len(self.names):,} spans are more than {MOST:,}, and have a mass for every pair in every head; give "
                "fewer, or sum what the probe Received measures with sinkscope.by_span."
            )

    @property
    def by_sequence(self) -> bool:  # type: ignore[override]
        return not isinstance(self.spans, Spans)

    @property
    def _every(self) -> Sequence[Spans]:
        return [self.spans] if isinstance(self.spans, Spans) else self.spans

    @cached_property
    def names(self) -> list[str]:
        """Those of all spans, each once."""
        return list(dict.fromkeys(name for spans in self._every for name in spans.names))

    @cached_property
    def _numbers(self) -> list[np.ndarray]:
        """By text, the place in `names` of the span of each token; behind the last where it is in none."""
        place = {name: number for number, name in enumerate(self.names)}
        return [
            np.array([*(place[name] for name in spans.names), len(place)])[spans.numbers(spans.tokens)]
            for spans in self._every
        ]

    @property
    def coordinates(self) -> Mapping[str, np.ndarray]:
        names = np.array(self.names)
        return {"query_span": names, "key_span": names}

    def token_coordinates(self, lengths: Sequence[int]) -> Mapping[str, np.ndarray]:
        found = np.full((len(lengths), max(lengths)), "", dtype=object)
        for row, length in enumerate(lengths):
            found[row, :length] = self._every[self._place(row)].labels(length) if length else ""
        return {"span": found}

    def check_places(self, tokens: int) -> None:
        for spans in self._every:
            spans.check(tokens)

    def _place(self, sequence: int) -> int:
        """Which of the spans are those of the text of this number."""
        if not self.by_sequence:
            return 0
        if sequence >= len(self.spans):
            raise SinkscopeError(
                f"SpanMass has the spans of {len(self.spans)} texts, and there are more; give one Spans for each text."
            )
        return sequence

    def _places(self, layer: Layer) -> list[int]:
        """Which spans are those of the sequences of a layer."""
        return [self._place(number) for number in layer.sequences or range(len(layer.lse))]

    def _of_tokens(self, place: int, tokens: int) -> np.ndarray:
        """[token] the place in `names` of the span of each token."""
        known = self._numbers[place]
        return np.pad(known, (0, tokens - len(known)), constant_values=len(self.names))

    def columns(self, sequences: Sequence[int], tokens: int) -> Tensor | None:
        """For texts of these numbers [text or 1, key, span], 1 where a key is in a span; None for too many spans."""
        if len(self.names) > BESIDE or type(self) is not SpanMass:  # what is derived may count otherwise
            return None
        places = list(map(self._place, sequences if self.by_sequence else sequences[:1]))
        for place in places:
            self._every[place].check(tokens)
        return torch.stack([self._inside(place, tokens) for place in places])

    def _inside(self, place: int, tokens: int) -> Tensor:
        numbers = torch.from_numpy(self._of_tokens(place, tokens))
        return (numbers[:, None] == torch.arange(len(self.names))).float()

    def _check(self, layer: Layer) -> None:
        check_whole(self, layer)
        for place in self._places(layer):
            self._every[place].check(layer.length)

    def at_once(self, layer: Layer) -> Measurements | None:
        if layer.spans is None or type(self) is not SpanMass:
            return None
        self._check(layer)
        asking = [self._inside(place, layer.rows).to(layer.spans.device).double() for place in self._places(layer)]
        total = torch.stack(asking).mT[:, None] @ layer.spans.double()
        return self._means(total.to(layer.lse.dtype), layer)

    def start(self, layer: Layer) -> Tensor:
        self._check(layer)
        size = len(self.names) + 1  # the last holds what is in no span
        return layer.lse.new_zeros(*layer.lse.shape[:2], size, size)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        first, last = tile.columns.start + layer.key_start, tile.columns.stop + layer.key_start
        for row, place in enumerate(self._places(layer)):
            numbers = self._of_tokens(place, layer.reach)
            queries, keys = numbers[tile.rows], torch.from_numpy(numbers[first:last]).to(total.device)
            edges = [0, *(np.flatnonzero(np.diff(queries)) + 1).tolist(), len(queries)]
            for begin, end in pairwise(edges):
                received = tile.probabilities[row, :, begin:end].sum(-2)
                total[row, tile.heads, queries[begin]].index_add_(-1, keys, received)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        size = len(self.names)
        return self._means(total[..., :size, :size], layer)

    def _means(self, mean: Tensor, layer: Layer) -> Measurements:
        """From the sums over the queries of each span."""
        size = len(self.names)
        for row, place in enumerate(self._places(layer)):
            counts = torch.from_numpy(np.bincount(self._numbers[place], minlength=size + 1)[:size]).to(mean)
            mean[row] /= counts[:, None]  # NaN where the text has no such span
            mean[row, :, :, counts == 0] = torch.nan
        return {"span_mass": mean}
