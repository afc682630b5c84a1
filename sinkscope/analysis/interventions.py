"""Interventions beside their controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.perplexity import ppl_table
from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError

BASELINE = "nothing"
RATIO = ("ratio", "ratio_low", "ratio_high")
LOSSES = ("ppl", "low", "high", *RATIO)
OVER_CONTROL = ("over_control", "over_control_low", "over_control_high")
MASS = {"sink_mass": "mean", "mass_low": "lower", "mass_high": "upper"}


def intervene(
    model: Any,
    ids: Any,
    interventions: Any = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
    **options: Any,
) -> pd.DataFrame:
    """Loss and sink mass under interventions and their controls, over the same tokens.

    Args:
        model, ids, interventions: as in `run_interventions`.
        seed: of all that is drawn at random, and of the bootstrap.
        resamples: of the bootstrap.
        options: tokenizer, start, sinks, first, progress, as there, and what to note in attrs.

    Returns:
        As `intervention_table`.

    Raises:
        SinkscopeError: as `run_interventions`.
    """
    from sinkscope.experiments.interventions import run_interventions  # not above: reading a record needs no torch

    resamples = whole_number(resamples, "resamples", 1)
    return intervention_table(run_interventions(model, ids, interventions, seed=seed, **options), resamples, seed)


def intervention_table(record: xr.Dataset, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row for each intervention and, below it, one for its control; the baseline first.

    intervention, role                  its name; "baseline", "effect" or "control"
    ppl, low, high                      perplexity over the tokens scored, and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity with no intervention, and its paired interval
    over_control, .._low, .._high       to the perplexity of its control, and its paired interval; NaN for a control
    sink_mass, mass_low, mass_high      mean attention on the first keys, over layers, heads and queries from the start
                                        on, and its bootstrap interval over texts (NaN with one text)
    tokens                              scored

    Intervals of losses are those of `ppl_table`, the same resamples in all rows. An intervention that puts other tokens
    in the place of those scored has a perplexity, but no ratio (NaN).
    Raises SinkscopeError if the record is not one of interventions.
    """
    if "control" not in record.coords or BASELINE not in record["policy"].values:
        raise SinkscopeError("the record is not one of interventions: make one with sinkscope.run_interventions.")
    names = [str(name) for name in record["policy"].values]
    control_of = dict(zip(names, map(str, record["control"].values), strict=True))
    same = record["same_tokens"].values if "same_tokens" in record.coords else np.ones(len(names))
    comparable = [name for name, each in zip(names, same, strict=True) if each]
    every = ppl_table(record.sel(policy=comparable), BASELINE, None, resamples, seed)
    block, losses = every.attrs["block"], every.set_index("policy")
    if others := [name for name in names if name not in comparable]:
        alone = ppl_table(record.sel(policy=others), None, block, resamples, seed).set_index("policy")
        losses = pd.concat([losses, alone.assign(**dict.fromkeys(RATIO, np.nan))])
    mass = record.sink_mass.astype("float64").mean(["layer", "head"])
    masses: pd.DataFrame = interval(mass, resamples=resamples, seed=seed).to_dataframe()

    def row(name: str, role: str) -> dict[str, object]:
        control, over = control_of[name], [np.nan] * 3
        if role == "effect" and control and {name, control} <= set(comparable):
            pair = ppl_table(record.sel(policy=[name, control]), control, block, resamples, seed)
            over = pair[list(RATIO)].to_numpy(float)[0].tolist()
        return {
            "intervention": name,
            "role": role,
            **{column: losses.at[name, column] for column in LOSSES},
            **dict(zip(OVER_CONTROL, over, strict=True)),
            **{column: masses.at[name, bound] for column, bound in MASS.items()},
            "tokens": losses.at[name, "tokens"],
        }

    rows = [row(BASELINE, "baseline")]
    for name, control in control_of.items():
        if control:
            rows += [row(name, "effect"), row(control, "control")]
    shown = {each["intervention"] for each in rows}
    rows += [row(name, "effect") for name in names if name not in shown]
    table = pd.DataFrame(rows).astype({"tokens": int})
    table.attrs = record.attrs | {
        name: every.attrs[name] for name in ("computed", "baseline", "block", "resamples", "seed", "confidence")
    }
    return table


def dose_table(record: xr.Dataset, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row for each arm and dose.

    arm, dose                           "sinks" or "random" keys; the bias on their logits, -inf evicts
    ppl, low, high                      perplexity and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity at the dose nearest to 0, and its paired interval
    sink_mass, mass_low, mass_high      mean attention on the first keys, and its interval over texts
    output, output_low, output_high     norm of a head's output over that at the dose nearest to 0: mean over layers and
                                        heads of the ratio, and its interval over texts
    Intervals of losses are those of `ppl_table`, the same resamples in all rows.
    Raises SinkscopeError if the record is not one of `dose_response`.
    """
    if not {"arm", "dose"} <= set(record.dims):
        raise SinkscopeError("the record has no arm and dose: make one with sinkscope.dose_response.")
    doses, arms = record["dose"].values, [str(arm) for arm in record["arm"].values]
    zero = int(np.abs(doses).argmin())
    names = [f"{arm} {dose}" for arm in arms for dose in doses]
    every = record.nll.transpose("arm", "dose", ...).stack(policy=("arm", "dose")).drop_vars(["arm", "dose", "policy"])
    curves = every.to_dataset(name="nll").assign_coords(policy=names)
    block = ppl_table(curves, names[zero], None, 1, seed).attrs["block"]
    tables = []
    for number, arm in enumerate(arms):
        part, own = record.sel(arm=arm), names[number * len(doses) : (number + 1) * len(doses)]
        kept = ppl_table(curves.sel(policy=own), own[zero], block, resamples, seed)[list(LOSSES)]
        norm = part.output_norm.astype("float64")
        output = norm / norm.isel(dose=zero)
        columns = {"mass": part.sink_mass.astype("float64"), "output": output}
        for name, values in columns.items():
            found = interval(values.mean(["layer", "head"]), resamples=resamples, seed=seed)
            middle = "sink_mass" if name == "mass" else name
            bounds = {middle: found["mean"], f"{name}_low": found["lower"], f"{name}_high": found["upper"]}
            kept = kept.assign(**{column: value.values for column, value in bounds.items()})
        kept.insert(0, "arm", arm)
        kept.insert(1, "dose", doses)
        tables.append(kept)
    table = pd.concat(tables, ignore_index=True)
    table.attrs = record.attrs | {
        "reference_dose": float(doses[zero]),
        "block": block,
        "resamples": resamples,
        "seed": seed,
    }
    return table
