"""Sink mass: how much attention goes to the first tokens of a text."""

from __future__ import annotations

import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.analysis.null import even_share
from sinkscope.analysis.variables import text_length, variable, whole
from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError


def sink_mass(record: xr.Dataset, first: int = 4) -> xr.DataArray:
    """Mean attention mass on the first keys: [layer, head], in 0..1.

    For each sequence the mean over the queries i >= first of sum_{j < first} A[i, j], then the mean over
    sequences (those with no query after the first keys left out). NaN for heads a layer lacks. attrs: `first`
    and `null`, the same figure for uniform attention over the same queries.
    Raises SinkscopeError if `first` is below 1, above what the record measured, or leaves no query.
    """
    mass = _per_sequence(record, first)
    result = mass.mean("sequence", skipna=True)
    result.attrs = {**record.attrs, **mass.attrs}
    return result.rename("sink_mass")


def mass_by_layer(record: xr.Dataset, first: int = 1) -> xr.Dataset:
    """Sink mass of each layer, mean over its heads, with a 95% bootstrap interval over sequences: mean,
    lower, upper [layer].

    attrs: `first`, `null` (uniform attention) and those of `interval`. Raises SinkscopeError as `sink_mass`
    does.
    """
    mass = _per_sequence(record, first)
    result = interval(mass.mean("head", skipna=True))
    result.attrs = {**record.attrs, **result.attrs, **mass.attrs}
    result.attrs["computed"] = f"{mass.attrs['computed']}, mean over heads; {result.attrs['bounds']}"
    return result


def _per_sequence(record: xr.Dataset, first: int) -> xr.DataArray:
    """[sequence, layer, head] mean over queries i >= first of the mass on the first keys; attrs: what, first,
    null."""
    record, first = whole(record), whole_number(first, "first", 1)
    kept = variable(record, "sink_mass")
    if first > kept.sizes["sink"]:
        raise SinkscopeError(
            f"first={first} keys are asked for, but the record keeps {kept.sizes['sink']} apart: "
            f"measure with the probe SinkMass(first={first})."
        )
    if first >= text_length(record):
        raise SinkscopeError(
            f"first={first} keys leave no query in a text of {text_length(record)} tokens: give a longer "
            "text or a smaller first."
        )
    later = kept["query"] >= first
    each = kept.isel(sink=slice(first)).sum("sink", skipna=False, dtype="float64")
    mass = each.where(later).mean("query", skipna=True)
    share = even_share(record).where(later).mean("query", skipna=True)
    mass.attrs = {
        "computed": f"mean over queries i >= {first} and over sequences of the attention mass on the first "
        f"{first} keys",
        "first": first,
        "null": float(first * share.mean("sequence", skipna=True)),
    }
    return mass
