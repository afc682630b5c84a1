"""The interactive figures as plotly takes them: a dict of data and layout each, nothing drawn yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr

from sinkscope import figures

_NAMES = (
    "sink_mass_heatmap", "mass_by_layer", "sink_rate_curve", "received_by_position", "norms",
    "massive_activations", "entropy_by_layer", "distance_profile", "log_perplexity", "ablation", "decode_cost",
    "forced_mass", "collapse", "dose_response", "effects", "predictability",
)  # fmt: skip


def interactive(name: str) -> Callable[[xr.Dataset], dict[str, Any]]:
    """The figure of this name, from its record to what plotly takes."""
    return lambda record: figures.plotly_figure(getattr(figures, name).describe(record))


INTERACTIVE = {name: interactive(name) for name in _NAMES} | {"sink_rate_published": interactive("sink_rate_curve")}
