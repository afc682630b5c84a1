"""Variables of a record as the metrics need them: all dimensions there, missing ones named with their probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.errors import SinkscopeError

PER_QUERY = ("sink_mass", "log_sum_exp", "entropy")
PER_SEQUENCE = ("length", "token_id", "token_text", "next_loss", "next_entropy")
"""Coordinates of the texts, and losses beside them."""


def variable(record: xr.Dataset, name: str) -> xr.DataArray:
    """`record[name]`. Raises SinkscopeError naming the probe that makes it, if it is not there."""
    if name not in record:
        raise SinkscopeError(f"the record has no {name}: {advice(name)}.")
    return record[name]


def advice(name: str) -> str:
    """What to do to have a variable."""
    makers = [each.__name__ for each in _makers(name)]
    return f"measure with the probe {'() or '.join(makers)}()" if makers else "it was not measured"


def _makers(name: Any) -> list[Any]:
    """The probes that make a variable; none without torch, which they need and a reader of records may do without."""
    try:
        from sinkscope.probes import probe_classes
    except ImportError:
        return []
    return [each for each in probe_classes() if isinstance(each.makes, Mapping) and name in each.makes]


def _dims(variable: xr.DataArray) -> list[str]:
    """The dimensions that a variable was recorded with; those that its probe declares where the record does not say."""
    if "dims" in variable.attrs:
        return str(variable.attrs["dims"]).split()
    for maker in _makers(variable.name):
        made = maker.makes[variable.name]
        return ["layer", *(dim for dim in made.dims if not (made.averaged and dim == "sequence"))]
    return []


def whole(record: xr.Dataset) -> xr.Dataset:
    """The record with sequence, layer and head as dimensions, also where one was selected: record.sel(layer=12)."""
    for dim in ("head", "layer", "sequence"):
        if dim in record.coords and dim not in record.dims:
            chosen = record[dim].item()
            record = record.drop_vars(dim)
            per_text = PER_SEQUENCE if dim == "sequence" else ()
            held = [name for name in record.data_vars if name in per_text or dim in _dims(record[name])]
            for name in [*held, *(name for name in per_text if name in record.coords)]:
                record[name] = record[name].expand_dims({dim: [chosen]})
    return record.transpose("sequence", "layer", "head", ..., missing_dims="ignore")


def is_causal(record: xr.Dataset) -> bool:
    """Whether no query sees a later key (attrs["causal"]; a record without it is a decoder's)."""
    return bool(record.attrs.get("causal", 1))


def text_length(record: xr.Dataset) -> int:
    """T: tokens of the longest text."""
    return int(record.sizes["token"]) if "token" in record.sizes else int(sequence_lengths(record).max())


def sequence_lengths(record: xr.Dataset) -> xr.DataArray:
    """[sequence] real tokens of each text."""
    if "length" in record.coords:
        return record["length"]
    sequence = record["sequence"].values if "sequence" in record.dims else np.zeros(1, dtype=int)
    return xr.DataArray(np.full(len(sequence), record.sizes["token"]), [("sequence", sequence)])


def key_lengths(record: xr.Dataset) -> xr.DataArray:
    """[sequence] keys that a text looks at: its own tokens, or in cross-attention what the encoder made."""
    return record["key_length"] if "key_length" in record.coords else sequence_lengths(record)


def measured_queries(record: xr.Dataset) -> xr.DataArray:
    """[sequence, query] bool: the queries that were measured (within the text, and since the scope was attached)."""
    for name in PER_QUERY:
        if name in record:
            found = record[name].notnull()
            return found.any([dim for dim in found.dims if dim not in ("sequence", "query")])
    query = xr.DataArray(np.arange(text_length(record)), [("query", np.arange(text_length(record)))])
    return (query < sequence_lengths(record)).transpose("sequence", "query")
