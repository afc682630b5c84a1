"""Probes: what is measured on the way."""

from __future__ import annotations

from sinkscope.probes.base import (
    HiddenProbe,
    LayerProbe,
    Measured,
    Measurements,
    Probe,
    TileProbe,
    Variable,
    probe_classes,
)
from sinkscope.probes.eviction_effect import EvictionEffect
from sinkscope.probes.maps import Maps, MeanLogits
from sinkscope.probes.mass import DistanceProfile, Entropy, LogSumExp, Received, SinkMass
from sinkscope.probes.norms import HiddenExtremes, Norms, OutputNorm

FREE: tuple[Probe, ...] = (SinkMass(), LogSumExp(), MeanLogits(), Norms(), HiddenExtremes())
"""Probes that cost no second pass over the scores; the default of `capture` and `measure`."""

ALL: tuple[Probe, ...] = (*FREE, Received(), Entropy(), DistanceProfile(), Maps())
"""The free probes and those that share one blockwise pass."""

__all__ = [
    "ALL",
    "FREE",
    "DistanceProfile",
    "Entropy",
    "EvictionEffect",
    "HiddenExtremes",
    "HiddenProbe",
    "LayerProbe",
    "LogSumExp",
    "Maps",
    "MeanLogits",
    "Measured",
    "Measurements",
    "Norms",
    "OutputNorm",
    "Probe",
    "Received",
    "SinkMass",
    "TileProbe",
    "Variable",
    "probe_classes",
]
