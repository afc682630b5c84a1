"""Letting several probes look at one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sinkscope.core.layer import Layer
from sinkscope.core.probes import LayerProbe, Measurements, Probe, TileProbe
from sinkscope.errors import SinkscopeError


def checked_probes(probes: Iterable[Probe], layers: Sequence[int]) -> tuple[Probe, ...]:
    """The probes, all of them probes, none twice, none asking for a layer that is not there."""
    given = tuple(probes) if isinstance(probes, Iterable) else (probes,)
    for probe in given:
        if not isinstance(probe, Probe):
            raise SinkscopeError(f"{probe!r} is not a probe; give instances such as sinkscope.SinkMass(first=4).")
        probe.check(layers)
        if sum(type(other) is type(probe) for other in given) > 1:
            raise SinkscopeError(
                f"{type(probe).__name__} is given twice, and both would write the same variable; give it once."
            )
    return given


def measure_layer(probes: Sequence[Probe], number: int, layer: Layer) -> Measurements:
    """All that the probes measure in one layer; those that read every probability share one pass."""
    measured: Measurements = {}
    wanting = [probe for probe in probes if probe.wants(number)]
    for probe in wanting:
        if isinstance(probe, LayerProbe):
            measured |= probe.observe(layer)
    totals = [(probe, probe.start(layer)) for probe in wanting if isinstance(probe, TileProbe)]
    if totals:
        for tile in layer.tiles():
            for probe, total in totals:
                probe.add(total, layer, tile)
    for probe, total in totals:
        measured |= probe.finish(total, layer)
    return measured
