"""Does a head park more where the next token is predictable? Rank correlations and bins, beside the null."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from sinkscope.analysis.intervals import resampled_means
from sinkscope.analysis.mass import even_share
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import variable, whole
from sinkscope.arguments import MOST_RESAMPLES, whole_number
from sinkscope.errors import SinkscopeError

MEASURES = ("next_loss", "next_entropy")
HEADS_SHOWN = 20
QUARTILES = ("lower_quartile", "median", "upper_quartile")
NAMES = {"next_entropy": "entropy", "next_loss": "loss"}


@reads
def predictability_table(
    record: xr.Dataset, start: int = 64, block: int = 64, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Spearman correlation between sink mass and predictability, one row for each layer, head and measure.

    layer, head, measure    "next_loss" or "next_entropy"
    correlation, low, high  over the queries from `start` on, ranks within each text, mean over texts; 95% percentile
                            interval of a circular block bootstrap over queries, ranks as in the text, blocks of `block`
                            queries, or of a tenth of a text where that is less
    null                    the same for a head that spreads its attention evenly: what the query's place alone explains
    sink_mass               mean over those queries

    A head whose mass does not vary has no correlation (NaN). Raises SinkscopeError if the record is not one of
    `sinkscope.predictability` or no query is left.
    """
    record, start, block = _checked(record), whole_number(start, "start", 1), whole_number(block, "block", 1)
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
        blocks = [max(1, min(block, len(part) // 10)) for part in parts]
        drawn = (resampled_means([part], own, resamples, random) for part, own in zip(parts, blocks, strict=True))
        low, high = np.quantile(_mean([_correlations(each) for each in drawn]), [0.025, 0.975], axis=0)
        columns = {"correlation": found, "low": low, "high": high}
        own = {"layer": layers, "head": heads, "measure": measure} | {name: columns[name][:-1] for name in columns}
        tables.append(pd.DataFrame(own | {"null": found[-1], "sink_mass": late.values}))
    table = pd.concat(tables, ignore_index=True)
    table.attrs = {**record.attrs, "start": start, "block": block, "resamples": resamples, "seed": seed}
    return table


@reads
def predictability_bins(
    record: xr.Dataset, measure: str = "next_entropy", bins: int = 10, start: int = 64
) -> xr.Dataset:
    """Mean sink mass by predictability: queries sorted into bins of equal size, the most predictable first.

    sink_mass [layer, head, bin]; `null` [bin], that of even attention over the same queries; `middle` [bin], the median
    of the measure, nats. Raises SinkscopeError as `predictability_table`, or if a bin is empty.
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
    return whole(record)


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
    block: int = 64,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """The bins of `predictability_bins`, and the mean over layers and heads with a 95% interval.

    Adds `mean`, `lower` and `upper` [bin]: a circular block bootstrap over queries, the same blocks in all bins, whose
    bounds are fixed. NaN where a resample leaves a bin empty. Raises SinkscopeError as `predictability_bins` does.
    """
    found = predictability_bins(record, measure, bins, start)
    record = whole(record)
    mass = _summed(record).mean(["layer", "head"]).values
    bin_of = np.full(mass.size, -1)
    for number, places in enumerate(np.array_split(_places(record, measure, start), bins)):
        bin_of[places] = number
    parts = []
    for own, numbers in zip(mass, bin_of.reshape(mass.shape), strict=True):
        if (known := numbers >= 0).any():
            there = numbers[known][:, None] == np.arange(bins)
            parts.append(np.hstack([np.where(there, own[known][:, None], 0.0), there]))
    resamples, seed = whole_number(resamples, "resamples", 1, MOST_RESAMPLES), whole_number(seed, "seed", 0)
    block = min(whole_number(block, "block", 1), max(map(len, parts)))
    drawn = resampled_means(parts, block, resamples, np.random.default_rng(seed))
    total, count = np.split(drawn, 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lower, upper = np.quantile(total / count, [0.025, 0.975], axis=0)
    found["mean"] = found["sink_mass"].mean(["layer", "head"])
    return found.assign(lower=("bin", lower), upper=("bin", upper)).assign_attrs(block=block, resamples=resamples)


def sides(table: pd.DataFrame) -> pd.Series:
    """Whether the interval of each row lies "below" or "above" both zero and the null, or "neither"; "none" where a
    head has no correlation."""
    low, high = np.minimum(table["null"], 0), np.maximum(table["null"], 0)
    found = np.select(
        [table["correlation"].isna(), table["high"] < low, table["low"] > high], ["none", "below", "above"], "neither"
    )
    return pd.Series(found, index=table.index)


def correlations(record: xr.Dataset) -> pd.DataFrame:
    """Rank correlations of sink mass with entropy and loss, all heads together, beside that of even attention."""
    every = _from_its_start(record)
    rows = []
    for measure, name in NAMES.items():
        table = every[every["measure"] == measure]
        kinds, values = sides(table), table["correlation"].dropna()
        quartiles = dict(zip(QUARTILES, values.quantile([0.25, 0.5, 0.75]), strict=True))
        counts = {kind: int((kinds == kind).sum()) for kind in ("below", "neither", "above")}
        rows.append({"measure": name, "heads": len(values), **quartiles, "null": table["null"].iloc[0], **counts})
    return pd.DataFrame(rows)


def correlated_heads(record: xr.Dataset) -> pd.DataFrame:
    """The heads that give the first keys most, strongest first, and their correlations."""
    every = _from_its_start(record)
    heads = every[every["measure"] == "next_entropy"].set_index(["layer", "head"])[["sink_mass"]]
    for measure, name in NAMES.items():
        part = every[every["measure"] == measure].set_index(["layer", "head"])
        columns = {"correlation": name, "low": f"{name}_low", "high": f"{name}_high"}
        heads = heads.join(part[list(columns)].rename(columns=columns))
    return heads.sort_values("sink_mass", ascending=False, kind="stable").head(HEADS_SHOWN).reset_index()


def _from_its_start(record: xr.Dataset) -> pd.DataFrame:
    return predictability_table(record, start=int(record.attrs.get("start", 64)))
