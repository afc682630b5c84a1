"""Metrics over records: they read records and never need the model, nor torch."""

from .activations import massive_activations
from .discovery import discover
from .drain import value_drain
from .importance import importance
from .intervals import interval
from .maps import from_maps
from .mass import mass_by_layer, sink_mass
from .null import uniform_importance, uniform_mass
from .rate import sink_rate, sink_rate_curve

__all__ = [
    "discover",
    "from_maps",
    "importance",
    "interval",
    "mass_by_layer",
    "massive_activations",
    "sink_mass",
    "sink_rate",
    "sink_rate_curve",
    "uniform_importance",
    "uniform_mass",
    "value_drain",
]
