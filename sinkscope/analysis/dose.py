"""Loss, sink mass and head output against the dose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.interventions import LOSSES
from sinkscope.analysis.perplexity import ppl_table
from sinkscope.errors import SinkscopeError


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
