"""The records of the softmax section with known contents, for the tests of the report: no model needed."""

from __future__ import annotations

import xarray as xr

from tests.support import experiments

NAMES = ("forced", "collapse", "dose", "interventions", "predictability")
FIGURES = ("forced_mass", "collapse", "dose_response", "effects", "predictability")
TABLES = (
    "forced_mass", "collapse", "collapse_halves", "dose_response", "interventions", "predictability",
    "predictability_heads",
)  # fmt: skip


def records() -> dict[str, xr.Dataset]:
    return {name: getattr(experiments, name)() for name in NAMES}
