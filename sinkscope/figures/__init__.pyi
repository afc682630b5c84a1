# Made by `make stub` from __init__.py. Do not edit it.

from sinkscope.figures import marks as marks
from sinkscope.figures.attention import distance_profile as distance_profile
from sinkscope.figures.attention import entropy_by_layer as entropy_by_layer
from sinkscope.figures.attention import mean_maps as mean_maps
from sinkscope.figures.attention import received_by_position as received_by_position
from sinkscope.figures.eviction import collapse as collapse
from sinkscope.figures.eviction import comparison as comparison
from sinkscope.figures.eviction import forced_mass as forced_mass
from sinkscope.figures.heads import depth as depth
from sinkscope.figures.heads import head_split as head_split
from sinkscope.figures.heads import purposes as purposes
from sinkscope.figures.heads import reach as reach
from sinkscope.figures.images import image_grid as image_grid
from sinkscope.figures.interventions import dose_response as dose_response
from sinkscope.figures.interventions import effects as effects
from sinkscope.figures.interventions import predictability as predictability
from sinkscope.figures.matplotlib_renderer import figure as figure
from sinkscope.figures.matplotlib_renderer import matplotlib_figure as matplotlib_figure
from sinkscope.figures.plotly_renderer import plotly_figure as plotly_figure
from sinkscope.figures.secondary import perturbation_spread as perturbation_spread
from sinkscope.figures.secondary import rollout as rollout
from sinkscope.figures.secondary import secondary_sinks as secondary_sinks
from sinkscope.figures.secondary import sink_tags as sink_tags
from sinkscope.figures.sinks import first_cosine as first_cosine
from sinkscope.figures.sinks import mass_by_layer as mass_by_layer
from sinkscope.figures.sinks import mass_by_length as mass_by_length
from sinkscope.figures.sinks import massive_activations as massive_activations
from sinkscope.figures.sinks import norms as norms
from sinkscope.figures.sinks import sink_mass_heatmap as sink_mass_heatmap
from sinkscope.figures.sinks import sink_rate_curve as sink_rate_curve
from sinkscope.figures.spans import span_mass as span_mass
from sinkscope.figures.streaming import ablation as ablation
from sinkscope.figures.streaming import decode_cost as decode_cost
from sinkscope.figures.streaming import explored as explored
from sinkscope.figures.streaming import log_perplexity as log_perplexity
from sinkscope.figures.tasks import accuracy as accuracy
from sinkscope.figures.tasks import recall as recall
from sinkscope.figures.training import emergence as emergence
from sinkscope.figures.training import language_emergence as language_emergence

__all__ = [
    "ablation",
    "accuracy",
    "collapse",
    "comparison",
    "decode_cost",
    "depth",
    "distance_profile",
    "dose_response",
    "effects",
    "emergence",
    "entropy_by_layer",
    "explored",
    "figure",
    "first_cosine",
    "forced_mass",
    "head_split",
    "image_grid",
    "language_emergence",
    "log_perplexity",
    "marks",
    "mass_by_layer",
    "mass_by_length",
    "massive_activations",
    "matplotlib_figure",
    "mean_maps",
    "norms",
    "perturbation_spread",
    "plotly_figure",
    "predictability",
    "purposes",
    "reach",
    "recall",
    "received_by_position",
    "rollout",
    "secondary_sinks",
    "sink_mass_heatmap",
    "sink_rate_curve",
    "sink_tags",
    "span_mass",
]
