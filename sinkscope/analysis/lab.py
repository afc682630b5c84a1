"""What the records of the laboratory say: in tables, with intervals over seeds, and in words that go no further."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import stdtrit
from scipy.stats import ttest_1samp

from sinkscope.analysis.importance import EPSILON
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.perplexity import CONFIDENCE, RATIO, check_coordinates, losses_from, ppl_table
from sinkscope.analysis.reading import reads
from sinkscope.errors import SinkscopeError
from sinkscope.record import first_evicted

FEWEST_SEEDS = 3
RESAMPLES = 40_000  # an interval of one head in many takes quantiles far out
COLLAPSE = 1.5  # times the perplexity with sinks; 1.54 in the vanilla model of Xiao et al. 2023, Table 3
ARMS = ("normaliser_kind", "has_sink_logit", "has_sink_token")
"""Coordinates that say what each arm is."""


@reads
def emergence_quantities(record: xr.Dataset) -> dict[str, xr.DataArray]:
    """What is told of a record, by name: each [arm, seed, step], those of a layer [.., layer]; means over heads."""
    _check(record, "emergence", "of emergence", "bigram_backcopy")
    heads = record.mean("head", keep_attrs=True)
    trigger, other = heads.sel(tokens="trigger", drop=True), heads.sel(tokens="non-trigger", drop=True)
    # a mean of norms over heads would let the largest head speak for all: ratios first
    ratio = (record["bos_value_norm"] / record["value_norm"]).mean("head")
    gates = {f"gate of {name}s": kind["gate"] for name, kind in (("non-trigger", other), ("trigger", trigger))
             if "gate" in record}  # fmt: skip
    return {
        "loss": record["loss"].sel(tokens="all", drop=True),
        "loss after triggers": trigger["loss"],
        "loss after non-triggers": other["loss"],
        "BOS mass of non-triggers": other["bos_mass"],
        "BOS mass of triggers": trigger["bos_mass"],
        "previous-token mass of triggers": trigger["previous_mass"],
        "row sum of non-triggers": other["row_sum"],
        "row sum of triggers": trigger["row_sum"],
        "value norm of BOS / of others": ratio,
        "hidden norm of BOS / of others": record["bos_hidden_norm"] / record["hidden_norm"],
        **gates,
    }


@reads
def emergence_table(record: xr.Dataset, step: int | None = None) -> pd.DataFrame:
    """Where each arm of `bigram_backcopy` stands after a step (the last when None): means over seeds, with intervals.

    One row for each arm, quantity and layer (no layer for losses):

    arm, quantity, layer, seeds     seeds: how many
    mean, low, high                 over seeds, with its 95% t interval
    difference, .._low, .._high     to softmax, or else the first arm, seed by seed: runs of one seed share their first
                                    weights and sequences
    p, p_holm                       of a paired t test of that difference, two-sided; and corrected for all arms that
                                    are compared in this quantity and layer (Holm 1979)

    Fewer than three seeds give no intervals and no p (NaN), which attrs["intervals"] says. Raises SinkscopeError for a
    record of something else, or a step that was not measured.

    >>> list(lab.emergence_table(record))[:3]
    ['arm', 'quantity', 'layer']
    """
    quantities = emergence_quantities(record)
    measured = record["step"].values.tolist()
    step = measured[-1] if step is None else step
    if step not in measured:
        raise SinkscopeError(f"step={step!r} was not measured: give one of {', '.join(map(str, measured))}.")
    arms, baseline = [str(arm) for arm in record["arm"].values], plain_arm(record)
    rows = []
    for name, quantity in quantities.items():
        for layer in quantity["layer"].values if "layer" in quantity.dims else [None]:
            values = quantity.sel(step=step) if layer is None else quantity.sel(step=step, layer=layer)
            for arm in arms:
                own = values.sel(arm=arm).values
                difference = own - values.sel(arm=baseline).values
                rows.append((arm, name, layer, len(own), *t_interval(own), *t_interval(difference), _p(difference)))
    differences = ["difference", "difference_low", "difference_high", "p"]
    columns = ["arm", "quantity", "layer", "seeds", "mean", "low", "high", *differences]
    table = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})
    table.loc[table["arm"] == baseline, differences] = np.nan
    table["p_holm"] = table.groupby(["quantity", "layer"], dropna=False)["p"].transform(holm)
    table.attrs = record.attrs | {
        "step": step,
        "baseline": baseline,
        "confidence": CONFIDENCE,
        "best_loss": float(record["best_loss"].sel(tokens="all")),
        "best_loss_after_non_triggers": float(record["best_loss"].sel(tokens="non-trigger")),
        "bos_null": float(record["bos_null"].sel(tokens="non-trigger").isel(arm=0)),
        "intervals": intervals_said(record.sizes["seed"]),
    }
    return table


def plain_arm(record: xr.Dataset) -> str:
    """The arm of softmax with nothing beside it, or else the first: what others are compared with."""
    more = sum(record[name] for name in ("has_sink_logit", "has_sink_token", "has_gate") if name in record.coords)
    plain = (record["normaliser_kind"] == "Softmax") & (more == 0)
    return str(record["arm"].values[int(plain.values.argmax())])


@reads
def emergence_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The table for a page: one row for each arm and layer, one column for each quantity, "mean (low to high)".

    >>> list(lab.emergence_summary(table))[:2]
    ['arm', 'loss']
    """
    cells = [
        f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} ({low:.3f} to {high:.3f})"
        for mean, low, high in table[["mean", "low", "high"]].itertuples(index=False)
    ]
    shown, layers = table.assign(cell=cells), sorted(table["layer"].dropna().unique())
    pieces = []
    for layer in layers:
        own = shown[shown["layer"].isna() | (shown["layer"] == layer)]
        wide = own.pivot(index="arm", columns="quantity", values="cell")
        wide = wide.reindex(index=table["arm"].unique(), columns=table["quantity"].unique())
        pieces.append(wide.assign(layer=layer))
    whole = pd.concat(pieces).reset_index().rename_axis(columns=None)
    if len(layers) == 1:
        return whole.drop(columns="layer")
    return whole[["arm", "layer", *whole.columns.drop(["arm", "layer"])]]


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis and Student's interval ``mean -+ t * s / sqrt(n)``; NaN bounds below three values."""
    values = np.asarray(values, dtype=np.float64)
    count, mean, half = len(values), values.mean(0), np.nan
    if count >= FEWEST_SEEDS:
        half = stdtrit(count - 1, (1 + CONFIDENCE) / 2) * values.std(0, ddof=1) / count**0.5
    return mean, mean - half, mean + half


