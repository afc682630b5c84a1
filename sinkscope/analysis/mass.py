"""How much attention goes to the first tokens of a text, what of it sum-to-one forces, and what their values pass on.

The null of each measure is what a head that spreads its attention evenly over the keys it sees gives to the keys in
question. Under uniform causal attention query i (0-based) gives 1/(i+1) to each key it sees, so the null of a metric is
a mean of 1/(i+1) over its queries (about ln(T)/T for the first key, not 1/T). An encoder's query gives 1/T to each
key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import (
    first_keys,
    is_causal,
    key_lengths,
    measured_queries,
    sequence_lengths,
    text_length,
    variable,
    whole,
)
from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError

NORMS = ("output_norm", "change_norm", "lost_denominator", "lost_value")
"""What `EvictionEffect` measures of each head: the length of its output, and of what eviction would take from it."""


@reads
def sink_mass(record: xr.Dataset, first: int = 4) -> xr.DataArray:
    """Mean attention mass on the first keys: [layer, head], in 0..1.

    For each sequence the mean over the queries i >= first of sum_{j < first} A[i, j], then the mean over sequences
    (those with no query after the first keys left out). NaN for heads a layer lacks. attrs: `first` and `null`, the
    same figure for uniform attention over the same queries.
    Raises SinkscopeError if `first` is below 1, above what the record measured, or leaves no query.

    >>> mass = sinkscope.sink_mass(record, first=1)
    >>> mass.dims, mass.attrs["null"] > 0
    (('layer', 'head'), True)
    """
    mass = mass_of_texts(record, first)
    result = mass.mean("sequence").rename("sink_mass")
    result.attrs = record.attrs | mass.attrs
    return result


@reads
def mass_by_layer(record: xr.Dataset, first: int = 1) -> xr.Dataset:
    """Sink mass of each layer, mean over its heads, with a 95% interval: mean, lower, upper [layer].

    The interval is Student's t over sequences. attrs: `first`, `null` (uniform attention) and those of `interval`.
    Raises SinkscopeError as `sink_mass` does.

    >>> list(sinkscope.mass_by_layer(record, first=1))
    ['mean', 'lower', 'upper']
    """
    mass = mass_of_texts(record, first)
    result = interval(mass.mean("head"), at_least=0, at_most=1)
    result.attrs = {**record.attrs, **result.attrs, **mass.attrs}
    result.attrs["computed"] = f"{mass.attrs['computed']}, mean over heads; {result.attrs['bounds']}"
    return result


def mass_of_texts(record: xr.Dataset, first: int) -> xr.DataArray:
    """[sequence, layer, head] mean over queries i >= first of the mass on the first keys."""
    record, first = whole(record), whole_number(first, "first", 1)
    kept = first_keys(record, first, "first")
    if first >= (length := text_length(record)):
        raise SinkscopeError(
            f"first={first} keys leave no query in a text of {length} tokens: give a longer text or a smaller first."
        )
    later = kept["query"] >= first
    each = kept.sum("sink", skipna=False, dtype="float64")
    mass = each.where(later).mean("query")
    mass.attrs = {
        "computed": f"mean over queries i >= {first} and over sequences of the attention mass on the first "
        f"{first} keys",
        "first": first,
        "null": float(first * even_share(record).where(later).mean("query").mean("sequence")),
    }
    return mass


def above_null(value: Any, null: Any) -> Any:
    """The share above the null, (value - null) / (1 - null): 0 for uniform attention, 1 for all of it."""
    return (value - null) / (1 - null)


@checks_types
def uniform_importance(length: int, position: int = 0, causal: bool = True) -> float:
    """Importance (Gu et al. 2024) of the key at `position` (0-based) of `length` tokens under uniform attention.

    Causal: the mean of 1/(i+1) over the queries i = position .. length-1; for position 0 the harmonic number H_T / T.
    Otherwise 1/length. Raises SinkscopeError if the position is not in the text.

    >>> round(sinkscope.uniform_importance(1024), 6)
    0.007333
    """
    length = whole_number(length, "length", 1)
    position = position_within(length, position)
    return float(np.mean(1.0 / np.arange(position + 1, length + 1))) if causal else 1.0 / length


def position_within(length: int, position: int) -> int:
    """`position` (0-based) in a text of `length` tokens, or SinkscopeError."""
    position = whole_number(position, "position", 0)
    if position >= length:
        raise SinkscopeError(
            f"position={position} is not in a text of {length} tokens: give one from 0 to {length - 1}."
        )
    return position


@checks_types
def uniform_mass(length: int, first: int = 1, causal: bool = True) -> float:
    """Mass on the `first` keys of a text of `length` tokens under uniform attention.

    Causal: the mean of first/(i+1) over the queries i = first .. length-1. Otherwise first/length.
    Raises SinkscopeError if no query comes after the first keys.

    >>> round(sinkscope.uniform_mass(1024), 6)
    0.006363
    """
    length, first = whole_number(length, "length", 1), whole_number(first, "first", 1)
    if first >= length:
        raise SinkscopeError(
            f"a text of {length} tokens has no query after its first {first}: give a longer text or a smaller first."
        )
    return float(np.mean(first / np.arange(first + 1, length + 1))) if causal else first / length


def even_share(record: xr.Dataset) -> xr.DataArray:
    """[sequence, query] what each measured query gives to one key under uniform attention; NaN for the others."""
    measured = measured_queries(record)
    before = measured["query"] + 1.0
    keys = before if is_causal(record) else key_lengths(record)
    if "keys_seen" in record.coords:  # where some tokens, as those of an image, see each other both ways
        keys = record["keys_seen"].fillna(before)
    return (1.0 / keys).where(measured)


@reads
def amplification(record: xr.Dataset) -> xr.DataArray:
    """What the weights of all other keys are multiplied by when the keys of `EvictionEffect` go: [layer, head].

    The geometric mean of 1 / (1 - m) over queries and sequences, so that its inverse has the same meaning and a few
    queries that see little else do not decide it. Raises SinkscopeError if the record has none.

    >>> sinkscope.amplification(record).dims
    ('layer', 'head')
    """
    logs = variable(whole(record), "log_amplification").astype("float64").mean(["sequence", "query"])
    result = logs.copy(data=np.exp(logs.values))
    result.attrs = {**record.attrs, "computed": "exp of the mean of -log(1 - m) over queries and sequences"}
    return result.rename("amplification")


@reads
def eviction_by_layer(record: xr.Dataset, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """What evicting the keys of `EvictionEffect` would do in each layer alone.

    layer
    amplification                           geometric mean over queries and heads
    change, lost_denominator, lost_value    mean norm over the mean norm of the head's output, over queries and heads
    difference                              lost_denominator less lost_value, paired: which of them is the longer part
    .._low, .._high                         95% t interval of each over sequences (NaN with fewer than three), of
                                            the amplification on its logarithm

    `resamples` and `seed` are those of `interval`. Raises SinkscopeError if the record has no norms.

    >>> list(sinkscope.eviction_by_layer(record, resamples=50))[:3]
    ['layer', 'amplification', 'amplification_low']
    """
    record = whole(record)
    variable(record, "log_amplification")
    if any(name not in record for name in NORMS):
        raise SinkscopeError("the record has no norms: the model does not show what its heads hand on.")
    means = {name: record[name].astype("float64").mean(["head", "query"]) for name in ("log_amplification", *NORMS)}
    columns = {"amplification": means["log_amplification"]} | {
        name.removesuffix("_norm"): means[name] / means["output_norm"] for name in NORMS[1:]
    }
    columns["difference"] = columns["lost_denominator"] - columns["lost_value"]
    table = pd.DataFrame({"layer": record["layer"].values})
    for name, values in columns.items():
        least = None if name in ("amplification", "difference") else 0
        found = interval(values, resamples=resamples, seed=seed, at_least=least)
        for bound, column in (("mean", name), ("lower", f"{name}_low"), ("upper", f"{name}_high")):
            table[column] = np.exp(found[bound].values) if name == "amplification" else found[bound].values
    table.attrs = {
        **record.attrs,
        "resamples": resamples,
        "seed": seed,
        "bounds": f"95% t intervals over {found.attrs['n']} sequences",
    }
    return table


@reads
def value_drain(record: xr.Dataset, first: int = 1) -> xr.Dataset:
    """How long the first tokens' values and keys are beside all others': value_ratio and key_ratio [layer, kv_head].

    After Guo et al. 2024 (arXiv 2410.13835).

    For each sequence the mean Euclidean norm at positions < first over the mean norm at the rest, then the mean over
    sequences (those with no other token left out). Below 1 the value is drained; 1 is the ratio of a first token like
    any other (attrs["null"]). NaN for heads a layer lacks.
    Raises SinkscopeError if the record has no norms, `first` is below 1 or leaves no other token.

    >>> list(sinkscope.value_drain(record, first=1))
    ['value_ratio', 'key_ratio']
    """
    record, first = whole(record), whole_number(first, "first", 1)
    if first >= int(sequence_lengths(record).max()):
        raise SinkscopeError(
            f"first={first} leaves no other token in a text of {text_length(record)}: give a longer text or a smaller "
            "first."
        )
    ratios = {}
    for name in ("value", "key"):
        norm = variable(record, f"{name}_norm").astype("float64")
        is_sink = norm["token"] < first
        ratio = norm.where(is_sink).mean("token") / norm.where(~is_sink).mean("token")
        ratios[f"{name}_ratio"] = ratio.mean("sequence")
        ratios[f"{name}_ratio"].attrs = {}
    about = (
        f"mean norm of the first {first} tokens' values (keys) over the mean norm of the others', mean over sequences"
    )
    return xr.Dataset(ratios, attrs=record.attrs | {"computed": about, "first": first, "null": 1.0})
