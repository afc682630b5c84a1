"""Percentile bootstrap intervals over sequences (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinkscope.arguments import open_unit, whole_number
from sinkscope.errors import SinkscopeError

BATCH_VALUES = 4_000_000
"""Values resampled at once: bounds the memory (32 MB) and not the result."""


def interval(
    values: xr.DataArray,
    dim: str = "sequence",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Mean over `dim` with a percentile bootstrap interval: mean, lower, upper, with the other dimensions of
    `values`.

    Each element is resampled from those of its values that are not NaN: with one there is a mean but no
    interval (NaN bounds), with none all three are NaN. The same seed gives the same bounds, whatever the
    other dimensions are. attrs: confidence, resamples, seed, n (sequences with any value).
    Raises SinkscopeError if `dim` is not in `values`, confidence not in (0, 1), resamples below 1 or seed
    below 0.
    """
    if dim not in values.dims:
        raise SinkscopeError(
            f"dim={dim!r} is not among the dimensions {tuple(map(str, values.dims))} of the values: give one of them."
        )
    confidence = open_unit(confidence, "confidence")
    resamples = whole_number(resamples, "resamples", 1)
    seed = whole_number(seed, "seed", 0)
    rest = [name for name in values.dims if name != dim]
    table = values.transpose(dim, *rest)
    flat = table.values.astype(np.float64).reshape(table.sizes[dim], -1)
    mean, lower, upper = (np.full(flat.shape[1], np.nan) for _ in range(3))
    present = ~np.isnan(flat)
    patterns, pattern_of = np.unique(present, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(pattern_of.ravel() == number)
        if pattern.any():
            sample = flat[np.ix_(pattern, columns)]
            mean[columns] = sample.mean(0)
            if len(sample) > 1:
                lower[columns], upper[columns] = _bounds(sample, confidence, resamples, seed)
    frame = table.drop_vars([name for name, coord in table.coords.items() if dim in coord.dims]).isel({dim: 0})
    result = xr.Dataset(
        {
            name: frame.copy(data=bound.reshape(frame.shape))
            for name, bound in (("mean", mean), ("lower", lower), ("upper", upper))
        }
    )
    for each in result.values():
        each.attrs = {}
    result.attrs = {
        **values.attrs,
        "bounds": f"{confidence:.0%} percentile bootstrap interval over {dim}",
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
        "n": int(present.any(1).sum()),
    }
    return result


def _bounds(sample: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, columns] to lower and upper [columns]."""
    from scipy.stats import bootstrap  # takes a second to import, and most callers never come here

    found = bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // sample.size),
        vectorized=True,
        axis=0,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)
