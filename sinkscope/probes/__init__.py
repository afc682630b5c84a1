"""Probes: what is measured on the way."""

from sinkscope.probes.base import HiddenProbe, LayerProbe, Measured, Measurements, Probe, TileProbe, Variable
from sinkscope.probes.depth import Compression
from sinkscope.probes.eviction_effect import EvictionEffect
from sinkscope.probes.first_cosine import FirstCosine
from sinkscope.probes.maps import Maps, MeanLogits
from sinkscope.probes.reach import Reach
from sinkscope.probes.seen import Seen, SeenMaps
from sinkscope.probes.sink_dimensions import SinkDimensions
from sinkscope.probes.sink_purpose import Gates, SinkPurpose
from sinkscope.probes.span_mass import SpanMass
from sinkscope.probes.summaries import (
    DistanceProfile,
    Entropy,
    HiddenExtremes,
    LogSumExp,
    Norms,
    OutputNorm,
    Received,
    SinkMass,
    ZeroWeights,
)

FREE: tuple[Probe, ...] = (SinkMass(), LogSumExp(), MeanLogits(), Norms(), HiddenExtremes())
"""Probes that cost no second pass over the scores; the default of `capture` and `measure`.

>>> [type(probe).__name__ for probe in sinkscope.FREE]
['SinkMass', 'LogSumExp', 'MeanLogits', 'Norms', 'HiddenExtremes']
"""

ALL: tuple[Probe, ...] = (*FREE, Received(), Entropy(), DistanceProfile(), Maps())
"""The free probes, and four that share one blockwise pass. Others are named in the call.

>>> [type(probe).__name__ for probe in sinkscope.ALL[len(sinkscope.FREE) :]]
['Received', 'Entropy', 'DistanceProfile', 'Maps']
"""


def probe_classes() -> list[type[Probe]]:
    """All classes of probes that are known now, those of users too."""
    found = Probe.__subclasses__()
    for each in found:  # grows on the way
        found += each.__subclasses__()
    return found


__all__ = [
    "ALL",
    "FREE",
    "Compression",
    "DistanceProfile",
    "Entropy",
    "EvictionEffect",
    "FirstCosine",
    "Gates",
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
    "Reach",
    "Received",
    "Seen",
    "SeenMaps",
    "SinkDimensions",
    "SinkMass",
    "SpanMass",
    "SinkPurpose",
    "TileProbe",
    "Variable",
    "ZeroWeights",
    "probe_classes",
]
