"""Attention between spans of a text beside its null, and what is known of tokens summed to spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.mass import above_null, even_share
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import variable, whole
from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError, shown

if TYPE_CHECKING:
    from sinkscope.spans import Spans


@reads
def span_mass(record: xr.Dataset) -> xr.DataArray:
    """Mean attention of the queries of each span to the keys of each: [layer, head, query_span, key_span], in 0..1.

    For each sequence the mean over the queries of a span of the attention summed over the keys of another; then the
    mean over the sequences that have both. NaN for heads a layer lacks. The coordinate `null` [query_span, key_span]
    is the same figure for attention spread evenly over the keys that each query sees.
    Raises SinkscopeError if the record has no `span_mass`, or does not say which token is in which span.

    >>> sinkscope.span_mass(record).dims
    ('layer', 'head', 'query_span', 'key_span')
    """
    record = whole(record)
    mass = variable(record, "span_mass").astype("float64")
    if "span" not in record.coords:
        raise SinkscopeError("the record does not say which token is in which span; measure with the probe SpanMass().")
    names = mass["query_span"].values.tolist()
    shares = even_share(record).transpose("sequence", "query").values
    labels = record["span"].transpose("sequence", "token").values
    with np.errstate(invalid="ignore"):
        nulls = np.stack([_uniform(text, share, names) for text, share in zip(labels, shares, strict=True)])
    there = xr.DataArray(np.isfinite(nulls), dims=("sequence", "query_span", "key_span"))
    null = np.where(np.isfinite(nulls), nulls, 0).sum(0) / np.maximum(there.values.sum(0), 1)
    result = mass.mean("sequence").transpose("layer", "head", "query_span", "key_span")
    result = result.assign_coords(null=(("query_span", "key_span"), np.where(there.values.any(0), null, np.nan)))
    result.attrs = {
        **record.attrs,
        "computed": "mean over the queries of a span, and over sequences, of the attention summed over the keys of "
        "another",
        "null": "coordinate null: the same for attention spread evenly over the keys seen",
    }
    return result.rename("span_mass")


def _uniform(labels: np.ndarray, share: np.ndarray, names: list[str]) -> np.ndarray:
    """[query_span, key_span] of one text: each query gives its share to all of the first keys, as many as it sees."""
    is_in = np.array([labels == name for name in names])  # [span, token]
    before = np.concatenate([np.zeros((len(names), 1)), is_in.cumsum(1)], 1)
    queries = np.flatnonzero(np.isfinite(share))
    given = before[:, np.rint(1 / share[queries]).astype(int)] * share[queries]  # [key_span, query]
    asks = is_in[:, queries].astype(float)
    return np.where(is_in.any(1), asks @ given.T / asks.sum(1, keepdims=True), np.nan)


@reads
def span_table(record: xr.Dataset) -> pd.DataFrame:
    """`span_mass` as a table, one row for each pair of spans.

    query_span, key_span  from which, to which
    mass                  mean over layers and heads
    strongest             of the head that gives most; strongest_layer, strongest_head say which
    null, above_null      of even attention; (mass - null) / (1 - null)
    Raises SinkscopeError as `span_mass` does.

    >>> list(sinkscope.span_table(record))
    ['query_span', 'key_span', 'mass', 'strongest', 'strongest_layer', 'strongest_head', 'null', 'above_null']
    """
    mass = span_mass(record)
    pairs = mass.stack(pair=("query_span", "key_span"), place=("layer", "head")).transpose("pair", "place")
    values, places = pairs.values, pairs["place"].values
    there = np.isfinite(values)
    best = np.where(there, values, -1.0).argmax(1)
    spans = np.array([list(pair) for pair in pairs["pair"].values], dtype=object)
    table = pd.DataFrame({"query_span": spans[:, 0], "key_span": spans[:, 1]})
    table["mass"] = np.where(there, values, 0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)
    table["strongest"] = np.where(there.any(1), values[np.arange(len(best)), best], np.nan)
    table["strongest_layer"] = [int(places[place][0]) for place in best]
    table["strongest_head"] = [int(places[place][1]) for place in best]
    table["null"] = mass["null"].values.ravel()
    table["above_null"] = above_null(table["mass"], table["null"])
    table.attrs = dict(mass.attrs)
    return table


@checks_types
def by_span(values: xr.DataArray, spans: Spans | Sequence[Spans]) -> xr.DataArray:
    """What is known of tokens, for spans: summed over the keys of each, and averaged over the queries of each.

        words = sinkscope.Spans.words(tokenizer, ids)
        sinkscope.by_span(sinkscope.attention_maps(model, ids), words)  # [layer, head, query_span, key_span]
        sinkscope.by_span(record.received, words)  # [sequence, layer, head, key_span]
        sinkscope.by_span(sinkscope.importance(record), words)  # its null is summed too

    >>> sinkscope.by_span(record.received, sinkscope.Spans(["opening", "rest"], [(0, 4), (4, 40)])).dims
    ('sequence', 'layer', 'head', 'key_span')

    Args:
        values: with the dimension `query`, `key` or both, of all tokens: maps at full resolution.
        spans: of the text, or one for each sequence.

    Raises:
        SinkscopeError: neither dimension, pooled maps, spans of another number of texts or beyond the text.
    """
    dims: list[str] = [dim for dim in ("query", "key") if dim in values.dims]
    if not dims:
        raise SinkscopeError(f"an array [{', '.join(map(str, values.dims))}] has neither queries nor keys to sum.")
    for dim in dims:
        if not np.array_equal(values[dim].values, np.arange(values.sizes[dim])):
            raise SinkscopeError(f"`{dim}` of this array is not every token of a text; give maps that are not pooled.")
    every = spans_of(spans, values.sizes["sequence"] if "sequence" in values.dims else None)
    if "sequence" not in values.dims or len({id(each) for each in every}) == 1:
        return _summed(values, dims, every[0])
    rows = [_summed(values.isel(sequence=[row]), dims, each) for row, each in enumerate(every)]
    return xr.concat(rows, "sequence", join="outer").assign_attrs(values.attrs)


def spans_of(spans: Any, sequences: int | None) -> list[Spans]:
    """The spans of each of some sequences; SinkscopeError for what is none, or another number of them."""
    listed = list(spans) if isinstance(spans, (list, tuple)) else [spans] * (sequences or 1)
    if not listed or not all(callable(getattr(each, "numbers", None)) for each in listed):
        raise SinkscopeError(f"spans={shown(spans)} are none; give sinkscope.Spans, or a list with one for each text.")
    if len(listed) != (sequences or 1):
        raise SinkscopeError(f"spans of {len(listed)} texts were given for {sequences or 1}; give one for each.")
    return listed


def _summed(values: xr.DataArray, dims: list[str], spans: Spans) -> xr.DataArray:
    for dim in dims:
        numbers = spans.numbers(values.sizes[dim])
        parts = [values.isel({dim: numbers == number}) for number in range(len(spans))]
        index = pd.Index(spans.names, name=f"{dim}_span")
        beside = {name for name in ("null", "queries") if name in values.coords and dim in values[name].dims}
        along = {name: xr.concat([_one(part[name], dim, name == "null") for part in parts], index) for name in beside}
        made = [_one(part, dim, dim == "key").drop_vars(beside, errors="ignore") for part in parts]
        joined = xr.concat(made, index, coords="minimal", compat="override")
        values = joined.assign_coords(along).assign_attrs(values.attrs)
    return values.transpose(..., *(f"{dim}_span" for dim in dims))


def _one(part: xr.DataArray, dim: str, adds: bool) -> xr.DataArray:
    """The tokens of one span together: their sum, or else the mean of queries and the most of what is counted."""
    if adds:
        return part.sum(dim, min_count=1)
    return part.max(dim) if part.name == "queries" else part.mean(dim)
