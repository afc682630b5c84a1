"""Loss, sink mass and head output against the dose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.perplexities import ppl_table
from sinkscope.errors import SinkscopeError


def dose_table(record: xr.Dataset, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row for each arm and dose.

    arm, dose                           "sinks" or "random" keys; the bias on their logits, -inf evicts
    ppl, low, high                      perplexity and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity at the dose nearest to 0, and its paired interval
    sink_mass, mass_low, mass_high      mean attention on the first keys, and its interval over texts
    output, output_low, output_high     norm of a head's output over that at the dose nearest to 0: mean over layers and
                                        heads of the ratio, and its interval over texts
    Raises SinkscopeError if the record is not one of `dose_response`.
    """
    if not {"arm", "dose"} <= set(record.dims):
        raise SinkscopeError("the record has no arm and dose: make one with sinkscope.dose_response.")
    zero = int(np.abs(record["dose"].values).argmin())
    tables = []
    for arm in record["arm"].values:
        part = record.sel(arm=arm)
        names = [str(dose) for dose in record["dose"].values]
        curve = part[["nll"]].rename(dose="policy").assign_coords(policy=names)
        losses = ppl_table(curve, names[zero], None, resamples, seed)
        kept = losses[["ppl", "low", "high", "ratio", "ratio_low", "ratio_high"]]
        norm = part.output_norm.astype("float64")
        output = norm / norm.isel(dose=zero)
        columns = {"mass": part.sink_mass.astype("float64"), "output": output}
        for name, values in columns.items():
            found = interval(values.mean(["layer", "head"]), resamples=resamples, seed=seed)
            middle = "sink_mass" if name == "mass" else name
            bounds = {middle: found["mean"], f"{name}_low": found["lower"], f"{name}_high": found["upper"]}
            kept = kept.assign(**{column: value.values for column, value in bounds.items()})
        kept.insert(0, "arm", str(arm))
        kept.insert(1, "dose", record["dose"].values)
        tables.append(kept)
    table = pd.concat(tables, ignore_index=True)
    table.attrs = record.attrs | {
        "reference_dose": float(record["dose"].values[zero]),
        "resamples": resamples,
        "seed": seed,
    }
    return table
