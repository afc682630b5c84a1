"""Letting several probes look at one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sinkscope.core.layer import Layer
from sinkscope.core.probes import (
    HiddenProbe,
    LayerProbe,
    Measured,
    Measurements,
    Probe,
    TileProbe,
    Variable,
)
from sinkscope.errors import SinkscopeError


class Declared(NamedTuple):
    """What a probe measured in one layer, with the variable that it declared for it."""

    variable: Variable
    values: Tensor
    coords: dict[str, np.ndarray]


def checked_probes(probes: Iterable[Probe], layers: Sequence[int]) -> tuple[Probe, ...]:
    """The probes: all of them of a known kind, none twice, none asking for a layer that is not there."""
    given = tuple(probes) if isinstance(probes, Iterable) else (probes,)
    makers: dict[str, Probe] = {}
    for probe in given:
        if not isinstance(probe, Probe):
            raise SinkscopeError(f"{probe!r} is not a probe; give instances such as sinkscope.SinkMass(first=4).")
        if not isinstance(probe, (LayerProbe, TileProbe, HiddenProbe)):
            raise SinkscopeError(
                f"{type(probe).__name__} is a probe of no kind, so it would look at nothing; derive it from "
                "sinkscope.LayerProbe, TileProbe or HiddenProbe."
            )
        if sum(type(other) is type(probe) for other in given) > 1:
            raise SinkscopeError(
                f"{type(probe).__name__} is given twice, and both would write the same variable; give it once."
            )
        for name, variable in probe.makes.items():
            if not isinstance(variable, Variable) or variable.dims[:1] != ("sequence",):
                raise SinkscopeError(
                    f"{type(probe).__name__} declares `{name}` as {variable!r}; expected a sinkscope.Variable whose "
                    'first dimension is "sequence".'
                )
            other = makers.setdefault(name, probe)
            if other is not probe and other.makes[name] != variable:
                raise SinkscopeError(
                    f"{type(probe).__name__} and {type(other).__name__} both make `{name}`, and declare it otherwise; "
                    "give one of them, or another name."
                )
        probe.check(layers)
    return given


def measure_layer(probes: Sequence[Probe], number: int, layer: Layer) -> dict[str, Declared]:
    """All that the probes measure in one layer; those that read every probability share one pass."""
    measured: dict[str, Declared] = {}
    wanting = [probe for probe in probes if probe.wants(number)]
    for probe in wanting:
        if isinstance(probe, LayerProbe):
            measured |= declared(probe, probe.observe(layer))
    totals = [(probe, probe.start(layer)) for probe in wanting if isinstance(probe, TileProbe)]
    if totals:
        for tile in layer.tiles():
            for probe, total in totals:
                probe.add(total, layer, tile)
    for probe, total in totals:
        measured |= declared(probe, probe.finish(total, layer))
    return measured


def declared(probe: Probe, measured: Measurements) -> dict[str, Declared]:
    """What a probe gave, as what it declared.

    Raises:
        SinkscopeError: a variable that it did not declare, or numbers of other dimensions.
    """
    found = {}
    for name, given in measured.items():
        held = given if isinstance(given, Measured) else Measured(given)
        variable = probe.makes.get(name)
        if variable is None:
            makes = ", ".join(probe.makes) or "nothing"
            raise SinkscopeError(
                f"{type(probe).__name__} gave `{name}`, which it does not declare (its `makes` has {makes}); add "
                f"{name!r}: sinkscope.Variable(dims=...) to it."
            )
        if not isinstance(held.values, Tensor) or held.values.dim() != len(variable.dims):
            shape = tuple(held.values.shape) if isinstance(held.values, Tensor) else type(held.values).__name__
            raise SinkscopeError(
                f"{type(probe).__name__} gave `{name}` as {shape}; it declares a tensor "
                f"[{', '.join(variable.dims)}] for each layer."
            )
        found[name] = Declared(variable, held.values, dict(held.coords))
    return found
