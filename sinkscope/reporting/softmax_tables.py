"""The tables of the softmax section, from its records alone."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import xarray as xr

from sinkscope.analysis import dose_table, eviction_by_layer, intervention_table, predictability_table
from sinkscope.analysis.collapse import collapse_table
from sinkscope.figures.interventions import sides

Records = Mapping[str, xr.Dataset]
MEASURES = {"next_entropy": "entropy", "next_loss": "loss"}
STRONGEST = 20


def forced(records: Records) -> pd.DataFrame:
    """What evicting the first keys would do in each layer alone."""
    return eviction_by_layer(records["forced"])


def collapse(records: Records) -> pd.DataFrame:
    """Perplexity with what is left of the sinks, and the share of the gap that each part closes."""
    return collapse_table(records["collapse"])


def doses(records: Records) -> pd.DataFrame:
    """Loss, sink mass and head output for each arm and dose."""
    return dose_table(records["dose"])


def interventions(records: Records) -> pd.DataFrame:
    """Interventions, each above its control."""
    return intervention_table(records["interventions"])


def correlations(records: Records) -> pd.DataFrame:
    """Rank correlations of sink mass with entropy and loss of the next token, all heads together: quartiles over heads,
    that of even attention, and how many intervals lie below or above both zero and that.
    """
    every = _correlations(records)
    rows = []
    for measure, name in MEASURES.items():
        table = every[every["measure"] == measure]
        kinds, known = sides(table), table["correlation"].dropna()
        quartiles = dict(
            zip(("lower_quartile", "median", "upper_quartile"), known.quantile([0.25, 0.5, 0.75]), strict=True)
        )
        counts = {kind: int((kinds == kind).sum()) for kind in ("below", "neither", "above")}
        rows.append({"measure": name, "heads": len(known), **quartiles, "null": table["null"].iloc[0], **counts})
    return pd.DataFrame(rows)


def correlated_heads(records: Records) -> pd.DataFrame:
    """The heads that give the first keys most, strongest first, and their correlations."""
    every = _correlations(records)
    heads = every[every["measure"] == "next_entropy"].set_index(["layer", "head"])[["sink_mass"]]
    for measure, name in MEASURES.items():
        part = every[every["measure"] == measure].set_index(["layer", "head"])
        columns = {"correlation": name, "low": f"{name}_low", "high": f"{name}_high"}
        heads = heads.join(part[list(columns)].rename(columns=columns))
    return heads.sort_values("sink_mass", ascending=False, kind="stable").head(STRONGEST).reset_index()


def _correlations(records: Records) -> pd.DataFrame:
    record = records["predictability"]
    return predictability_table(record, start=int(record.attrs.get("start", 64)))
