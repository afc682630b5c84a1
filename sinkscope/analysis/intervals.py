"""Intervals of a mean: Student's t over sequences, and a bootstrap over blocks of a text.

Over a few sequences, percentiles of a bootstrap are too narrow: 80% of them hold the mean of four normal values where
95% should. Student's t is exact there. Where values are never negative and spread by much of their mean, the mean lies
on a logarithmic scale, and t is replaced by what it is for lognormal values of that spread: the studentised bootstrap
(Efron and Tibshirani 1993, chapter 12), from a distribution and not from four values. `docs/intervals.md` has what they
cover.

Neighbours in a text rise and fall together, so resampling them one by one gives intervals that are too narrow. Whole
runs of them are drawn instead (Künsch 1989), from the text closed to a circle, so that every value is drawn equally
often (Politis and Romano 1992). Blocks take no notice of what changes from one part of the text to the next; `batches`
has intervals that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from sinkscope.arguments import MOST_RESAMPLES, checks_types, finite_number, open_unit, whole_number
from sinkscope.errors import SinkscopeError

BATCH_VALUES = 4_000_000
"""Values resampled, or block sums gathered, at once: bounds the memory (32 MB) and not the result."""

FEWEST_BLOCKS = 20
"""With fewer blocks than this, percentile intervals become noticeably too narrow."""

FEWEST = 3
"""With fewer values than this there is no interval: that of two is thirteen standard errors wide each way."""

UNEVEN = 2
"""Nor is there one where values of unequal weight count as fewer than this: one of them has most of the mean."""

SKEWED = 0.25
"""Standard deviation over mean from which values that are never negative are taken as skewed."""

SPREADS = np.array([0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1, 1.35, 1.6, 1.9, 2.2])
"""Standard deviations of the logarithm for which the quantiles of lognormal means are drawn."""

ENOUGH = 8
"""Values that are all positive by chance, though their mean is zero, are fewer than this."""

MOST_SKEWED = 256
"""With more values than this, t serves skewed ones too."""

TEXT = "same_text"
"""Coordinate that numbers the texts of sequences, where some of them are of one text (see `variables.whole`)."""


@checks_types
def interval(
    values: xr.DataArray,
    dim: str = "sequence",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    at_least: float | None = None,
    at_most: float | None = None,
) -> xr.Dataset:
    """Mean over `dim` with an interval by Student's t: mean, lower, upper, with the other dimensions of `values`.

    Each element is taken over those of its values that are not NaN. Values of one text are one unit, which weighs in
    the mean as often as it is there: those that the coordinate `same_text` says are, or else rows of two numbers and
    more, not all of them whole, that are identical. An element has no bounds (NaN) with fewer than three texts, or
    where one of them has most of the weight.
    Values that are all the same have bounds of no width, and attrs["note"] says that these mean nothing.

    Values that cannot be negative, with a standard deviation above a quarter of their mean, have an interval on a
    logarithmic scale, with the quantiles of a studentised mean of lognormal values of that spread. That they cannot is
    said by `at_least`; of eight and more that are all above zero it is taken to be so. Where some are zero, as shares
    are, the spread is that of the values and not of their logarithms.

    >>> list(sinkscope.interval(record.sink_mass.mean(["layer", "head", "query", "sink"])))
    ['mean', 'lower', 'upper']

    Args:
        values: numbers, with NaN where there is none.
        dim: what the interval is over.
        confidence: of the interval.
        resamples, seed: lognormal samples that are drawn for skewed values, and their seed.
        at_least: the smallest value possible, 0 for a mass or a share.
        at_most: the largest one, 1 for a share; values whose mean is near it are skewed the other way. No bound is
            beyond these two.

    Returns:
        attrs: bounds (what they are, in words), confidence, resamples, seed, n (texts with any value), and note, where
        an element has a mean and no bounds, or bounds of no width.

    Raises:
        SinkscopeError: `dim` is not in `values`, confidence not in (0, 1), resamples below 1 or seed below 0.
    """
    if dim not in values.dims:
        raise SinkscopeError(
            f"dim={dim!r} is not among the dimensions {tuple(map(str, values.dims))} of the values: give one of them."
        )
    confidence = open_unit(confidence, "confidence")
    resamples, seed = whole_number(resamples, "resamples", 1, MOST_RESAMPLES), whole_number(seed, "seed", 0)
    ends = (at_least, np.inf if at_most is None else finite_number(at_most, "at_most", at_least or 0.0))
    table = values.transpose(dim, ...)
    flat = table.values.astype(np.float64).reshape(table.sizes[dim], -1)
    if TEXT in table.coords and table[TEXT].dims == (dim,):
        text = table[TEXT].values
    elif flat.shape[1] < 2 or (flat == flat[0]).all():  # one number may be the same of two texts
        text = np.arange(len(flat))
    else:
        text = same_rows(flat)
        counts = (flat == np.round(flat)).all(1)  # and so may some whole numbers
        text[counts] = len(flat) + np.flatnonzero(counts)
    found, skewed = np.full((3, flat.shape[1]), np.nan), False
    present = ~np.isnan(flat)
    patterns, pattern_of = np.unique(present, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(pattern_of.ravel() == number)
        if pattern.any():
            means, weights = merged(flat[np.ix_(pattern, columns)], text[pattern])
            found[0, columns] = flat[np.ix_(pattern, columns)].mean(0)
            if len(means) >= FEWEST and effective(weights) >= UNEVEN:
                found[1:, columns], some = _bounds(means, weights, ends, confidence, resamples, seed)
                skewed |= some
    found[1:] = found[1:].clip(-np.inf if at_least is None else at_least, ends[1])
    frame = table.drop_vars([name for name, coord in table.coords.items() if dim in coord.dims]).isel({dim: 0})
    frame.attrs = {}
    named = zip(("mean", "lower", "upper"), found.reshape(3, *frame.shape), strict=True)
    result = xr.Dataset({name: frame.copy(data=each) for name, each in named})
    count = len(np.unique(text[present.any(1)]))
    result.attrs = {
        **values.attrs,
        "bounds": f"{confidence:.0%} t interval over {count} {dim}{'s' * (count != 1)}"
        + ", on a logarithmic scale with lognormal quantiles where values are skewed" * skewed,
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
        "n": count,
    }
    notes = []
    if not count:
        notes.append(f"no {dim} has a value")
    if np.isinf(found[0]).any():
        notes.append("no bounds where a value is infinite")
    if (np.isfinite(found[0]) & np.isnan(found[1])).any():
        most = ", or one that is there many times has most of the weight" * (len(np.unique(text)) < len(text))
        notes.append(f"no bounds where there are fewer than {FEWEST} {dim}s with a value{most}")
    if (found[1] == found[2]).any():
        notes.append(f"bounds of no width, where all {dim}s have the same value, say nothing of others")
    return result.assign_attrs({"note": "; ".join(notes)} if notes else {})


def same_rows(flat: np.ndarray) -> np.ndarray:
    """[row] numbers, the same for rows that are the same, NaN and all."""
    known: dict[bytes, int] = {}
    rows = np.ascontiguousarray(np.where(np.isnan(flat), np.nan, flat) + 0.0)  # one NaN, and one zero
    return np.array([known.setdefault(row.tobytes(), len(known)) for row in rows], dtype=int)


def merged(values: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the rows of each text [text, column], and its share of the rows [text]."""
    numbers, row, counts = np.unique(text, return_inverse=True, return_counts=True)
    means = np.zeros((len(numbers), values.shape[1]))
    np.add.at(means, row.ravel(), values)
    return means / counts[:, None], counts / counts.sum()


