"""One function per figure: a record or a table in, a matplotlib Figure out. Needs no model and no torch.

Each also offers `describe`, from the same record to a `marks.Drawing`, which `plotly_figure` makes interactive. With
`figure` and the marks you write your own: see `sinkscope.figures.marks`.

>>> figures.sink_mass_heatmap(record).savefig("heatmap.pdf")

The figures are imported when first used, so that who needs none does not wait for SciPy and for what draws.
"""

from __future__ import annotations

from sinkscope.figures import fonts as _fonts  # before anything else that imports matplotlib
from sinkscope.lazy import lazily

_PACKAGES = ("marks",)
_HOMES = {
    "attention": "distance_profile entropy_by_layer mean_maps received_by_position",
    "eviction": "collapse comparison forced_mass",
    "heads": "depth head_split purposes reach",
    "images": "image_grid",
    "interventions": "dose_response effects predictability",
    "matplotlib_renderer": "figure matplotlib_figure",
    "plotly_renderer": "plotly_figure",
    "secondary": "perturbation_spread rollout secondary_sinks sink_tags",
    "sinks": "first_cosine mass_by_layer mass_by_length massive_activations norms sink_mass_heatmap sink_rate_curve",
    "spans": "span_mass",
    "streaming": "ablation decode_cost explored log_perplexity",
    "tasks": "accuracy recall",
    "training": "emergence language_emergence",
}
_HOME_OF = {name: f"sinkscope.figures.{home}" for home, names in _HOMES.items() for name in names.split()}

del _fonts

__all__ = sorted([*_PACKAGES, *_HOME_OF])

__getattr__, __dir__ = lazily("sinkscope.figures", _HOME_OF, _PACKAGES)