def _p(differences: np.ndarray) -> float:
    """Of a t test that the mean is 0; NaN below three values, or where all are the same."""
    if len(differences) < FEWEST_SEEDS or np.ptp(differences) == 0:
        return np.nan
    return float(ttest_1samp(differences, 0.0).pvalue)


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for being several (Holm 1979); NaN stays NaN, and is not counted."""
    known = p.dropna().sort_values()
    corrected = (known * np.arange(len(known), 0, -1)).cummax().clip(upper=1.0)
    return corrected.reindex(p.index)


def intervals_said(seeds: int) -> str:
    if seeds < FEWEST_SEEDS:
        return f"no intervals: {seeds} seed{'s' * (seeds > 1)}, and {FEWEST_SEEDS} or more are needed"
    return f"{CONFIDENCE:.0%} t intervals over {seeds} seeds"


@reads
def language_table(record: xr.Dataset) -> pd.DataFrame:
    """Perplexity of each arm of `language_model` under each policy, where every cache has evicted some token.

    One row for each arm, seed and policy:

    arm, seed, policy, sinks, cache_size    cache_size -1: dense
    ppl, low, high, tokens                  perplexity of the held-out texts, its interval, and over how many tokens
    ratio, ratio_low, ratio_high            to that with the most sinks, and its paired interval

    Intervals are those of `ppl_table`: they speak of other texts, not of models trained with other seeds. Raises
    SinkscopeError for a record of something else.

    >>> list(lab.language_table(record))[:3]
    ['arm', 'seed', 'policy']
    """
    _check(record, "language", "of language models", "language_model")
    first = first_evicted(record.attrs["cache_size"])  # from there on every cache has evicted something
    late = losses_from(record[["nll"]], first)
    most_sinks = str(record["policy"].values[record["sinks"].values.argmax()])
    tables = []
    for arm, number in product(record["arm"].values, record["seed"].values):
        table = ppl_table(late.sel(arm=arm, seed=number, drop=True), most_sinks)
        table.insert(0, "arm", str(arm))
        table.insert(1, "seed", int(number))
        tables.append(table)
    whole, about = pd.concat(tables, ignore_index=True), tables[0].attrs
    names = ("computed", "baseline", "bounds", "confidence", "tokens_used")
    whole.attrs = record.attrs | {name: about[name] for name in names} | {"first_scored": first}
    return whole


@reads
def head_masses(record: xr.Dataset) -> pd.DataFrame:
    """Attention of each head of `language_model` on the first token, and whether that makes a sink.

    One row for each arm, seed, layer and head:

    arm, seed, layer, head
    mass, low, high     mean over later queries and texts, its t interval over texts; the intervals of all heads
                        of a model hold together with 95% (Bonferroni)
    null                of a head that looks at every key alike
    is_sink             whether the interval lies above 0.3 (Gu et al. 2024)

    Raises SinkscopeError for a record of something else.

    >>> list(lab.head_masses(record))[:3]
    ['arm', 'seed', 'layer']
    """
    _check(record, "language", "of language models", "language_model")
    confidence = 1 - (1 - CONFIDENCE) / (record.sizes["layer"] * record.sizes["head"])
    bounds = interval(record["sink_mass"], "sequence", confidence, RESAMPLES, at_least=0, at_most=1)
    bounds = bounds.reset_coords(drop=True).rename(mean="mass", lower="low", upper="high")
    bounds["null"] = record["sink_null"].reset_coords(drop=True)
    bounds["is_sink"] = bounds["low"] > EPSILON
    table = bounds.to_dataframe(["arm", "seed", "layer", "head"]).reset_index()
    table.attrs = record.attrs | {"threshold": EPSILON, "confidence": CONFIDENCE}
    return table


@reads
def language_verdict(record: xr.Dataset) -> list[str]:
    """For each model: whether sinks appeared, and whether window attention collapsed. A null result says so.
    Raises SinkscopeError for a record of something else.

    >>> len(lab.language_verdict(record))
    7
    """
    table, masses = language_table(record), head_masses(record)
    window = table[(table["sinks"] == 0) & (table["cache_size"] > 0)]
    seeds = record.sizes["seed"]
    several = seeds > 1
    sentences = []
    for _, row in window.iterrows():
        own = masses[(masses["arm"] == row["arm"]) & (masses["seed"] == row["seed"])]
        name = f"{row['arm']}, seed {row['seed']}" if several else str(row["arm"])
        first = "the sink token" if int(record["has_sink_token"].sel(arm=row["arm"])) else "the first token"
        sentences.append(f"{name}: {_sinks_said(own, first)}; {_collapse_said(row, table.attrs['baseline'])}.")
    limits = (
        f"Intervals are over held-out texts; {seeds} model{'s were' if several else ' was'} trained per arm, for "
        f"{record.attrs['steps']:,} steps, so nothing is said of longer training{' or of other seeds' * (not several)}."
    )
    return [*sentences, limits]


def _sinks_said(heads: pd.DataFrame, first: str) -> str:
    top = heads.iloc[int(heads["mass"].to_numpy().argmax())]
    null, count = top["null"], len(heads)
    most = f"{top['mass']:.3f} ({top['low']:.3f} to {top['high']:.3f}) in layer {top['layer']}, head {top['head']}"
    if np.isnan(top["low"]):
        return f"whether sinks appeared cannot be said from one text (the most attention on {first}: {top['mass']:.3f})"
    sinks, above = int(heads["is_sink"].sum()), int((heads["low"] > null).sum())
    if sinks:
        return (
            f"sinks appeared: {sinks} of {count} heads spend more than {EPSILON} of their attention on {first}, up to "
            f"{most}, where uniform attention would spend {null:.3f}"
        )
    if above:
        return (
            f"no sinks were found: no head is shown to spend more than {EPSILON} of its attention on {first}, though "
            f"{above} of {count} spend more than the {null:.3f} of uniform attention, up to {most}"
        )
    return (
        f"no sinks were found: no head is shown to spend more than the {null:.3f} of uniform attention on {first}; the "
        f"most is {most}"
    )


def _collapse_said(row: pd.Series, baseline: str) -> str:
    ratio, low, high = (round(row[name], 3) for name in RATIO)  # as they are told
    said = (
        f"its perplexity of {row['ppl']:.3g} is {ratio:.3f} ({low:.3f} to {high:.3f}) times that of {baseline} tokens "
        f"in the same cache of {row['cache_size']}"
    )
    if low > COLLAPSE:
        return f"window attention collapsed: {said}"
    if low > 1 and high > COLLAPSE:
        return f"window attention is worse, and whether it collapsed (by a factor of {COLLAPSE}) is open: {said}"
    if low > 1:
        return f"window attention is worse but did not collapse (by a factor of {COLLAPSE}): {said}"
    if high < 1:
        return f"window attention did not collapse, it is better: {said}"
    return f"no collapse of window attention is shown: {said}"


def _check(record: xr.Dataset, kind: str, words: str, maker: str) -> None:
    """Raise SinkscopeError for a record of another kind, or of an older version."""
    if record.attrs.get("kind") != kind:
        raise SinkscopeError(f"this is not a record {words}: make one with sinkscope.lab.{maker}.")
    check_coordinates(record, ARMS, "arms are", f"sinkscope.lab.{maker}")
