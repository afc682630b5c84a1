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

    >>> list(sinkscope.mass_by_length(record, lengths=[20, 40]))
    ['mass', 'lower', 'upper', 'above', 'above_lower', 'above_upper', 'null', 'times_null']

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
    other_losses: xr.Dataset | None = None,
) -> pd.DataFrame:
    """The headlines of the first token at other thresholds, lengths and choices of BOS, one row each.

    headline            "mass" on the first token, mean over layers and heads; "sink rate" (Gu et al. 2024);
                        "collapse", perplexity in a window over that with sinks, after the first eviction
    varied, level       "epsilon", "T" or "BOS", and its value; all else is as in the headline
    value, low, high    with its 95% interval: of masses and rates over sequences, of the collapse as `ppl_table` has it
    null, above_null    of uniform attention; (value - null) / (1 - null)

    >>> list(sinkscope.sensitivity_table(record))[:4]
    ['headline', 'varied', 'level', 'value']

    Args:
        record: with `sink_mass`, of a causal model.
        short, other_bos: records of short texts with the BOS of `record`, and of all or some of them with the other
            choice, under the same numbers; without them BOS is not varied.
        epsilon: the threshold of the headline.
        losses: record of `perplexity` with a window and a sink window of one cache, for the collapse, which knows no
            threshold.
        other_losses: the same of all or some of its texts with the other choice of BOS, under the same numbers.

    Raises:
        SinkscopeError: no `sink_mass`, a threshold that is none, texts in `other_bos` that are not those of `short`, or
            texts and policies in `other_losses` that are not those of `losses`; records of two models.
    """
    epsilon = open_unit(epsilon, "epsilon")
    _check_model(record, short=short, other_bos=other_bos, losses=losses, other_losses=other_losses)
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
        for word, each in _by_bos(short, other_bos, "short", "other_bos"):
            length = int(sequence_lengths(whole(each)).min())
            level = f"{word}, T = {length:,}"
            rows.append(_mass_row("BOS", level, mass_by_length(each, 1, [length]).isel(length=0)))
            rows.append(_rate_row("BOS", level, sink_rate_curve(each, [epsilon], [length]).isel(length=0, epsilon=0)))
    rows += _collapses(losses) if losses is not None else []
    rows += _collapses_by_bos(losses, other_losses) if other_losses is not None else []
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("headline", kind="stable", ignore_index=True)
    bounds = curve.attrs["bounds"]
    if losses is not None and (pair := _window_and_sinks(losses)) is not None:
        bounds = f"mass and sink rate: {bounds}; collapse: {ppl_table(pair, resamples=1).attrs['bounds']}"
    table.attrs = {**record.attrs, "bounds": bounds, "epsilon": epsilon, "T": longest}
    return table


def _check_model(record: xr.Dataset, **others: xr.Dataset | None) -> None:
    """Raise SinkscopeError for a record of another model than the first, where both say theirs."""
    for name, other in others.items():
        models = [each.attrs.get("model") for each in (record, other) if each is not None]
        if None not in models and len(set(models)) > 1:
            raise SinkscopeError(f"{name} is of {models[1]}, and record of {models[0]}: give records of one model.")


def _by_bos(own: xr.Dataset, other: xr.Dataset, own_name: str, name: str) -> list[tuple[str, xr.Dataset]]:
    """The texts of `own` that `other` has too, and those of `other`, each with what they have in front, in words.

    Raises SinkscopeError for texts whose tokens are others, and not some more or fewer in front.
    """
    if missing := sorted({*other["sequence"].values.tolist()} - {*own["sequence"].values.tolist()}):
        raise SinkscopeError(f"{name} has the sequence {missing[0]}, and {own_name} has not: give the same texts.")
    own = own.sel(sequence=other["sequence"].values)
    more = _more_in_front(own, other)
    if more is None:
        raise SinkscopeError(
            f"{name} holds other tokens than {own_name}, as of another text or tokenizer: give the same texts, with "
            "and without the tokens in front."
        )
    has = [each.attrs.get("bos") == "yes" for each in (own, other)] if more == 0 else [more < 0, more > 0]
    return [("with" if each else "without", record) for each, record in zip(has, (own, other), strict=True)]


