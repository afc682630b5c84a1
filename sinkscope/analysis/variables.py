"""Variables of a record as the metrics need them: all dimensions there, float64, missing ones named with
their probe."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinkscope.errors import SinkscopeError

MADE_BY = {
    "sink_mass": "SinkMass(first=4)",
    "log_sum_exp": "LogSumExp()",
    "virtual_sink_mass": "LogSumExp() on a model with a learned sink logit",
    "received": "Received()",
    "entropy": "Entropy()",
    "distance_mass": "DistanceProfile()",
    "attention_map": "Maps()",
    "mean_logit": "MeanLogits(tokens=16)",
    "mean_probability": "MeanLogits(tokens=16)",
    "key_norm": "Norms()",
    "value_norm": "Norms()",
    "output_norm": "OutputNorm()",
    **dict.fromkeys(
        ("log_amplification", "change_norm", "lost_denominator", "lost_value"), "EvictionEffect(keys=(0, 1, 2, 3))"
    ),
    "activation_max": "HiddenExtremes()",
    "activation_median": "HiddenExtremes()",
    "activation_dimension": "HiddenExtremes()",
}
"""The probe that makes each variable, for errors."""

PER_QUERY = ("sink_mass", "log_sum_exp", "entropy")
PER_SEQUENCE = ("length", "token_id", "token_text", "next_loss", "next_entropy")
PER_KV_HEAD = ("key_norm", "value_norm")
CARRIED_BY = {
    "head": [name for name in MADE_BY if name not in PER_KV_HEAD and not name.startswith("activation_")],
    "layer": list(MADE_BY),
    "sequence": [*(name for name in MADE_BY if not name.startswith("mean_")), *PER_SEQUENCE],
}
"""Which variables have each dimension that may be selected away."""


def variable(record: xr.Dataset, name: str) -> xr.DataArray:
    """`record[name]`. Raises SinkscopeError naming the probe that makes it, if it is not there."""
    if name not in record:
        raise SinkscopeError(f"the record has no {name}: measure with the probe {MADE_BY[name]}.")
    return record[name]


def whole(record: xr.Dataset) -> xr.Dataset:
    """The record with sequence, layer and head as dimensions, also where one was selected away:
    record.sel(layer=12)."""
    for dim, names in CARRIED_BY.items():
        if dim in record.coords and dim not in record.dims:
            chosen = record[dim].item()
            record = record.drop_vars(dim)
            for name in names:
                if name in record.coords:
                    record = record.assign_coords({name: record[name].expand_dims({dim: [chosen]})})
                elif name in record:
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
    sequence = record["sequence"] if "sequence" in record.dims else np.zeros(1, dtype=int)
    return xr.DataArray(
        np.full(len(sequence), record.sizes["token"]),
        dims="sequence",
        coords={"sequence": np.asarray(sequence)},
    )


def measured_queries(record: xr.Dataset) -> xr.DataArray:
    """[sequence, query] bool: the queries that were measured (within the text, and since the scope was
    attached)."""
    for name in PER_QUERY:
        if name in record:
            found = record[name].notnull()
            return found.any([dim for dim in found.dims if dim not in ("sequence", "query")])
    query = xr.DataArray(np.arange(text_length(record)), dims="query", coords={"query": np.arange(text_length(record))})
    return (query < sequence_lengths(record)).transpose("sequence", "query")
