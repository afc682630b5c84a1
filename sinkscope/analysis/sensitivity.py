"""What the headlines hang on: the threshold, the length of the texts, and the token in front.

A mass m and what uniform attention gives, m0, both fall as a text grows, the null faster: the mass is a larger multiple
of the null the longer the text, also where the sink weakens. The share above the null, (m - m0) / (1 - m0), is 0 for
uniform attention and 1 for all of it, whatever the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.costs import families
from sinkscope.analysis.importance import EPSILON, sink_rate_curve
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.mass import above_null, mass_of_texts
from sinkscope.analysis.perplexity import losses_from, ppl_table
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import is_causal, prefix, sequence_lengths, whole
from sinkscope.arguments import open_unit, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.record import first_evicted

EPSILONS = (0.1, 0.2, 0.3, 0.5, 0.8)
MOST_IN_FRONT = 8  # tokens that a tokenizer puts before a text
COLUMNS = ["headline", "varied", "level", "value", "low", "high", "null", "above_null"]


@reads
def mass_by_length(record: xr.Dataset, first: int = 1, lengths: Sequence[int] | None = None) -> xr.Dataset:
    """Mean mass on the first keys against the number T of tokens read, mean over layers and heads: all [length].

    mass, lower, upper                  and its 95% t interval over sequences
    null                                that of uniform attention
    above, above_lower, above_upper     the share above the null, (mass - null) / (1 - null)
    times_null                          mass over null, which grows with T though the sink does not

    Args:
        record: with `sink_mass`.
        first: how many keys.
        lengths: numbers of tokens; default 16, 64, 256 .. and that of the shortest text. A causal query sees no later
            token, so a prefix is exact; an encoder has none but the whole text.

    Raises:
        SinkscopeError: a length that leaves no query, or is longer than the shortest text; as `sink_mass`.
    """
    record = whole(record)
    longest = int(sequence_lengths(record).min())
    if lengths is None:
        shorter = (
            [4**power for power in range(2, 20) if max(first, 8) < 4**power < longest] if is_causal(record) else []
        )
        lengths = [*shorter, longest]
    for length in lengths:
        if not first < whole_number(length, "length", 1) <= longest or not (is_causal(record) or length == longest):
            raise SinkscopeError(
                f"length={length} is no prefix with a query after {first} keys: give one from {first + 1} to {longest}"
                f"{'' if is_causal(record) else ', and for an encoder that alone'}."
            )
    masses = [mass_of_texts(prefix(record, length), first) for length in lengths]
    every = xr.concat([mass.mean(["layer", "head"]).reset_coords(drop=True) for mass in masses], "length")
    if "same_text" in record.coords:
        every = every.assign_coords(same_text=record["same_text"])
    found = interval(every, at_least=0, at_most=1).rename(mean="mass")
    null = xr.DataArray([mass.attrs["null"] for mass in masses], dims="length")
    ends = {"above": "mass", "above_lower": "lower", "above_upper": "upper"}
    found = found.assign({name: above_null(found[source], null) for name, source in ends.items()})
    found = found.assign(null=null, times_null=found["mass"] / null.where(null > 0)).assign_coords(length=list(lengths))
    return found.assign_attrs({**record.attrs, **found.attrs, "first": first})


@reads
def sensitivity_table(
    record: xr.Dataset,
    short: xr.Dataset | None = None,
    other_bos: xr.Dataset | None = None,
    epsilon: float = EPSILON,
    losses: xr.Dataset | None = None,
) -> pd.DataFrame:
    """The headlines of the first token at other thresholds, lengths and choices of BOS, one row each.

    headline            "mass" on the first token, mean over layers and heads; "sink rate" (Gu et al. 2024);
                        "collapse", perplexity in a window over that with sinks, after the first eviction
    varied, level       "epsilon", "T" or "BOS", and its value; all else is as in the headline
    value, low, high    with its 95% t interval over sequences
    null, above_null    of uniform attention; (value - null) / (1 - null)

    Args:
        record: with `sink_mass`, of a causal model.
        short, other_bos: records of short texts with the BOS of `record`, and of all or some of them with the other
            choice, under the same numbers; without them BOS is not varied.
        epsilon: the threshold of the headline.
        losses: record of `perplexity` with a window and a sink window of one cache, for the collapse, whose only axis
            is T: it knows no threshold, and other tokens in front are another measurement.

    Raises:
        SinkscopeError: no `sink_mass`, a threshold that is none, texts in `other_bos` that are not those of `short`.
    """
    epsilon = open_unit(epsilon, "epsilon")
    longest = int(sequence_lengths(whole(record)).min())
    curve = mass_by_length(record)
    rows = [_mass_row("T", f"{int(each['length']):,}", each) for each in _apart(curve)]
    lengths = [int(length) for length in curve["length"].values]
    rates = sink_rate_curve(record, sorted({*EPSILONS, epsilon}), lengths)
    rows += [
        _rate_row("epsilon", f"{float(each['epsilon']):g}", each)
        for each in _apart(rates.sel(length=longest), "epsilon")
    ]
    rows += [_rate_row("T", f"{int(each['length']):,}", each) for each in _apart(rates.sel(epsilon=epsilon))]
    if short is not None and other_bos is not None:
        short, other_bos = whole(short), whole(other_bos)
        if missing := sorted({*other_bos["sequence"].values.tolist()} - {*short["sequence"].values.tolist()}):
            raise SinkscopeError(f"other_bos has the sequence {missing[0]}, and short has not: give the same texts.")
        own = short.sel(sequence=other_bos["sequence"].values)
        if not _are_of_one_text(own, other_bos):
            raise SinkscopeError(
                "other_bos holds other tokens than short, as of another text or tokenizer: give the same texts, with "
                "and without the tokens in front."
            )
        for each in (own, other_bos):
            length = int(sequence_lengths(whole(each)).min())
            level = f"{'with' if each.attrs.get('bos') == 'yes' else 'without'}, T = {length:,}"
            rows.append(_mass_row("BOS", level, mass_by_length(each, 1, [length]).isel(length=0)))
            rows.append(_rate_row("BOS", level, sink_rate_curve(each, [epsilon], [length]).isel(length=0, epsilon=0)))
    rows += _collapses(losses) if losses is not None else []
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("headline", kind="stable", ignore_index=True)
    table.attrs = {**record.attrs, "bounds": curve.attrs["bounds"], "epsilon": epsilon, "T": longest}
    return table


def _are_of_one_text(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether the tokens of the same sequences are the same but for some in front; those that are not known may be."""
    if "token_id" not in one.coords or "token_id" not in other.coords:
        return True
    ids = [each["token_id"].transpose("sequence", "token").values for each in (one, other)]
    for long, short in (ids, ids[::-1]):
        for front in range(min(MOST_IN_FRONT, long.shape[1] - 1) + 1):
            size = min(long.shape[1] - front, short.shape[1])
            if np.array_equal(long[:, front : front + size], short[:, :size]):
                return True
    return False


