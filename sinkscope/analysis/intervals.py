"""Bootstrap intervals: over sequences (Efron and Tibshirani 1993, chapter 13), and over blocks of a text.

Neighbours in a text rise and fall together, so resampling them one by one gives intervals that are too narrow. Whole
runs of them are drawn instead (Künsch 1989), from the text closed to a circle, so that every value is drawn equally
often (Politis and Romano 1992).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sinkscope.arguments import MOST_RESAMPLES, checks_types, open_unit, whole_number
from sinkscope.errors import SinkscopeError

BATCH_VALUES = 4_000_000
"""Values resampled, or block sums gathered, at once: bounds the memory (32 MB) and not the result."""

FEWEST_BLOCKS = 20
"""With fewer blocks than this, percentile intervals become noticeably too narrow."""


@checks_types
def interval(
    values: xr.DataArray,
    dim: str = "sequence",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Mean over `dim` with a percentile bootstrap interval: mean, lower, upper, with the other dimensions of `values`.

    Each element is resampled from those of its values that are not NaN: with one there is a mean but no interval (NaN
    bounds), with none all three are NaN. The same seed gives the same bounds, whatever the other dimensions are.
    attrs: confidence, resamples, seed, n (sequences with any value).
    Raises SinkscopeError if `dim` is not in `values`, confidence not in (0, 1), resamples below 1 or seed below 0.
    """
    if dim not in values.dims:
        raise SinkscopeError(
            f"dim={dim!r} is not among the dimensions {tuple(map(str, values.dims))} of the values: give one of them."
        )
    confidence = open_unit(confidence, "confidence")
    resamples, seed = whole_number(resamples, "resamples", 1, MOST_RESAMPLES), whole_number(seed, "seed", 0)
    table = values.transpose(dim, ...)
    flat = table.values.astype(np.float64).reshape(table.sizes[dim], -1)
    found = np.full((3, flat.shape[1]), np.nan)
    present = ~np.isnan(flat)
    patterns, pattern_of = np.unique(present, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(pattern_of.ravel() == number)
        if pattern.any():
            sample = flat[np.ix_(pattern, columns)]
            found[0, columns] = sample.mean(0)
            if len(sample) > 1:
                found[1:, columns] = _bounds(sample, confidence, resamples, seed)
    frame = table.drop_vars([name for name, coord in table.coords.items() if dim in coord.dims]).isel({dim: 0})
    frame.attrs = {}
    named = zip(("mean", "lower", "upper"), found.reshape(3, *frame.shape), strict=True)
    result = xr.Dataset({name: frame.copy(data=each) for name, each in named})
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
    from scipy.stats import bootstrap  # takes a second to import, and most callers never come here

    bounds = []
    columns = max(1, BATCH_VALUES // resamples)  # of which it holds all resamples; each has the same draws
    for first in range(0, sample.shape[1], columns):
        some = sample[:, first : first + columns]
        found = bootstrap(
            (some,),
            np.mean,
            n_resamples=resamples,
            batch=max(1, BATCH_VALUES // some.size),
            vectorized=True,
            axis=0,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        bounds.append((found.low, found.high))
    low, high = map(np.concatenate, zip(*bounds, strict=True))
    return low, high


def resampled_means(parts: Sequence[np.ndarray], block: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Means of `resamples` block bootstrap resamples: [resample, column], in float64.

    parts   one array [value, column] per sequence, in reading order. All columns of a resample take the same blocks,
            so their differences are paired.
    block   values in a block, which stays in its sequence: a shorter sequence is drawn as a whole.

    Costs resamples * values / block, whatever the block holds: its sum is a difference of two cumulative sums.
    """
    lengths = np.array([len(part) for part in parts])
    sizes = np.minimum(block, lengths)
    shares = lengths / sizes
    blocks = max(1, round(shares.sum()))
    sums = np.concatenate([_circular_sums(part, size) for part, size in zip(parts, sizes, strict=True)])
    counts = np.repeat(sizes, lengths)
    chance = np.concatenate([[0.0], np.cumsum(shares)]) / shares.sum()  # the same for every value
    first = np.concatenate([[0], np.cumsum(lengths)])
    means = np.empty((resamples, sums.shape[1]))
    batch = max(1, BATCH_VALUES // (blocks * sums.shape[1]))
    for row in range(0, resamples, batch):
        drawn = random.random((min(batch, resamples - row), blocks))
        starts = np.minimum(np.interp(drawn, chance, first).astype(np.int64), len(sums) - 1)
        total = counts[starts].sum(1) if sizes.min() < sizes.max() else blocks * sizes[0]
        means[row : row + batch] = sums[starts].sum(1) / np.reshape(total, (-1, 1))
    return means


def block_length(parts: Sequence[np.ndarray]) -> int:
    """A block length for `resampled_means` of these values, each array [value, column].

    The longest, over the columns, of the automatic lengths of Politis and White (2004), as corrected by Patton,
    Politis and White (2009), but at least n^(1/3) (the rate of the best length, which still guards against dependence
    too weak to be seen), at most 3 n^(1/2), and short enough for 20 blocks. n: values of all sequences together.
    """
    count = sum(len(part) for part in parts)
    most = max(1, int(min(3 * count**0.5, count / FEWEST_BLOCKS)))
    if most == 1:
        return 1
    found = max(_automatic_length([part[:, column] for part in parts]) for column in range(parts[0].shape[1]))
    return int(np.clip(np.ceil(max(found, count ** (1 / 3))), 1, most))


def _circular_sums(part: np.ndarray, size: int) -> np.ndarray:
    """Sums of the `size` values from each one on, the first following the last: [value, column]."""
    closed = np.concatenate([part, part[: size - 1]]).astype(np.float64)
    cumulative = np.concatenate([np.zeros((1, part.shape[1])), np.cumsum(closed, axis=0)])
    with np.errstate(invalid="ignore"):  # a column with an infinite loss has no interval
        return cumulative[size:] - cumulative[:-size]


def _automatic_length(parts: Sequence[np.ndarray]) -> float:
    """b = (2 G^2 / D)^(1/3) n^(1/3), with G = sum of w_k |k| R(k), D = 4/3 (sum of w_k R(k))^2 over all lags k.

    R: autocovariance, within sequences. w: flat-top weights that reach as far as autocorrelation can be seen.
    """
    count = sum(len(part) for part in parts)
    mean = np.concatenate(parts).mean()
    if not np.isfinite(mean):
        return 1.0
    several = max(5, int(np.ceil(np.log10(count) ** 0.5)))
    longest = min(int(np.ceil(count**0.5)) + several, max(len(part) for part in parts) - 1)
    centred = [np.asarray(part, dtype=np.float64) - mean for part in parts]
    covariance = np.array(
        [sum(part[lag:] @ part[: max(0, len(part) - lag)] for part in centred) for lag in range(longest + 1)]
    )
    if covariance[0] <= 0:
        return 1.0
    small = np.abs(covariance[1:] / covariance[0]) < 2 * (np.log10(count) / count) ** 0.5
    reach = min(2 * max(_last_seen(small, several), 1), longest)
    lag = np.arange(1, reach + 1)
    weighted = np.minimum(1.0, 2 * (1 - lag / max(reach, 1))) * covariance[1 : reach + 1]
    slope, spectrum = 2 * (lag * weighted).sum(), covariance[0] + 2 * weighted.sum()
    return float("inf") if spectrum == 0 else float((1.5 * (slope / spectrum) ** 2 * count) ** (1 / 3))


def _last_seen(small: np.ndarray, several: int) -> int:
    """The lag after which `several` autocorrelations in a row are small; the last that is not, if there is none."""
    lags, seen = range(len(small) - several + 1), np.flatnonzero(~small)
    last = int(seen[-1]) + 1 if len(seen) else 0
    return next((lag for lag in lags if small[lag : lag + several].all()), last)
