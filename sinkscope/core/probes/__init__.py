"""Probes: what is measured on the way."""

from __future__ import annotations

from sinkscope.core.probes.base import (
    HiddenProbe,
    LayerProbe,
    Measured,
    Measurements,
    Probe,
    TileProbe,
    Variable,
    probe_classes,
)
from sinkscope.core.probes.distance import DistanceProfile
from sinkscope.core.probes.entropy import Entropy
from sinkscope.core.probes.eviction_effect import EvictionEffect
from sinkscope.core.probes.hidden import HiddenExtremes
from sinkscope.core.probes.log_sum_exp import LogSumExp
from sinkscope.core.probes.maps import Maps
from sinkscope.core.probes.mean_logits import MeanLogits
from sinkscope.core.probes.norms import Norms
from sinkscope.core.probes.output_norm import OutputNorm
from sinkscope.core.probes.received import Received
from sinkscope.core.probes.sink_mass import SinkMass

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
