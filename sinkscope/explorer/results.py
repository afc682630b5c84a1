"""What a model makes of a text under one configuration, and how two such readings compare.

Attention maps of single heads are made when somebody looks at them; a record may hold them as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import xarray as xr

from sinkscope.analysis.variables import is_causal
from sinkscope.attention.layer import Layer
from sinkscope.attention.masks import is_hidden
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.configuration import Configuration
from sinkscope.probes.base import LayerProbe, Measurements


@dataclass(frozen=True)
class Unit:
    """One head: the number of its layer in the model, and its own."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"layer {self.layer}, head {self.head}"


class HeadMaps(ABC):
    """The maps of one text under one configuration."""

    units: list[Unit]  # all heads, layer by layer
    first: int = 0  # place in the text of the first row and column
    starts: np.ndarray  # [cell] place, counted from `first`, of the first token of each row and column
    length: int  # tokens covered
    has_logits: bool = True
    sums_to_one: bool = True  # whether the weights of a row are shares of one whole
    is_spread: bool = False  # whether cells have several tokens, each of which the numbers of the cell are those of

    @property
    def cells(self) -> int:
        """Rows and columns: one for each token, unless a saved map was pooled."""
        return len(self.starts)

    @property
    def tokens(self) -> range:
        return range(self.first, self.first + self.length)

    def members(self, unit: int) -> list[int]:
        """The heads that the map of one is made of."""
        return [unit]

    def name(self, unit: int) -> str:
        """What a map is of."""
        return str(self.units[unit])

    def said(self, unit: int) -> str:
        """A sentence on how the cells of a map come about; empty for those of one head."""
        return ""

    def texts(self, tokens: list[str]) -> list[str]:
        """The text of each cell, of the texts of all tokens."""
        return [tokens[place] for place in self.first + self.starts]

    def group_size(self, unit: int) -> int | None:
        """How many heads of a layer share keys and values with one, itself among them; None where nobody knows."""
        return None

    @abstractmethod
    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        """Scores [row, column], NaN where a key is not seen."""

    @abstractmethod
    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        """Weights [row, column], NaN where a key is not seen."""


class LiveMaps(HeadMaps):
    """Maps from the queries, keys and log-sum-exp that one sequence left; nothing of size T x T is kept."""

    def __init__(self, layers: Sequence[Layer], numbers: Sequence[int], first: int = 0) -> None:
        self.layers = layers
        self._look_ahead: dict[int, bool] = {}  # by number; of one model some may, and others not
        self.units = [Unit(n, head) for n, layer in zip(numbers, layers, strict=True) for head in range(layer.heads)]
        self._layer_of = [layer for layer in layers for _ in range(layer.heads)]
        self.first, self.length = first, layers[0].length
        self.starts = np.arange(self.length)

    def group_size(self, unit: int) -> int | None:
        layer = self._layer_of[unit]
        return None if layer.key is None else layer.heads // layer.key.shape[1]

    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        return self._values(unit, rows, columns, are_weights=False)

    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        return self._values(unit, rows, columns, are_weights=True)

    @torch.no_grad()
    def _values(self, unit: int, rows: slice, columns: slice, are_weights: bool) -> np.ndarray:
        whole = self._layer_of[unit]
        layer = whole.one_head(0, self.units[unit].head, torch.arange(rows.start, rows.stop))
        layer = replace(layer, start=whole.start + rows.start)  # how far a query is from sinks that move along with it
        everything, stop = slice(0, layer.rows), columns.stop
        number = self.units[unit].layer
        if number not in self._look_ahead:
            self._look_ahead[number] = whole.looks_ahead()
        if not self._look_ahead[number]:  # keys behind the last query are hidden from all
            stop = min(stop, max(rows.stop, columns.start + 1))
        keys = slice(columns.start, stop)
        values = layer.logits(everything, keys)
        hidden = is_hidden(values)
        if are_weights:
            values = layer.weights(values, everything, keys)
        found = values.masked_fill_(hidden, torch.nan)[0, 0].cpu().numpy()
        return np.pad(found, ((0, 0), (0, columns.stop - stop)), constant_values=np.nan)


