"""The table of recall by distance."""

from __future__ import annotations

import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.reading import reads
from sinkscope.errors import SinkscopeError


@reads
def recall_table(record: xr.Dataset, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Mean losses of passages read again, one row for each policy and distance.

    again, low, high      mean loss of the second reading in nats, with a 95% t interval over passages
    first                 the same of the first reading
    gain, gain_low, gain_high  how much less the second one costs, paired by passage

    Args:
        record: of `sinkscope.recall`.
        resamples, seed: of `interval`.

    Raises:
        SinkscopeError: another record.
    """
    if "first_nll" not in record:
        raise SinkscopeError("this record holds no passages read twice; give one of sinkscope.recall.")
    means = record[["nll", "first_nll"]].mean("place")
    again = interval(means["nll"], "passage", resamples=resamples, seed=seed, at_least=0)
    gain = interval(means["first_nll"] - means["nll"], "passage", resamples=resamples, seed=seed)
    columns = {
        "again": again["mean"], "low": again["lower"], "high": again["upper"],
        "first": means["first_nll"].mean("passage"),
        "gain": gain["mean"], "gain_low": gain["lower"], "gain_high": gain["upper"],
    }  # fmt: skip
    table = xr.Dataset(columns).reset_coords(drop=True).to_dataframe(dim_order=["policy", "distance"]).reset_index()
    table.attrs = {**record.attrs, "bounds": gain.attrs["bounds"]}
    return table
