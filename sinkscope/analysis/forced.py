"""Forced mass: what sum-to-one would do to the other keys if some were evicted, from one dense pass."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.variables import variable, whole
from sinkscope.errors import SinkscopeError

NORMS = ("output_norm", "change_norm", "lost_denominator", "lost_value")


def amplification(record: xr.Dataset) -> xr.DataArray:
    """What the weights of all other keys are multiplied by when the keys of `EvictionEffect` go: [layer, head].

    The geometric mean of 1 / (1 - m) over queries and sequences, so that its inverse has the same meaning and a few
    queries that see little else do not decide it. Raises SinkscopeError if the record has none.
    """
    logs = variable(whole(record), "log_amplification").astype("float64")
    mean = logs.mean(["sequence", "query"], skipna=True)
    result = mean.copy(data=np.exp(mean.values))
    result.attrs = {**record.attrs, "computed": "exp of the mean of -log(1 - m) over queries and sequences"}
    return result.rename("amplification")


def eviction_by_layer(record: xr.Dataset, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """What evicting the keys of `EvictionEffect` would do in each layer alone.

    layer
    amplification, .._low, .._high   geometric mean over queries and heads
    change, lost_denominator, lost_value (each with _low and _high)
                                     mean norm over the mean norm of the head's output, means over queries and heads
    Intervals are 95% bootstrap intervals over sequences (NaN with one). Raises SinkscopeError if the record has no
    norms.
    """
    record = whole(record)
    logs = variable(record, "log_amplification").astype("float64").mean(["head", "query"], skipna=True)
    if any(name not in record for name in NORMS):
        raise SinkscopeError("the record has no norms: the model does not show what its heads hand on.")
    means = {name: record[name].astype("float64").mean(["head", "query"], skipna=True) for name in NORMS}
    columns = {"amplification": logs} | {
        name.removesuffix("_norm"): means[name] / means["output_norm"] for name in NORMS[1:]
    }
    table = pd.DataFrame({"layer": record["layer"].values})
    for name, values in columns.items():
        found = interval(values, resamples=resamples, seed=seed)
        bounds = [found[bound].values for bound in ("mean", "lower", "upper")]
        bounds = [np.exp(bound) for bound in bounds] if name == "amplification" else bounds
        table = table.assign(**dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True)))
    table.attrs = {**record.attrs, "resamples": resamples, "seed": seed}
    return table
