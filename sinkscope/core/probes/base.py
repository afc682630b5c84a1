"""What a probe is: something measured on the way, that never touches the attention's output.

There are three kinds, by what they need. A `LayerProbe` reads queries, keys and the log-sum-exp: it is free. A
`TileProbe` reads every probability once, in the one blockwise pass that all of them share. A `HiddenProbe` reads the
hidden states behind each decoder layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sinkscope.core.layer import Layer, Tile


@dataclass(frozen=True)
class Measured:
    """A named array of one layer and one forward pass, on its way to the record.

    Attributes:
        dims: names of the dimensions; the first is always "sequence". "query", "map_query" and "token" run over the
            tokens of this forward pass, and those of a later one follow. Arrays without such a dimension hold sums
            over the queries, and a later forward pass of the same sequences adds to them.
        values: the array.
        coords: coordinates of dimensions that do not simply count from 0.
        averaged: the record keeps the mean over sequences only (NaN entries left out).
    """

    dims: tuple[str, ...]
    values: Tensor
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    averaged: bool = False


Measurements = dict[str, Measured]


class Probe(ABC):  # noqa: B024 - what there is to implement depends on the kind of probe
    """Something measured in each layer."""

    def wants(self, layer: int) -> bool:
        """Whether the probe looks at this layer."""
        return True

    def check(self, layers: Sequence[int]) -> None:  # noqa: B027 - most probes ask for nothing special
        """Raise SinkscopeError when the probe asks for what a model with these attention layers does not have."""


class LayerProbe(Probe):
    @abstractmethod
    def observe(self, layer: Layer) -> Measurements:
        """Measure one layer."""


class TileProbe(Probe):
    @abstractmethod
    def start(self, layer: Layer) -> Tensor:
        """An empty sum for one layer."""

    @abstractmethod
    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        """Add one tile to the sum."""

    @abstractmethod
    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        """The sum as named arrays."""


class HiddenProbe(Probe):
    @abstractmethod
    def observe_hidden(self, hidden: Tensor) -> Measurements:
        """Measure the hidden states [sequence, token, dim] that a decoder layer hands on."""
