"""The importance of a key (Gu et al. 2024, "When attention sink emerges")."""

from __future__ import annotations

import xarray as xr

from sinkscope.analysis.null import even_share
from sinkscope.analysis.variables import (
    PER_QUERY,
    is_causal,
    measured_queries,
    sequence_lengths,
    text_length,
    variable,
    whole,
)


def importance(record: xr.Dataset) -> xr.DataArray:
    """alpha of every key: [sequence, layer, head, key], in 0..1.

    alpha(l, h, k) = sum_i A(l, h)[i, k] / (number of queries i >= k), k's own query included; in an encoder,
    where every query sees every key, the mean over all queries. Only measured queries count. NaN past the end
    of a text and for heads a layer lacks. The coordinate `null` [sequence, key] holds the alpha of uniform
    attention, `queries` [sequence, key] the number of queries in the mean: with few of them alpha is noisy.

    From `received`; without it from `sink_mass`, for the first keys only (attrs["from"] says which).
    Raises SinkscopeError if the record has neither.
    """
    record = whole(record)
    if "received" in record or "sink_mass" not in record:
        total, source = variable(record, "received").astype("float64"), "received"
    else:
        kept = variable(record, "sink_mass")
        kept = kept.sel(sink=kept["sink"] < text_length(record))
        total = kept.sum("query", skipna=True, min_count=1, dtype="float64").rename(sink="key")
        source = "sink_mass"
    measured = measured_queries(record)
    key = total["key"]
    share = even_share(record)
    counts = _sum_from_key(measured.astype("float64"), key, record)
    null = _sum_from_key(share.fillna(0.0), key, record) / counts.where(counts > 0)
    in_text = key < sequence_lengths(record)
    alpha = (total / _queries_per_head(record, key, counts)).where(in_text)
    alpha = alpha.transpose("sequence", "layer", "head", "key")
    alpha = alpha.assign_coords(
        null=null.where(in_text).transpose("sequence", "key"),
        queries=counts.where(in_text, 0).astype("int64").transpose("sequence", "key"),
    )
    alpha.attrs = {
        **record.attrs,
        "computed": "importance alpha of each key: mean attention it receives from the queries that see it "
        "(Gu et al. 2024)",
        "from": source,
        "null": "coordinate null: the same mean for uniform attention",
    }
    return alpha.rename("importance")


def _sum_from_key(values: xr.DataArray, key: xr.DataArray, record: xr.Dataset) -> xr.DataArray:
    """[..., query] to [..., key]: the sum over the queries that can see each key."""
    if not is_causal(record):
        return values.sum("query") * xr.ones_like(key, dtype="float64")
    from_end = values.isel(query=slice(None, None, -1)).cumsum("query").isel(query=slice(None, None, -1))
    tail = from_end.rename(query="key").assign_coords(key=values["query"].values)
    return tail.reindex(key=key.values, fill_value=0.0).assign_coords(key=key)


def _queries_per_head(record: xr.Dataset, key: xr.DataArray, counts: xr.DataArray) -> xr.DataArray:
    """The number of queries behind each sum: per head, where layers began at different queries."""
    for name in PER_QUERY:
        if name in record:
            found = record[name].notnull()
            found = found.isel(sink=0, drop=True) if "sink" in found.dims else found
            if bool((found == found.any(["layer", "head"])).where(found.any("query"), True).all()):
                break
            each = _sum_from_key(found.astype("float64"), key, record)
            return each.where(found.any("query"), counts).where(lambda count: count > 0)
    return counts.where(counts > 0)
