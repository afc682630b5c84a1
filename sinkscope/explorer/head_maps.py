"""Attention maps of single heads, made when somebody looks at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr

from sinkscope.attention.layer import Layer
from sinkscope.attention.masks import is_hidden
from sinkscope.errors import SinkscopeError


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

    @property
    def cells(self) -> int:
        """Rows and columns: one for each token, unless a saved map was pooled."""
        return len(self.starts)

    @abstractmethod
    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        """Scores [row, column], NaN where a key is not seen."""

    @abstractmethod
    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        """Weights [row, column], NaN where a key is not seen."""


class LiveMaps(HeadMaps):
    """Maps from the queries, keys and log-sum-exp that a forward pass left; nothing of size T x T is kept.

    Args:
        layers: each attention layer, of one sequence.
        numbers: their numbers in the model.
        first: place in the text of the first query.
    """

    def __init__(self, layers: Sequence[Layer], numbers: Sequence[int], first: int = 0) -> None:
        self.layers = layers
        self.units = [Unit(n, head) for n, layer in zip(numbers, layers, strict=True) for head in range(layer.heads)]
        self._places = [(place, head) for place, layer in enumerate(layers) for head in range(layer.heads)]
        self.first, self.length = first, layers[0].length
        self.starts = np.arange(self.length)

    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        return self._values(unit, rows, columns, are_weights=False)

    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        return self._values(unit, rows, columns, are_weights=True)

    @torch.no_grad()
    def _values(self, unit: int, rows: slice, columns: slice, are_weights: bool) -> np.ndarray:
        place, head = self._places[unit]
        whole = self.layers[place]
        layer = whole.one_head(0, head, torch.arange(rows.start, rows.stop))
        layer = replace(layer, start=whole.start + rows.start)  # how far a query is from sinks that move along with it
        everything = slice(0, layer.rows)
        values = layer.logits(everything, columns)
        hidden = is_hidden(values)
        if are_weights:
            values = layer.weights(values, everything, columns)
        return values.masked_fill_(hidden, torch.nan)[0, 0].cpu().numpy()


class SavedMaps(HeadMaps):
    """Maps from a record that holds them (`Maps` probe, `from_maps`), of its first sequence; `stop` is where that ends.

    Raises:
        SinkscopeError: a record without maps.
    """

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
        self._causal = bool(record.attrs.get("causal", 1))
        self.first = int(places[0])
        self.starts = places - self.first
        is_pooled = bool((np.diff(places) > 1).any())
        self.length = self.stop - self.first if is_pooled else len(places)

    def logits(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        raise SinkscopeError("a saved map holds probabilities only; logits need the model.")

    def probabilities(self, unit: int, rows: slice, columns: slice) -> np.ndarray:
        queries, keys = self.starts[rows], self.starts[columns]
        part = self._maps[unit][rows, columns].astype(np.float32)
        return np.where(keys[None] > queries[:, None], np.nan, part) if self._causal else part