class LayerRecorder(LayerProbe):
    """Keeps what the maps of any head can be made from; measures nothing.

    `seen` is called with all layers so far, whenever there is another.
    """

    def __init__(self, seen: Callable[[list[Layer]], None] = lambda layers: None) -> None:
        self.layers: list[Layer] = []
        self._seen = seen

    def __repr__(self) -> str:  # records name their probes
        return "LayerRecorder()"

    def observe(self, layer: Layer) -> Measurements:
        self.layers.append(replace(layer, value=None, output=None))
        self._seen(self.layers)
        return {}


class SavedMaps(HeadMaps):
    """Maps from a record that holds them (probe `Maps`, `from_maps`): of its first sequence, which ends at `stop`."""

    has_logits = False

    def __init__(self, record: xr.Dataset) -> None:
        if "attention_map" not in record:
            raise SinkscopeError(
                "this record holds no attention maps; measure with the probe sinkscope.Maps(resolution=None) or use "
                "sinkscope.from_maps."
            )
        maps = record["attention_map"]
        maps = maps.expand_dims([dim for dim in ("sequence", "layer", "head") if dim not in maps.dims])
        maps = maps.isel(sequence=0).transpose("layer", "head", "map_query", "map_key")
        places = np.asarray(maps["map_query"].values, dtype=int)
        self.stop = int(np.ravel(record["length"])[0]) if "length" in record.coords else int(places[-1]) + 1
        places = places[places < self.stop]  # of another sequence, where that one is longer
        every = [Unit(int(layer), int(head)) for layer in maps["layer"].values for head in maps["head"].values]
        values = maps.values.reshape(len(every), *maps.shape[-2:])[:, : len(places), : len(places)]
        measured = np.flatnonzero(np.isfinite(values).any((1, 2)))
        self._maps, self.units = values[measured], [every[place] for place in measured]
        self._causal = is_causal(record)
        self._names = str(maps.attrs.get("map_of", ""))  # of one map over several heads
        self.sums_to_one = not self._names.startswith("maximum")
        self.first = int(places[0])
        self.starts = places - self.first
        is_pooled = bool((np.diff(places) > 1).any())
        self.length = self.stop - self.first if is_pooled else len(places)

    def name(self, unit: int) -> str:
        return self._names or super().name(unit)

    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        raise SinkscopeError("a saved map holds probabilities only; logits need the model.")

    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        queries, keys = self.starts[rows], self.starts[columns]
        part = self._maps[unit][rows, columns].astype(np.float32)
        return np.where(keys[None] > queries[:, None], np.nan, part) if self._causal else part


class Change(StrEnum):
    """What has changed, as a controller tells its listener.

    The first four are also the kinds of results, each named like the attribute of `Results` that holds it.
    """

    READING = "reading"
    OVERVIEW = "overview"
    PRICE = "price"
    CONTINUATION = "continuation"
    AHEAD = "ahead"
    SCORES = "scores"
    CONFIGURATION = "configuration"
    BUSY = "busy"
    PROBLEM = "problem"
    UNIT = "unit"
    QUERY = "query"
    MAP_OPTIONS = "map options"
    PARTNER = "partner"


@dataclass(frozen=True)
class Guesses:
    """The likeliest next tokens [query, rank] at each query, likeliest first."""

    ids: np.ndarray  # -1 where a query was not scored
    probabilities: np.ndarray

    @classmethod
    def unknown(cls, tokens: int, ranks: int) -> Guesses:
        return cls(np.full((tokens, ranks), -1), np.full((tokens, ranks), np.nan, dtype=np.float32))


@dataclass(frozen=True)
class Result:
    """What was found under one configuration."""

    kind: ClassVar[Change]
    configuration: Configuration


@dataclass(frozen=True)
class Reading(Result):
    """A text that was read."""

    kind = Change.READING
    maps: HeadMaps  # under re-computation every query has maps of its own: those of one are here
    losses: np.ndarray  # [token] nats, NaN where a token was not scored
    guesses: Guesses
    record: xr.Dataset  # sink mass and norms, as `sinkscope.measure` gives them
    note: str = ""  # what has to be said about it
    is_scored: bool = True  # whether its losses and guesses are there; the maps come first
    weights: object = ()  # what tells the weights that the model had from others

    @classmethod
    def unscored(
        cls, configuration: Configuration, maps: HeadMaps, record: xr.Dataset, ranks: int, note: str, weights: object
    ) -> Reading:
        """A reading before its losses and guesses are known."""
        tokens = maps.length
        losses, guesses = np.full(tokens, np.nan, dtype=np.float32), Guesses.unknown(tokens, ranks)
        return cls(configuration, maps, losses, guesses, record, note, is_scored=False, weights=weights)


