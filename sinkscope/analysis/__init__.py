"""Metrics over records: they read records and never need the model, nor torch."""

from sinkscope.analysis.activations import massive_activations
from sinkscope.analysis.discovery import discover
from sinkscope.analysis.doses import dose_table
from sinkscope.analysis.drain import value_drain
from sinkscope.analysis.forced import amplification, eviction_by_layer
from sinkscope.analysis.importance import importance
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.intervention_table import intervention_table
from sinkscope.analysis.maps import from_maps
from sinkscope.analysis.mass import mass_by_layer, sink_mass
from sinkscope.analysis.null import uniform_importance, uniform_mass
from sinkscope.analysis.perplexities import first_evicted, losses_from, ppl, ppl_table
from sinkscope.analysis.predictability import predictability_bins, predictability_table
from sinkscope.analysis.rate import sink_rate, sink_rate_curve

__all__ = [
    "amplification",
    "discover",
    "dose_table",
    "eviction_by_layer",
    "first_evicted",
    "from_maps",
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
