"""One function per figure: a record or a table in, a matplotlib Figure out. Needs no model and no torch.

Each also offers `describe`, from the same record to a `marks.Drawing`, which `plotly_figure` makes interactive. With
`figure` and the marks you write your own: see `sinkscope.figures.marks`.

>>> figures.sink_mass_heatmap(record).savefig("heatmap.pdf")
"""

from __future__ import annotations

from sinkscope.figures import fonts as _fonts  # before anything else that imports matplotlib
from sinkscope.figures import marks
from sinkscope.figures.attention import distance_profile, entropy_by_layer, mean_maps, received_by_position
from sinkscope.figures.eviction import collapse, comparison, forced_mass
from sinkscope.figures.images import image_grid
from sinkscope.figures.interventions import dose_response, effects, predictability
from sinkscope.figures.matplotlib_renderer import figure, matplotlib_figure
from sinkscope.figures.plotly_renderer import plotly_figure
from sinkscope.figures.purposes import depth, head_split, purposes, reach
from sinkscope.figures.secondary import perturbation_spread, rollout, secondary_sinks, sink_tags
from sinkscope.figures.sinks import (
    first_cosine,
    mass_by_layer,
    mass_by_length,
    massive_activations,
    norms,
    sink_mass_heatmap,
    sink_rate_curve,
)
from sinkscope.figures.spans import span_mass
from sinkscope.figures.streaming import ablation, decode_cost, explored, log_perplexity
from sinkscope.figures.tasks import accuracy, recall
from sinkscope.figures.training import emergence, language_emergence

del _fonts

__all__ = [
    "ablation", "accuracy", "collapse", "comparison", "decode_cost", "depth", "distance_profile", "dose_response",
    "effects", "emergence", "entropy_by_layer", "explored", "figure", "first_cosine", "forced_mass", "head_split",
    "image_grid", "language_emergence", "log_perplexity", "marks", "mass_by_layer", "mass_by_length",
    "massive_activations", "matplotlib_figure", "mean_maps", "norms", "perturbation_spread", "plotly_figure",
    "predictability", "purposes", "reach", "recall", "received_by_position", "rollout", "secondary_sinks",
    "sink_mass_heatmap", "sink_rate_curve", "sink_tags", "span_mass",
]  # fmt: skip