@dataclass(frozen=True)
class Ahead(Result):
    """The maps of one layer of a text that is still being read; they take the place of no `Reading`."""

    kind = Change.AHEAD
    maps: HeadMaps


class Wanted(NamedTuple):
    """The number of a layer whose maps cannot wait for those behind it, and what is called with them."""

    layer: int
    tell: Callable[[Ahead], None]


@dataclass(frozen=True)
class Overview(Result):
    """All heads at once."""

    kind = Change.OVERVIEW
    units: np.ndarray  # [unit, side, side] bytes of the max-pooled log10 probabilities (see `pixels`)
    scores: dict[str, np.ndarray]  # by name, [unit]: what heads can be ranked by


@dataclass(frozen=True)
class Price(Result):
    """What the configuration costs."""

    kind = Change.PRICE
    kv_bytes: int  # of keys and values held behind the text
    flops: int  # operations for its last token
    unknown: str = ""  # why neither can be told; empty where both are


@dataclass(frozen=True)
class Continuation(Result):
    """The greedy continuation of the text."""

    kind = Change.CONTINUATION
    text: str  # so far
    done: bool = False  # whether it is as long as it gets


@dataclass
class Results:
    """All there is of one configuration so far; None for what is not there yet."""

    reading: Reading | None = None
    overview: Overview | None = None
    price: Price | None = None
    continuation: Continuation | None = None

    @property
    def is_whole(self) -> bool:
        return self.reading is not None and self.continuation is not None and self.continuation.done

    def take(self, result: Result) -> None:
        """Keep a result in the place of an earlier one of its kind; with other weights, in the place of all."""
        if isinstance(result, Reading) and self.reading is not None and self.reading.weights != result.weights:
            self.overview = self.price = self.continuation = None
        setattr(self, result.kind.value, result)


@dataclass(frozen=True)
class Loss:
    """The perplexities of two readings over the same tokens."""

    dense: float
    changed: float
    tokens: int  # how many were scored under both
    first: int  # the place of the first of them


def loss_of(dense: Reading, changed: Reading) -> Loss | None:
    """Perplexities over the tokens that are `compared`; None where there are none."""
    tokens = compared(dense, changed)
    if not len(tokens):
        return None
    before, after = (float(np.exp(each.losses[tokens].mean(dtype=np.float64))) for each in (dense, changed))
    return Loss(before, after, len(tokens), int(tokens[0]))


def compared(dense: Reading, changed: Reading) -> np.ndarray:
    """The tokens that one of the configurations acts on and both readings scored: [token], rising."""
    both = np.isfinite(dense.losses) & np.isfinite(changed.losses)
    acting = [each.configuration for each in (dense, changed) if not each.configuration.is_baseline]
    both[: min((each.first_affected(len(both)) for each in acting), default=0) + 1] = False
    return np.flatnonzero(both)


def guesses_at(
    query: int, dense: Reading, changed: Reading, count: int, *more: Reading
) -> list[tuple[int, *tuple[float | None, ...]]]:
    """The `count` likeliest next tokens at a query: id, and probability in the dense and in the changed reading.

    So they are in `more` readings. None stands for a probability below those that were kept. Empty where one of the
    readings has none at this query.
    """
    every = [each.guesses for each in (dense, changed, *more)]
    if any(guesses.ids[query, 0] < 0 for guesses in every):
        return []
    likely = [dict(zip(each.ids[query].tolist(), each.probabilities[query].tolist(), strict=True)) for each in every]
    best = {token for each in likely for token in list(each)[:count]}
    order = sorted(best, key=lambda token: -max(each.get(token, 0.0) for each in likely))
    return [(token, *(each.get(token) for each in likely)) for token in order[:count]]