def _collapses(losses: xr.Dataset) -> list[tuple[Any, ...]]:
    """The collapse over texts read up to half a cache, a cache, two .. beyond the first eviction."""
    found = families(losses)
    if found.window is None or found.sinks is None:
        return []
    pair, rows = losses.sel(policy=[found.window, found.sinks]), []
    first, longest = first_evicted(int(pair["cache_size"].max())), losses.sizes["token"]
    ends = [first + (first << power) // 2 for power in range(20) if first + (first << power) // 2 < longest]
    for end in [*ends, *([longest] if longest > first else [])]:
        late = losses_from(pair, first).isel(token=slice(0, end))
        row = ppl_table(late, baseline=found.sinks).iloc[0]
        numbers = (float(row[name]) for name in ("ratio", "ratio_low", "ratio_high"))
        rows.append(("collapse", "T", f"{end:,}", *numbers, 1.0, np.nan))
    return rows


def _apart(values: xr.Dataset, dim: str = "length") -> list[xr.Dataset]:
    return [values.isel({dim: place}) for place in range(values.sizes[dim])]


def _mass_row(varied: str, level: str, each: xr.Dataset) -> tuple[Any, ...]:
    numbers = (float(each[name]) for name in ("mass", "lower", "upper", "null", "above"))
    return "mass", varied, level, *numbers


def _rate_row(varied: str, level: str, each: xr.Dataset) -> tuple[Any, ...]:
    null = float(each["null_alpha"] > each["epsilon"])
    rate, low, high = (float(each[name]) for name in ("rate", "lower", "upper"))
    return "sink rate", varied, level, rate, low, high, null, above_null(rate, null) if null < 1 else np.nan