def effective(weights: np.ndarray) -> float:
    """As many values of equal weight have a mean as uncertain as values of these weights, which add up to 1 (Kish)."""
    return round(float(1 / (weights**2).sum()), 9)


def weighted(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of the first axis, and its squared standard error: sum of w^2 (x - mean)^2, each by what makes it
    unbiased for values that vary alike, 1 / (1 - 2w + sum of w^2); n / (n - 1) for equal weights."""
    shape = (-1, *([1] * (values.ndim - 1)))
    mean = (weights.reshape(shape) * values).sum(0)
    expected = 1 - 2 * weights + (weights**2).sum()
    factors = weights**2 / np.where(expected > 0, expected, 1.0)
    with np.errstate(invalid="ignore"):
        return mean, (factors.reshape(shape) * (values - mean) ** 2).sum(0)


def _bounds(
    values: np.ndarray,
    weights: np.ndarray,
    ends: tuple[float | None, float],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, bool]:
    """[2, column] bounds of the mean of values [text, column], and whether any column is skewed."""
    count, counts_as = len(values), effective(weights)
    mean, squared = weighted(values, weights)
    error = np.where(np.ptp(values, axis=0) > 0, np.sqrt(squared), 0.0)
    half = stdtrit(counts_as - 1, (1 + confidence) / 2) * error
    bounds = np.stack([mean - half, mean + half])
    least, most = ends
    if count > MOST_SKEWED or (least is None and count < ENOUGH):
        return bounds, False
    stated, least = least is not None, least or 0.0
    place = (mean - least) / (most - least)  # 0 where there is no upper end
    upper = place > 0.75
    turned = np.where(upper, most - values, values - least)
    nearest = turned.min(0)
    never_below = nearest >= 0 if stated else nearest > 0
    centre, away = weights @ turned, (upper | (place < 0.25)) & never_below
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(away, values.std(0, ddof=1) / centre, 0.0)
        skewed = spread > SKEWED
        if not skewed.any():
            return bounds, False
        said = np.sqrt(np.log1p(spread**2))  # by the values themselves, of which some may be zero and have no logarithm
        # the logarithm of a value near zero says little of the mean: no more than half beyond what the values say
        logs = np.where(nearest > 0, np.fmin(np.log(turned).std(0, ddof=1), 1.5 * said), said) * (1 + 2 / count)
    drawn = _lognormal_quantiles(int(counts_as), confidence, resamples, seed)
    low, high = (np.interp(logs, SPREADS, each) for each in drawn)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        own = centre * np.exp(-np.stack([high, low]) * (error / centre))
        own = np.where(upper, most - own[::-1], least + own)
    return np.where(skewed, np.clip(own, least, most), bounds), True


@lru_cache(maxsize=64)
def _lognormal_quantiles(count: int, confidence: float, resamples: int, seed: int) -> np.ndarray:
    """[2, spread] quantiles of (log of the sample mean less that of the true one) over its estimated standard error.

    Those of t for no spread, exactly: what the same draws give of a normal sample is taken off.
    """
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    normal = np.random.default_rng(seed).standard_normal((resamples, count))
    found = []
    for spread in SPREADS:
        sample = np.exp(spread * normal) if spread else normal
        mean, error = sample.mean(1), sample.std(1, ddof=1) / count**0.5
        found.append(np.quantile((np.log(mean) - spread**2 / 2) * mean / error if spread else mean / error, ends))
    return (np.array(found) - found[0] + stdtrit(count - 1, ends)).T


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
