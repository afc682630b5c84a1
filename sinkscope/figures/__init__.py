"""One function per figure: a record or a table in, a matplotlib Figure out. Needs no model and no torch."""

from __future__ import annotations

from sinkscope.figures.ablation import ablation
from sinkscope.figures.activations import massive_activations
from sinkscope.figures.collapse import collapse
from sinkscope.figures.comparison import comparison
from sinkscope.figures.decode import decode_cost
from sinkscope.figures.dose_response import dose_response
from sinkscope.figures.effects import effects
from sinkscope.figures.emergence import emergence, language_emergence
from sinkscope.figures.explored import explored
from sinkscope.figures.forced_mass import forced_mass
from sinkscope.figures.maps import mean_maps
from sinkscope.figures.mass import mass_by_layer, sink_mass_heatmap
from sinkscope.figures.norms import norms
from sinkscope.figures.perplexity import log_perplexity
from sinkscope.figures.predictability import predictability
from sinkscope.figures.received import received_by_position
from sinkscope.figures.sink_rate import sink_rate_curve
from sinkscope.figures.spread import distance_profile, entropy_by_layer

__all__ = [
    "ablation",
    "collapse",
    "comparison",
    "decode_cost",
    "distance_profile",
    "dose_response",
    "effects",
    "emergence",
    "entropy_by_layer",
    "explored",
    "forced_mass",
    "language_emergence",
    "log_perplexity",
    "mass_by_layer",
    "massive_activations",
    "mean_maps",
    "norms",
    "predictability",
    "received_by_position",
    "sink_mass_heatmap",
    "sink_rate_curve",
]
