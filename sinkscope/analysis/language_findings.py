"""What a record of `language_model` says: in a table, and in words that go no further than its intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.perplexities import first_evicted, losses_from, ppl_table
from sinkscope.errors import SinkscopeError

SINK = 0.3  # of a head's attention (Gu et al. 2024)
COLLAPSE = 1.5  # times the perplexity with sinks; 1.54 in the vanilla model of Xiao et al. 2023, Table 3
CONFIDENCE = 0.95
RESAMPLES = 10_000


def language_table(record: xr.Dataset, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Perplexity of each arm under each policy, over the tokens from which every cache has evicted some.

    Args:
        record: of `language_model`.
        resamples, seed: of the bootstrap.

    Returns:
        One row for each arm, seed and policy:

        arm, seed, policy, sinks, cache_size    cache_size -1: dense
        ppl, low, high, tokens                  perplexity of the held-out texts, its interval, and over how many tokens
        ratio, ratio_low, ratio_high            to that with the most sinks, and its paired interval

        Intervals are those of `ppl_table`: they speak of other texts, not of models trained with other seeds.

    Raises:
        SinkscopeError: a record of something else.
    """
    _check(record)
    tables = []
    for arm, number, own in _runs(record):
        table = ppl_table(own, _most_sinks(record), None, resamples, seed)
        table.insert(0, "arm", arm)
        table.insert(1, "seed", number)
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    computed = {
        name: tables[0].attrs[name] for name in ("computed", "baseline", "resamples", "confidence", "tokens_used")
    }
    whole.attrs = record.attrs | computed | {"first_scored": first_evicted(record.attrs["cache_size"])}
    return whole


def head_masses(record: xr.Dataset) -> pd.DataFrame:
    """Attention of each head on the first token, and whether that makes a sink.

    Returns:
        One row for each arm, seed, layer and head:

        arm, seed, layer, head
        mass, low, high     mean over later queries and texts, its bootstrap interval over texts; the intervals of all
                            heads of a model hold together with 95% (Bonferroni)
        null                of a head that looks at every key alike
        is_sink             whether the interval lies above 0.3 (Gu et al. 2024)

    Raises:
        SinkscopeError: a record of something else.
    """
    _check(record)
    heads = record.sizes["layer"] * record.sizes["head"]
    rows = []
    for arm in record["arm"].values:
        for number in record["seed"].values:
            mass = record["sink_mass"].sel(arm=arm, seed=number)
            bounds = interval(mass, confidence=1 - (1 - CONFIDENCE) / heads, resamples=RESAMPLES)
            for layer in record["layer"].values:
                for head in record["head"].values:
                    at = bounds.sel(layer=layer, head=head)
                    values = [float(at[name]) for name in ("mean", "lower", "upper")]
                    null = float(record["sink_null"].sel(arm=arm))
                    rows.append((str(arm), int(number), int(layer), int(head), *values, null, values[1] > SINK))
    columns = ["arm", "seed", "layer", "head", "mass", "low", "high", "null", "is_sink"]
    table = pd.DataFrame(rows, columns=columns)
    table.attrs = record.attrs | {"threshold": SINK, "confidence": CONFIDENCE}
    return table


def language_verdict(record: xr.Dataset) -> list[str]:
    """For each model: whether sinks appeared, and whether window attention collapsed. A null result says so.

    Raises:
        SinkscopeError: a record of something else.
    """
    table, masses = language_table(record), head_masses(record)
    window = table[(table["sinks"] == 0) & (table["cache_size"] > 0)]
    several = record.sizes["seed"] > 1
    sentences = []
    for _, row in window.iterrows():
        own = masses[(masses["arm"] == row["arm"]) & (masses["seed"] == row["seed"])]
        name = f"{row['arm']}, seed {row['seed']}" if several else str(row["arm"])
        first = "the sink token" if row["arm"] == "sink token" else "the first token"
        sentences.append(f"{name}: {_sinks_said(own, first)}; {_collapse_said(row, table.attrs['baseline'])}.")
    return [*sentences, _limits_said(record)]


def _sinks_said(heads: pd.DataFrame, first: str) -> str:
    top = heads.iloc[int(heads["mass"].to_numpy().argmax())]
    null, count = top["null"], len(heads)
    most = f"{top['mass']:.3f} ({top['low']:.3f} to {top['high']:.3f}) in layer {top['layer']}, head {top['head']}"
    if np.isnan(top["low"]):
        return f"whether sinks appeared cannot be said from one text (the most attention on {first}: {top['mass']:.3f})"
    sinks, above = int(heads["is_sink"].sum()), int((heads["low"] > null).sum())
    if sinks:
        return (
            f"sinks appeared: {sinks} of {count} heads spend more than {SINK} of their attention on {first}, up to "
            f"{most}, where uniform attention would spend {null:.3f}"
        )
    if above:
        return (
            f"no sinks were found: no head is shown to spend more than {SINK} of its attention on {first}, though "
            f"{above} of {count} spend more than the {null:.3f} of uniform attention, up to {most}"
        )
    return (
        f"no sinks were found: no head is shown to spend more than the {null:.3f} of uniform attention on {first}; the "
        f"most is {most}"
    )


def _collapse_said(row: pd.Series, baseline: str) -> str:
    ratio, low, high = (round(row[name], 3) for name in ("ratio", "ratio_low", "ratio_high"))  # as they are told
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


def _limits_said(record: xr.Dataset) -> str:
    seeds = record.sizes["seed"]
    return (
        f"Intervals are over held-out texts; {seeds} model{'s were' if seeds > 1 else ' was'} trained per arm, for "
        f"{record.attrs['steps']:,} steps, so nothing is said of longer training"
        f"{'' if seeds > 1 else ' or of other seeds'}."
    )


def _runs(record: xr.Dataset) -> Iterator[tuple[str, int, xr.Dataset]]:
    """The losses of each model where every cache has evicted something, as a record of perplexity."""
    late = losses_from(record[["nll"]].assign_attrs(record.attrs), first_evicted(record.attrs["cache_size"]))
    for arm in record["arm"].values:
        for number in record["seed"].values:
            yield str(arm), int(number), late.sel(arm=arm, seed=number, drop=True)


def _most_sinks(record: xr.Dataset) -> str:
    return str(record["policy"].values[record["sinks"].values.argmax()])


def _check(record: xr.Dataset) -> None:
    if record.attrs.get("kind") != "language":
        raise SinkscopeError("this is not a record of language models: make one with sinkscope.lab.language_model.")
