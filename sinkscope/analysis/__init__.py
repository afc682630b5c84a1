"""Metrics over records: they read records and never need the model, nor torch."""

from sinkscope.analysis.discovery import discover, massive_activations
from sinkscope.analysis.images import image_mass
from sinkscope.analysis.importance import importance, sink_rate, sink_rate_curve
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.interventions import dose_table, intervention_table
from sinkscope.analysis.maps import from_maps
from sinkscope.analysis.mass import (
    amplification,
    eviction_by_layer,
    mass_by_layer,
    sink_mass,
    uniform_importance,
    uniform_mass,
    value_drain,
)
from sinkscope.analysis.perplexity import losses_from, ppl, ppl_table
from sinkscope.analysis.predictability import predictability_bins, predictability_table

__all__ = [
    "amplification",
    "discover",
    "dose_table",
    "eviction_by_layer",
    "from_maps",
    "image_mass",
    "importance",
    "interval",
    "intervention_table",
    "losses_from",
    "mass_by_layer",
    "massive_activations",
    "ppl",
    "ppl_table",
    "predictability_bins",
    "predictability_table",
    "sink_mass",
    "sink_rate",
    "sink_rate_curve",
    "uniform_importance",
    "uniform_mass",
    "value_drain",
]
