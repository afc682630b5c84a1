"""Interventions beside their controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.perplexity import LOSSES, RATIO, ppl_table
from sinkscope.analysis.reading import reads
from sinkscope.arguments import MOST_RESAMPLES, whole_number
from sinkscope.errors import SinkscopeError

BASELINE = "nothing"
OVER_CONTROL = ("over_control", "over_control_low", "over_control_high")
OUTPUT = ("output", "output_low", "output_high")
MASS = ("sink_mass", "mass_low", "mass_high")


def intervene(
    model: Any,
    ids: Any,
    interventions: Any = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
    block: int | str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Loss and sink mass under interventions and their controls, over the same tokens.

    Args:
        model, ids, interventions: as in `run_interventions`.
        seed: of all that is drawn at random.
        resamples, block: as in `intervention_table`.
        options: tokenizer, start, sinks, first, progress, as there, and what to note in attrs.

    Returns what `intervention_table` does, and raises what `run_interventions` does.
    """
    from sinkscope.experiments.interventions import run_interventions  # not above: reading a record needs no torch

    resamples = whole_number(resamples, "resamples", 1, MOST_RESAMPLES)
    record = run_interventions(model, ids, interventions, seed=seed, **options)
    return intervention_table(record, resamples, seed, block)


@reads
def intervention_table(
    record: xr.Dataset, resamples: int = 2000, seed: int = 0, block: int | str | None = None
) -> pd.DataFrame:
    """One row for each intervention and, below it, one for its control; the baseline first.

    intervention, role                  its name; "baseline", "effect" or "control"
    ppl, low, high                      perplexity over the tokens scored, and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity with no intervention, and its paired interval
    over_control, .._low, .._high       to the perplexity of its control, and its paired interval; NaN for a control
    sink_mass, mass_low, mass_high      mean attention on the first keys, over layers, heads and queries from the start
                                        on, and its t interval over texts (NaN with fewer than three)
    tokens                              scored

    Intervals of losses are those of `ppl_table`, over the same texts or batches in all rows; with a `block`, of its
    bootstrap. An intervention that puts other tokens in the place of those scored has a perplexity, but no ratio (NaN).
    Raises SinkscopeError if the record is not one of interventions.
    """
    if "control" not in record.coords or BASELINE not in record["policy"].values:
        raise SinkscopeError("the record is not one of interventions: make one with sinkscope.run_interventions.")
    names = [str(name) for name in record["policy"].values]
    control_of = dict(zip(names, map(str, record["control"].values), strict=True))
    same = record["same_tokens"].values if "same_tokens" in record.coords else np.ones(len(names))
    comparable = [name for name, each in zip(names, same, strict=True) if each]
    every = ppl_table(record.sel(policy=comparable), BASELINE, block, resamples, seed)
    block, losses = every.attrs.get("block"), every.set_index("policy")
    if others := [name for name in names if name not in comparable]:
        alone = ppl_table(record.sel(policy=others), None, block, resamples, seed).set_index("policy")
        losses = pd.concat([losses, alone.assign(**dict.fromkeys(RATIO, np.nan))])
    mass = record.sink_mass.astype("float64").mean(["layer", "head"])
    masses = interval(mass, resamples=resamples, seed=seed, at_least=0, at_most=1).to_dataframe()
    roles = [(BASELINE, "baseline")]
    for name, control in control_of.items():
        if control:
            roles += [(name, "effect"), (control, "control")]
    shown = [name for name, _ in roles]
    roles += [(name, "effect") for name in names if name not in shown]
    rows = []
    for name, role in roles:
        control, over = control_of[name], [np.nan] * 3
        if role == "effect" and control and {name, control} <= set(comparable):
            pair = ppl_table(record.sel(policy=[name, control]), control, block, resamples, seed)
            over = pair[RATIO].to_numpy()[0].tolist()
        own, bounds = losses.loc[name, LOSSES], masses.loc[name, ["mean", "lower", "upper"]]
        rows.append((name, role, *own, *over, *bounds, losses.at[name, "tokens"]))
    table = pd.DataFrame(rows, columns=["intervention", "role", *LOSSES, *OVER_CONTROL, *MASS, "tokens"])
    table.attrs = record.attrs | {
        name: every.attrs[name] for name in ("computed", "baseline", "bounds", "over", "confidence")
    }
    table.attrs |= {"resamples": resamples, "seed": seed}
    return table


@reads
def dose_table(
    record: xr.Dataset, resamples: int = 2000, seed: int = 0, block: int | str | None = None
) -> pd.DataFrame:
    """One row for each arm and dose.

    arm, dose                           "sinks" or "random" keys; the bias on their logits, -inf evicts
    ppl, low, high                      perplexity and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity at the dose nearest to 0, and its paired interval
    sink_mass, mass_low, mass_high      mean attention on the first keys, and its interval over texts
    output, output_low, output_high     norm of a head's output over that at the dose nearest to 0: mean over layers and
                                        heads of the ratio, and its interval over texts
    Intervals of losses are those of `ppl_table`, over the same texts or batches in all rows; with a `block`, of its
    bootstrap.
    Raises SinkscopeError if the record is not one of `dose_response`.
    """
    if not {"arm", "dose"} <= set(record.dims):
        raise SinkscopeError("the record has no arm and dose: make one with sinkscope.dose_response.")
    doses, arms = record["dose"].values, [str(arm) for arm in record["arm"].values]
    zero = int(np.abs(doses).argmin())
    names = [f"{arm} {dose}" for arm in arms for dose in doses]
    every = record.nll.transpose("arm", "dose", ...).stack(policy=("arm", "dose")).drop_vars(["arm", "dose", "policy"])
    curves = every.to_dataset(name="nll").assign_coords(policy=names)
    about = ppl_table(curves, names[zero], block, 1, seed).attrs
    block = about.get("block")
    tables = []
    for number, arm in enumerate(arms):
        part, own = record.sel(arm=arm), names[number * len(doses) : (number + 1) * len(doses)]
        kept = ppl_table(curves.sel(policy=own), own[zero], block, resamples, seed)[LOSSES]
        mass, norm = part.sink_mass.astype("float64"), part.output_norm.astype("float64")
        for columns, values in ((MASS, mass), (OUTPUT, norm / norm.isel(dose=zero))):
            found = interval(values.mean(["layer", "head"]), resamples=resamples, seed=seed, at_least=0)
            kept[list(columns)] = np.stack([found[bound].values for bound in ("mean", "lower", "upper")], axis=-1)
        kept.insert(0, "arm", arm)
        kept.insert(1, "dose", doses)
        tables.append(kept)
    table = pd.concat(tables, ignore_index=True)
    said = {name: about[name] for name in ("bounds", "over", "confidence")} | {"resamples": resamples, "seed": seed}
    table.attrs = record.attrs | {"reference_dose": float(doses[zero])} | said
    return table