def _more_in_front(one: xr.Dataset, other: xr.Dataset) -> int | None:
    """How many tokens the same sequences of `other` have in front and those of `one` have not, negative for fewer; 0
    where tokens are not known, None where they are other ones."""
    if "token_id" not in one.coords or "token_id" not in other.coords:
        return 0
    ids = [each["token_id"].transpose("sequence", "token").values for each in (one, other)]
    for more in range(min(MOST_IN_FRONT, *(each.shape[1] - 1 for each in ids)) + 1):
        for sign, (short, long) in ((1, ids), (-1, ids[::-1])):
            size = min(long.shape[1] - more, short.shape[1])
            if np.array_equal(long[:, more : more + size], short[:, :size]):
                return sign * more
    return None


def _collapses(losses: xr.Dataset) -> list[tuple[Any, ...]]:
    """The collapse over texts read up to half a cache, a cache, two .. beyond the first eviction."""
    if (pair := _window_and_sinks(losses)) is None:
        return []
    first, longest = first_evicted(int(pair["cache_size"].max())), losses.sizes["token"]
    ends = [first + (first << power) // 2 for power in range(20) if first + (first << power) // 2 < longest]
    return [_collapse_row("T", f"{end:,}", pair, end) for end in [*ends, *([longest] if longest > first else [])]]


def _collapses_by_bos(losses: xr.Dataset | None, other: xr.Dataset) -> list[tuple[Any, ...]]:
    """The collapse of the same texts, at one length, with and without tokens in front."""
    if losses is None:
        raise SinkscopeError("other_losses are set beside losses, and there are none: give both.")
    pairs = [_window_and_sinks(each) for each in (losses, other)]
    one, two = pairs
    if one is None or two is None or one["policy"].values.tolist() != two["policy"].values.tolist():
        names = ["none" if each is None else ", ".join(each["policy"].values) for each in pairs]
        raise SinkscopeError(
            f"window and sinks are {names[0]} in losses and {names[1]} in other_losses: give both the same policies."
        )
    first, rows = first_evicted(int(one["cache_size"].max())), list[tuple[Any, ...]]()
    for word, each in _by_bos(one, two, "losses", "other_losses"):
        if (length := each.sizes["token"]) > first:
            rows.append(_collapse_row("BOS", f"{word}, T = {length:,}", each, length))
    return rows


def _window_and_sinks(losses: xr.Dataset) -> xr.Dataset | None:
    found = families(losses)
    if found.window is None or found.sinks is None:
        return None
    return losses.sel(policy=[found.window, found.sinks])


def _collapse_row(varied: str, level: str, pair: xr.Dataset, end: int) -> tuple[Any, ...]:
    """Of the tokens from the first eviction up to an end."""
    late = losses_from(pair, first_evicted(int(pair["cache_size"].max()))).isel(token=slice(0, end))
    row = ppl_table(late, baseline=str(pair["policy"].values[1])).iloc[0]
    numbers = (float(row[name]) for name in ("ratio", "ratio_low", "ratio_high"))
    return "collapse", varied, level, *numbers, 1.0, np.nan


def _apart(values: xr.Dataset, dim: str = "length") -> list[xr.Dataset]:
    return [values.isel({dim: place}) for place in range(values.sizes[dim])]


def _mass_row(varied: str, level: str, each: xr.Dataset) -> tuple[Any, ...]:
    numbers = (float(each[name]) for name in ("mass", "lower", "upper", "null", "above"))
    return "mass", varied, level, *numbers


def _rate_row(varied: str, level: str, each: xr.Dataset) -> tuple[Any, ...]:
    null = float(each["null_alpha"] > each["epsilon"])
    rate, low, high = (float(each[name]) for name in ("rate", "lower", "upper"))
    return "sink rate", varied, level, rate, low, high, null, above_null(rate, null) if null < 1 else np.nan
