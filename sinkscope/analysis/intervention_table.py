"""Interventions beside their controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.perplexities import ppl_table
from sinkscope.errors import SinkscopeError

BASELINE = "nothing"


def intervention_table(record: xr.Dataset, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row for each intervention and, below it, one for its control; the baseline first.

    intervention, role                  its name; "baseline", "effect" or "control"
    ppl, low, high                      perplexity over the tokens scored, and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity with no intervention, and its paired interval
    over_control, .._low, .._high       to the perplexity of its control, and its paired interval; NaN for a control
    sink_mass, mass_low, mass_high      mean attention on the first keys, over layers, heads and queries from the start
                                        on, and its bootstrap interval over texts (NaN with one text)
    tokens                              scored

    Intervals of losses are those of `ppl_table`, the same resamples in all rows.
    Raises SinkscopeError if the record is not one of interventions.
    """
    if "control" not in record.coords or BASELINE not in record["policy"].values:
        raise SinkscopeError("the record is not one of interventions: make one with sinkscope.run_interventions.")
    every = ppl_table(record, BASELINE, None, resamples, seed)
    block, losses = every.attrs["block"], every.set_index("policy")
    masses = interval(record.sink_mass.astype("float64").mean(["layer", "head"]), resamples=resamples, seed=seed)
    control_of = dict(zip(record["policy"].values.tolist(), record["control"].values.tolist(), strict=True))
    rows = [_row(BASELINE, "baseline", losses, masses)]
    for name, control in control_of.items():
        if control:
            pair = ppl_table(record.sel(policy=[name, control]), control, block, resamples, seed)
            rows.append(_row(name, "effect", losses, masses) | _over(pair.iloc[0]))
            rows.append(_row(control, "control", losses, masses) | _over(None))
    shown = {row["intervention"] for row in rows}
    rows += [_row(name, "effect", losses, masses) | _over(None) for name in control_of if name not in shown]
    table = pd.DataFrame(rows).astype({"tokens": int})
    table.attrs = record.attrs | {
        name: every.attrs[name] for name in ("computed", "baseline", "block", "resamples", "seed", "confidence")
    }
    return table


def _row(name: str, role: str, losses: pd.DataFrame, masses: xr.Dataset) -> dict[str, object]:
    found, mass = losses.loc[name], masses.sel(policy=name)
    kept = ("ppl", "low", "high", "ratio", "ratio_low", "ratio_high")
    return {
        "intervention": name,
        "role": role,
        **{column: float(found[column]) for column in kept},
        **_over(None),
        "sink_mass": float(mass["mean"]),
        "mass_low": float(mass["lower"]),
        "mass_high": float(mass["upper"]),
        "tokens": int(found["tokens"]),
    }


def _over(pair: pd.Series | None) -> dict[str, float]:
    """Against the control, or nothing."""
    found = [np.nan] * 3 if pair is None else [float(pair[name]) for name in ("ratio", "ratio_low", "ratio_high")]
    return dict(zip(("over_control", "over_control_low", "over_control_high"), found, strict=True))
