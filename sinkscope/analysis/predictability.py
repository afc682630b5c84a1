"""Does a head park more where the next token is predictable? Rank correlations and bins, beside the null."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import stdtr, stdtrit
from scipy.stats import false_discovery_control, rankdata

from sinkscope.analysis.batches import BATCHES
from sinkscope.analysis.intervals import FEWEST, TEXT, resampled_means
from sinkscope.analysis.mass import even_share
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import variable, whole
from sinkscope.arguments import MOST_RESAMPLES, whole_number
from sinkscope.errors import SinkscopeError

MEASURES = ("next_loss", "next_entropy")
HEADS_SHOWN = 20
QUARTILES = ("lower_quartile", "median", "upper_quartile")
SAID = "95% t intervals of a jackknife over batches of these texts, which say nothing of other texts"
DISCOVERIES = 0.05
"""Share of false ones, up to which heads are told among many (Benjamini and Hochberg 1995)."""

NAMES = {"next_entropy": "entropy", "next_loss": "loss"}


@reads
def predictability_table(
    record: xr.Dataset, start: int = 64, block: int | None = None, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Spearman correlation between sink mass and predictability, one row for each layer, head and measure.

    layer, head, measure    "next_loss" or "next_entropy"
    correlation, low, high  over the queries from `start` on, ranks within each text, mean over texts; 95% t interval of
                            a jackknife over batches of queries, ranks as in the text, on the scale of Fisher's z
    null                    the same for a head that spreads its attention evenly: what the query's place alone explains
    sink_mass               mean over those queries
    p, q                    probability of a correlation so far from both zero and the null: the larger of the two, 1
                            between them; and the least share of false discoveries at which the head is one, among
                            all heads of the table (Benjamini and Hochberg 1995). NaN with a `block`

    A text is cut into four batches or more, and eight there are at least; texts that share passages count once. With
    `block`, the intervals are percentiles of a circular block bootstrap instead, of blocks of so many queries, or of a
    tenth of a text where that is less; they are narrower than they should be where queries hang together.
    A head whose mass does not vary has no correlation (NaN). Raises SinkscopeError if the record is not one of
    `sinkscope.predictability` or no query is left.

    >>> list(sinkscope.predictability_table(record, resamples=50))[:4]
    ['layer', 'head', 'measure', 'correlation']
    """
    record, start = _checked(record), whole_number(start, "start", 1)
    block = None if block is None else whole_number(block, "block", 1)
    resamples, seed = whole_number(resamples, "resamples", 1, MOST_RESAMPLES), whole_number(seed, "seed", 0)
    mass, share = _summed(record), even_share(record).transpose("sequence", "query").values
    flat = mass.stack(place=("layer", "head")).transpose("sequence", "query", "place")
    late = mass.where(mass["query"] >= start).mean(["sequence", "query"]).stack(place=("layer", "head"))
    layers, heads = zip(*flat["place"].values, strict=True)
    tables = []
    for measure in MEASURES:
        texts = zip(flat.values, share, record[measure].values, strict=True)
        parts = [part for each in texts if len(part := _moments(*each, start)) > 2]
        if not parts:
            raise SinkscopeError(f"no text has three queries from start={start} on: give longer texts or less.")
        random = np.random.default_rng(seed)
        found = _mean([_correlations(part.mean(0)[None]) for part in parts])[0]
        if block is None:
            low, high, p = _jackknifed(parts, found)
        else:
            p = np.full_like(found, np.nan)
            blocks = [max(1, min(block, len(part) // 10)) for part in parts]
            drawn = (resampled_means([part], own, resamples, random) for part, own in zip(parts, blocks, strict=True))
            low, high = np.quantile(_mean([_correlations(each) for each in drawn]), [0.025, 0.975], axis=0)
        columns = {"correlation": found, "low": low, "high": high}
        own = {"layer": layers, "head": heads, "measure": measure} | {name: columns[name][:-1] for name in columns}
        own |= {"null": found[-1], "sink_mass": late.values, "p": p[:-1], "q": _adjusted(p[:-1])}
        tables.append(pd.DataFrame(own))
    table = pd.concat(tables, ignore_index=True)
    own = {"bounds": SAID} if block is None else {"block": block, "resamples": resamples, "seed": seed}
    table.attrs = {**record.attrs, "start": start, **own}
    return table


@reads
def predictability_bins(
    record: xr.Dataset, measure: str = "next_entropy", bins: int = 10, start: int = 64
) -> xr.Dataset:
    """Mean sink mass by predictability: queries sorted into bins of equal size, the most predictable first.

    sink_mass [layer, head, bin]; `null` [bin], that of even attention over the same queries; `middle` [bin], the median
    of the measure, nats. Raises SinkscopeError as `predictability_table`, or if a bin is empty.

    >>> list(sinkscope.predictability_bins(record, bins=4))
    ['sink_mass', 'null', 'middle']
    """
    record = _checked(record)
    if measure not in MEASURES:
        raise SinkscopeError(f"measure={measure!r} is unknown: give one of {', '.join(MEASURES)}.")
    bins, start = whole_number(bins, "bins", 2), whole_number(start, "start", 1)
    known = _places(record, measure, start)
    if len(known) < bins:
        raise SinkscopeError(f"{len(known)} queries do not fill {bins} bins: give longer texts or fewer bins.")
    stacked = xr.Dataset({"mass": _summed(record), "share": even_share(record), "at": record[measure]})
    stacked = stacked.stack(place=("sequence", "query"))
    pieces = [stacked.isel(place=piece) for piece in np.array_split(known, bins)]
    found = xr.Dataset(
        {
            "sink_mass": xr.concat([piece["mass"].mean("place") for piece in pieces], "bin").transpose(..., "bin"),
            "null": ("bin", [float(piece["share"].mean()) * record.sizes["sink"] for piece in pieces]),
            "middle": ("bin", [float(piece["at"].median()) for piece in pieces]),
        }
    )
    return found.assign_attrs(record.attrs | {"measure": measure, "bins": bins, "start": start})


def _checked(record: xr.Dataset) -> xr.Dataset:
    for name in MEASURES:
        if name not in record:
            raise SinkscopeError(f"the record has no {name}: make one with sinkscope.predictability.")
    variable(record, "sink_mass")
    record = whole(record)
    if TEXT not in record.coords:
        return record
    return record.isel(sequence=np.sort(np.unique(record[TEXT].values, return_index=True)[1]))


def _places(record: xr.Dataset, measure: str, start: int) -> np.ndarray:
    """Where the measure is known from `start` on, lowest first: indices into [sequence x query]."""
    values = record[measure].where(record["query"] >= start).transpose("sequence", "query").values.ravel()
    known = np.flatnonzero(np.isfinite(values))
    return known[np.argsort(values[known], kind="stable")]


def _summed(record: xr.Dataset) -> xr.DataArray:
    """[sequence, layer, head, query] mass on all first keys together."""
    return record.sink_mass.sum("sink", skipna=False).astype("float64").transpose("sequence", "layer", "head", "query")


def _moments(mass: np.ndarray, share: np.ndarray, measure: np.ndarray, start: int) -> np.ndarray:
    """[query, 3 x columns + 2] what correlations are made of: ranks of the masses and of the even share, their squares,
    their products with the ranks of the measure, and those ranks and their squares."""
    known = np.isfinite(measure) & np.isfinite(share) & (np.arange(len(measure)) >= start)
    columns = np.column_stack([mass[known], share[known]])
    if not len(columns):
        return columns
    ranks = rankdata(columns, axis=0) / len(columns) - 0.5
    other = (rankdata(measure[known]) / len(columns) - 0.5)[:, None]
    return np.hstack([ranks, ranks**2, ranks * other, other, other**2])


def _correlations(means: np.ndarray) -> np.ndarray:
    """[resample, columns] correlations from means of moments [resample, 3 x columns + 2]; NaN where nothing varies."""
    rank, square, product = np.split(means[:, :-2], 3, axis=1)
    other, other_square = means[:, -2:-1], means[:, -1:]
    variances = (square - rank**2) * (other_square - other**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (product - rank * other) / np.sqrt(variances)
    return np.where(variances > 1e-15, found, np.nan)


def _jackknifed(parts: list[np.ndarray], found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds of the mean correlation over texts [column], from texts of moments [query, ..] without a batch each, and
    the probability of one so far from zero and the null, which is the last column.

    NaN with fewer than three batches more than texts. Correlations are bounded, and so is the scale of Fisher's z.
    """
    squares, known, freedom = np.zeros_like(found), np.zeros_like(found), 0
    for part in parts:
        into = min(batches_of_a_text(len(parts)), len(part) // 2)
        if into < 2:
            continue
        batches = np.array_split(part, into)
        sums, counts = np.array([each.sum(0) for each in batches]), np.array([len(each) for each in batches])
        without = _correlations((sums.sum(0) - sums) / (len(part) - counts)[:, None])
        square = (into - 1) / into * ((without - without.mean(0)) ** 2).sum(0)
        squares, known = squares + np.nan_to_num(square), known + np.isfinite(square)
        freedom += into - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(squares) / known if freedom >= FEWEST - 1 else np.full_like(found, np.nan)
        apart = error / (1 - found**2)
        half = stdtrit(max(freedom, 1), 0.975) * apart
        middle, perfect = np.arctanh(found), (np.abs(found) > 1 - 1e-12) & np.isfinite(error)
        low, high = np.tanh(middle - half), np.tanh(middle + half)
        ends = [middle / apart, (middle - np.arctanh(found[-1])) / apart]
        nearer = np.where(np.sign(ends[0]) == np.sign(ends[1]), np.minimum(*np.abs(ends)), 0.0 * apart)
        p = np.where(perfect & (found != found[-1]), 0.0, 2 * stdtr(max(freedom, 1), -nearer))
        return np.where(perfect, found, low), np.where(perfect, found, high), p


def _adjusted(p: np.ndarray) -> np.ndarray:
    """The p values of Benjamini and Hochberg, of those that there are."""
    q, known = np.full_like(p, np.nan), np.isfinite(p)
    q[known] = false_discovery_control(p[known])
    return q


def batches_of_a_text(texts: int) -> int:
    """Into how many batches each of so many texts is cut."""
    return max(BATCHES // 2, BATCHES // texts)


def _mean(texts: list[np.ndarray]) -> np.ndarray:
    """Means over texts [resample, columns] of those that have a number."""
    known = np.isfinite(texts)
    with np.errstate(invalid="ignore"):
        return np.where(known, texts, 0.0).sum(0) / known.sum(0)


def mean_mass_by_bin(
    record: xr.Dataset,
    measure: str = "next_entropy",
    bins: int = 10,
    start: int = 64,
    block: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """The bins of `predictability_bins`, and the mean over layers and heads with a 95% interval.

    Adds `mean`, `lower` and `upper` [bin]: Student's t over batches of queries as in `predictability_table`, each with
    as many of a bin as fall into it; the bounds of the bins are fixed. NaN for a bin that lies in fewer than three.
    With `block`, a circular block bootstrap instead, the same blocks in all bins; NaN where one leaves a bin empty.
    Raises SinkscopeError as `predictability_bins` does.
    """
    found = predictability_bins(record, measure, bins, start)
    record = _checked(record)
    mass = _summed(record).mean(["layer", "head"]).values
    bin_of = np.full(mass.size, -1)
    for number, places in enumerate(np.array_split(_places(record, measure, start), bins)):
        bin_of[places] = number
    parts = []
    for own, numbers in zip(mass, bin_of.reshape(mass.shape), strict=True):
        if (known := numbers >= 0).any():
            there = numbers[known][:, None] == np.arange(bins)
            parts.append(np.hstack([np.where(there, own[known][:, None], 0.0), there]))
    random = np.random.default_rng(whole_number(seed, "seed", 0))
    resamples = whole_number(resamples, "resamples", 1, MOST_RESAMPLES)
    found["mean"] = found["sink_mass"].mean(["layer", "head"])
    if block is None:
        lower, upper = _ratio_bounds(parts)
        about: dict[str, str | int] = {"bounds": SAID.replace(" of a jackknife", "")}
    else:
        block = min(whole_number(block, "block", 1), max(map(len, parts)))
        total, count = np.split(resampled_means(parts, block, resamples, random), 2, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            lower, upper = np.quantile(total / count, [0.025, 0.975], axis=0)
        about = {"block": block, "resamples": resamples, "seed": seed}
    return found.assign(lower=("bin", lower), upper=("bin", upper)).assign_attrs(about)


def _ratio_bounds(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the mean mass in each bin, from texts of masses and counts [query, 2 x bin] (the ratio estimator of
    Cochran 1977, chapter 6, over batches)."""
    into = batches_of_a_text(len(parts))
    batches = np.array([batch.sum(0) for part in parts for batch in np.array_split(part, min(into, len(part)))])
    total, count = np.split(batches, 2, axis=1)
    mean = total.sum(0) / count.sum(0)
    several = (count > 0).sum(0) >= FEWEST
    error = np.sqrt(len(batches) / max(len(batches) - 1, 1) * ((total - mean * count) ** 2).sum(0)) / count.sum(0)
    half = stdtrit(max(len(batches) - 1, 1), 0.975) * np.where(several, error, np.nan)
    return mean - half, mean + half


def sides(table: pd.DataFrame) -> pd.Series:
    """Whether the interval of each row lies "below" or "above" both zero and the null, or "neither"; "none" where a
    head has no correlation."""
    low, high = np.minimum(table["null"], 0), np.maximum(table["null"], 0)
    found = np.select(
        [table["correlation"].isna(), table["high"] < low, table["low"] > high], ["none", "below", "above"], "neither"
    )
    return pd.Series(found, index=table.index)


def correlations(record: xr.Dataset) -> pd.DataFrame:
    """Rank correlations of sink mass with entropy and loss, all heads together, beside that of even attention.

    below, neither, above   heads by their intervals (see `sides`)
    median_size             the median of all correlations without the sign; side_size of those below and above
    below_q, above_q, size  those of them with a q of at most 5%, and the median of their correlations without the sign
    """
    every = _from_its_start(record)
    rows = []
    for measure, name in NAMES.items():
        table = every[every["measure"] == measure]
        kinds, values = sides(table), table["correlation"].dropna()
        quartiles = dict(zip(QUARTILES, values.quantile([0.25, 0.5, 0.75]), strict=True))
        counts: dict[str, float] = {kind: int((kinds == kind).sum()) for kind in ("below", "neither", "above")}
        sizes = table["correlation"].abs()
        counts["median_size"] = float(sizes.median())
        counts["side_size"] = float(sizes[kinds.isin(["below", "above"])].median())
        found = (table["q"] <= DISCOVERIES) & kinds.isin(["below", "above"])
        told: dict[str, float] = {f"{kind}_q": int((found & (kinds == kind)).sum()) for kind in ("below", "above")}
        told["size"] = float(table["correlation"][found].abs().median())
        null = table["null"].iloc[0]
        rows.append({"measure": name, "heads": len(values), **quartiles, "null": null, **counts, **told})
    return pd.DataFrame(rows)


def correlated_heads(record: xr.Dataset) -> pd.DataFrame:
    """The heads that give the first keys most, strongest first, and their correlations."""
    every = _from_its_start(record)
    heads = every[every["measure"] == "next_entropy"].set_index(["layer", "head"])[["sink_mass"]]
    for measure, name in NAMES.items():
        part = every[every["measure"] == measure].set_index(["layer", "head"])
        columns = {"correlation": name, "low": f"{name}_low", "high": f"{name}_high", "q": f"{name}_q"}
        heads = heads.join(part[list(columns)].rename(columns=columns))
    return heads.sort_values("sink_mass", ascending=False, kind="stable").head(HEADS_SHOWN).reset_index()


def _from_its_start(record: xr.Dataset) -> pd.DataFrame:
    return predictability_table(record, start=int(record.attrs.get("start", 64)))
