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
    control               mean loss where another passage stood in the first place, if that was read
    recalled, .._low, .._high  how much less the second reading costs than that: what the first one gave
    context, .._low, .._high   how much less that costs than the first reading: what any context gives

    gain is recalled and context together. Intervals are over passages; those that share tokens count as one, and fewer
    than three have none.

    >>> list(sinkscope.recall_table(record, resamples=50))[:3]
    ['policy', 'distance', 'again']

    Args:
        record: of `sinkscope.recall`.
        resamples, seed: of `interval`.

    Raises:
        SinkscopeError: another record.
    """
    if "first_nll" not in record:
        raise SinkscopeError("this record holds no passages read twice; give one of sinkscope.recall.")
    if record["distance"].dtype.kind not in "iuf":
        raise SinkscopeError("the distances in this record are no numbers of tokens; give one of sinkscope.recall.")
    means = record[[name for name in ("nll", "first_nll", "control_nll") if name in record]].mean("place")
    again, first = means["nll"], means["first_nll"]
    spread = interval(again, "passage", resamples=resamples, seed=seed, at_least=0)
    columns = {"again": spread["mean"], "low": spread["lower"], "high": spread["upper"], "first": first.mean("passage")}
    differences = {"gain": first - again}
    if "control_nll" in means:
        control = means["control_nll"]
        columns["control"] = control.mean("passage")
        differences |= {"recalled": control - again, "context": first - control}
    for name, difference in differences.items():
        paired = interval(difference, "passage", resamples=resamples, seed=seed)
        columns |= {name: paired["mean"], f"{name}_low": paired["lower"], f"{name}_high": paired["upper"]}
    table = xr.Dataset(columns).reset_coords(drop=True).to_dataframe(dim_order=["policy", "distance"]).reset_index()
    table.attrs = {**record.attrs, "bounds": paired.attrs["bounds"]}
    return table
