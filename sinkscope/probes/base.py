"""What a probe is: something measured on the way, that never touches the attention's output.

There are three kinds, by what they need. A `LayerProbe` reads queries, keys and the log-sum-exp: it is free. A
`TileProbe` reads every probability once, in the one blockwise pass that all of them share. A `HiddenProbe` reads the
hidden states behind each decoder layer. A probe declares the variables that it makes:

    class Kurtosis(sinkscope.HiddenProbe):
        makes = {"kurtosis": sinkscope.Variable(dims=("sequence", "token"), units="1")}

        def observe_hidden(self, hidden):
            centred = hidden.float() - hidden.float().mean(-1, keepdim=True)
            return {"kurtosis": (centred**4).mean(-1) / (centred**2).mean(-1) ** 2}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from sinkscope.attention.layer import Layer, Tile
from sinkscope.attention.placement import is_same
from sinkscope.errors import SinkscopeError, safe_repr


@dataclass(frozen=True)
class Variable:
    """A variable of the record that a probe makes.

    >>> sinkscope.Variable(("sequence", "head", "query"), "nats", "entropy of each row").units
    'nats'

    Attributes:
        dims: of what the probe gives for one layer; the first is always "sequence", and the record adds "layer" behind
            it. "query", "map_query" and "token" run over the tokens of a forward pass, and those of a later one follow.
            Arrays without such a dimension are of one forward pass over each sequence, unless they are `summed`.
        units: of the numbers, "1" for those without.
        description: what it is, in a few words.
        averaged: the record keeps the mean over sequences only (NaN entries left out).
        summed: whether the numbers are sums over the queries, so that those of a later forward pass over the same
            sequence are added.
    """

    dims: tuple[str, ...]
    units: str = "1"
    description: str = ""
    averaged: bool = False
    summed: bool = False


@dataclass(frozen=True)
class Measured:
    """Numbers with coordinates, by name of the dimension, where that does not simply count from 0.

    >>> sinkscope.Measured(torch.zeros(2, 4)).values.shape
    torch.Size([2, 4])
    """

    values: Tensor
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)


Measurements = Mapping[str, "Tensor | Measured"]

PER_HEAD = ("sequence", "head")
PER_QUERY = (*PER_HEAD, "query")


class Probe(ABC):  # noqa: B024 - what there is to implement depends on the kind of probe
    """Something measured in each layer; derive from `LayerProbe`, `TileProbe` or `HiddenProbe`."""

    makes: ClassVar[Mapping[str, Variable]] = {}
    """By name, the variables that it makes."""

    one_text: ClassVar[bool] = False
    """Whether it reads queries and keys as tokens of one text; left out of cross-attention, where they are of two."""

    one_pass: ClassVar[bool] = False
    """Whether it sets tokens beside the first of their text, which a forward pass that goes on with one has not."""

    by_sequence: bool = False
    """Whether what it measures of a text depends on the place of that in the record."""

    needs: ClassVar[Literal["", "projection", "gate"]] = ""
    """What it asks of a layer beside its attention: W_O, or the gate before it. Either is found by trial."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={safe_repr(value)}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        """Probes of one class with the same attributes measure the same."""
        mine, others = vars(self), vars(other) if type(other) is type(self) else {}
        alike = type(other) is type(self) and mine.keys() == others.keys()
        return alike and all(is_same(value, others[name]) for name, value in mine.items())

    def __hash__(self) -> int:
        return hash(type(self))

    def wants(self, layer: int) -> bool:
        """Whether the probe looks at this layer."""
        return True

    @property
    def coordinates(self) -> Mapping[str, np.ndarray]:
        """Numbers of the probe's own that readers of the record need: coordinates with a dimension of their name."""
        return {}

    def token_coordinates(self, lengths: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Coordinates [sequence, token] of the probe's own, for texts of these lengths; past their end anything."""
        return {}

    def check(self, layers: Sequence[int]) -> None:  # noqa: B027 - most probes ask for nothing special
        """Raise SinkscopeError when the probe asks for what a model with these attention layers does not have."""

    def check_places(self, tokens: int) -> None:  # noqa: B027
        """Raise SinkscopeError where it names places that leave nothing to measure in a text of so many tokens."""


def check_whole(probe: Probe, layer: Layer) -> None:
    """Raise SinkscopeError in a forward pass that goes on with a text, for a probe of whole texts."""
    if layer.start:
        raise SinkscopeError(
            f"{type(probe).__name__} needs a whole text, and this forward pass goes on with one; read it in one "
            "forward pass, as in model(ids)."
        )


class LayerProbe(Probe):
    """Looks at each layer's queries, keys, values and log-sum-exps.

    >>> class Spread(sinkscope.LayerProbe):
    ...     makes = {"spread": sinkscope.Variable(("sequence", "head"))}
    ...     def observe(self, layer):
    ...         return {"spread": layer.lse.std(-1)}
    >>> sinkscope.measure(model, ids, [Spread()]).spread.dims
    ('sequence', 'layer', 'head')
    """

    @abstractmethod
    def observe(self, layer: Layer) -> Measurements:
        """Measure one layer."""


class TileProbe(Probe):
    """Reads every probability of each layer once, block by block.

    >>> class Largest(sinkscope.TileProbe):
    ...     makes = {"largest": sinkscope.Variable(("sequence", "head"))}
    ...     def start(self, layer):
    ...         return torch.zeros(layer.lse.shape[:2])
    ...     def add(self, total, layer, tile):
    ...         most = tile.probabilities.amax((-2, -1))
    ...         total[:, tile.heads] = torch.maximum(total[:, tile.heads], most)
    ...     def finish(self, total, layer):
    ...         return {"largest": total}
    >>> sinkscope.measure(model, ids, [Largest()]).largest.dims
    ('sequence', 'layer', 'head')
    """

    def at_once(self, layer: Layer) -> Measurements | None:
        """What the probe makes of a layer without its probabilities, None where it has to read them."""
        return None

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
    """Reads the hidden states that each decoder layer hands on, in a hybrid model also those without attention.

    >>> class Width(sinkscope.HiddenProbe):
    ...     makes = {"width": sinkscope.Variable(("sequence", "token"))}
    ...     def observe_hidden(self, hidden):
    ...         return {"width": hidden.std(-1)}
    >>> sinkscope.measure(model, ids, [Width()]).width.dims
    ('sequence', 'layer', 'token')
    """

    @abstractmethod
    def observe_hidden(self, hidden: Tensor) -> Measurements:
        """Measure the hidden states [sequence, token, dim] that a decoder layer hands on."""

    def observe_layer(self, before: Tensor | None, hidden: Tensor) -> Measurements:
        """Measure them beside those that the layer read, which are None where it writes into them or takes others."""
        return self.observe_hidden(hidden)
