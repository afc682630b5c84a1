"""Sink mass by how predictable the next token is, with intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinkscope.analysis.block_bootstrap import resampled_means
from sinkscope.analysis.predictability import predictability_bins
from sinkscope.analysis.variables import whole
from sinkscope.arguments import whole_number


def mean_mass_by_bin(
    record: xr.Dataset,
    measure: str = "next_entropy",
    bins: int = 10,
    start: int = 64,
    block: int = 64,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """The bins of `predictability_bins`, and the mean over layers and heads with a 95% interval.

    Adds `mean`, `lower` and `upper` [bin]: a circular block bootstrap over queries, the same blocks in all bins, the
    bounds of the bins fixed. NaN bounds where a resample leaves a bin empty. Raises SinkscopeError as
    `predictability_bins` does.
    """
    found = predictability_bins(record, measure, bins, start)
    record = whole(record)
    every = record["sink_mass"].sum("sink", skipna=False).astype("float64").mean(["layer", "head"])
    mass, at = (each.transpose("sequence", "query").values for each in (every, record[measure]))
    known = np.isfinite(at) & (record["query"].values >= start)
    bin_of = np.full(at.shape, -1)
    order = np.argsort(at[known], kind="stable")
    ranked = np.empty(len(order), dtype=int)
    ranked[order] = np.repeat(np.arange(bins), [len(piece) for piece in np.array_split(order, bins)])
    bin_of[known] = ranked
    parts = []
    for row in range(len(at)):
        there = bin_of[row, known[row]][:, None] == np.arange(bins)
        parts.append(np.hstack([np.where(there, mass[row, known[row]][:, None], 0.0), there]))
    parts = [part for part in parts if len(part)]
    random, resamples = np.random.default_rng(whole_number(seed, "seed", 0)), whole_number(resamples, "resamples", 1)
    block = min(whole_number(block, "block", 1), max(map(len, parts)))
    total, count = np.split(resampled_means(parts, block, resamples, random), 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lower, upper = np.quantile(total / count, [0.025, 0.975], axis=0)
    found["mean"] = found["sink_mass"].mean(["layer", "head"])
    return found.assign(lower=("bin", lower), upper=("bin", upper)).assign_attrs(block=block, resamples=resamples)
