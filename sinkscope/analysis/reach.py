"""How far heads reach, and which of them could stream."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import first_keys, is_causal, measured_queries, variable, whole
from sinkscope.arguments import checks_types, finite_number, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.files import write_sealed

ERROR = 0.1  # ours: a head that loses less streams


@reads
def reach(
    record: xr.Dataset, sinks: int | Sequence[int] = (0, 1, 4), windows: int | Sequence[int] = (16, 64, 256)
) -> xr.DataArray:
    """Attention inside the first k keys and the last w, as a function of both: [sequence, layer, head, sinks, window].

    ``w(l, h) = mean_i (sum_{j < k} A_ij + sum_{i - w < j <= i} A_ij)``, each key once, in closed form: attention by
    distance below w, and that on the first keys from farther away. The mean is over the queries of a text.

    >>> sinkscope.reach(record, sinks=1, windows=(4, 16)).dims
    ('sequence', 'layer', 'head', 'sinks', 'window')

    Args:
        record: with `distance_mass` and, for k > 0, `sink_mass` of as many first keys.
        sinks, windows: k and w; the window holds the query itself.

    Raises:
        SinkscopeError: a record without them, of too few first keys, or of a model that looks ahead.
    """
    record = whole(record)
    if not is_causal(record):
        raise SinkscopeError("reach is of models that read from left to right, and this record's see later tokens.")
    first, last = (
        [whole_number(each, name, least) for each in np.atleast_1d(given).tolist()]
        for name, given, least in (("sinks", sinks, 0), ("windows", windows, 1))
    )
    profile = variable(record, "distance_mass").astype(np.float64)
    count = measured_queries(record).sum("query")
    near = profile.cumsum("distance")
    parts = []
    for k in first:
        if k:
            mass = first_keys(record, k, "sinks").astype(np.float64)
        row = []
        for w in last:
            inside = near.isel(distance=min(w, near.sizes["distance"]) - 1, drop=True)
            if k:
                inside = inside + mass.where(mass["query"] - mass["sink"] >= w, 0.0).sum(["query", "sink"])
            row.append(inside / count)
        parts.append(xr.concat(row, xr.DataArray(last, dims="window", name="window")))
    found = xr.concat(parts, xr.DataArray(first, dims="sinks", name="sinks"))
    found = found.transpose("sequence", "layer", "head", "sinks", "window").rename("reach")
    found.attrs = {**record.attrs, "units": "1", "computed": "attention inside sinks and window, mean over queries"}
    return found


@reads
def reach_table(
    record: xr.Dataset, sinks: int | None = None, window: int | None = None, most: float = ERROR
) -> pd.DataFrame:
    """Which heads could stream, one row for each: with these numbers of sinks and last keys.

    reach    attention inside both, mean over texts
    error    of the head's output without the rest, mean over texts
    kind     "streaming" where that is at most `most`, else "retrieval"

    attrs["null_reach"] is that of even attention to all keys that a query sees, over its own sliding window where a
    layer has one: mean over texts and layers.

    >>> list(sinkscope.reach_table(record))[:4]
    ['layer', 'head', 'reach', 'error']

    Args:
        record: with what the probe `Reach` makes.
        sinks, window: among those that it was measured with; the largest when None.
        most: the error that a head may make; a choice of ours.

    Raises:
        SinkscopeError: a record without that, sizes that were not measured.
    """
    record, chosen = _chosen(record, sinks, window)
    limit = finite_number(most, "most", 0.0)
    means = record[["reach", "stream_error"]].mean("sequence").reset_coords(drop=True)
    table = means.to_dataframe(dim_order=["layer", "head"]).reset_index().dropna(subset=["reach"])
    table = table.rename(columns={"stream_error": "error"}).reset_index(drop=True)
    table["kind"] = np.where(table["error"] <= limit, "streaming", "retrieval")
    table.attrs = {**record.attrs, **chosen, "most": limit, "null_reach": float(variable(record, "reach_null").mean())}
    return table


@reads
def head_gates(record: xr.Dataset, sinks: int | None = None, window: int | None = None) -> xr.DataArray:
    """How much each key-value head needs the whole text [layer, kv_head], from 0 to 1: the error of the outputs of all
    query heads that share it, together, if it streamed; mean over texts, at most 1.

    It has the form of DuoAttention's table (Xiao et al. 2024, arXiv 2410.10819), whose gates are trained instead.
    Arguments as of `reach_table`.

    >>> gates = sinkscope.head_gates(record)
    >>> gates.shape
    (2, 1)
    """
    record, chosen = _chosen(record, sinks, window)
    gates = variable(record, "group_error").mean("sequence").clip(max=1.0).transpose("layer", "kv_head")
    gates = gates.reset_coords(drop=True).dropna("kv_head", how="all").dropna("layer", how="all")
    if bool(gates.isnull().any()):
        raise SinkscopeError("this model's layers have different numbers of key-value heads, which no one table holds.")
    gates.attrs = {**record.attrs, **chosen, "computed": "error of a group of heads that streams, at most 1"}
    return gates.rename("head_gates")


@checks_types
def save_head_gates(gates: xr.DataArray, path: str | os.PathLike[str]) -> Path:
    """Write gates [layer, kv_head] as DuoAttention does: a row for each layer, tabs between its heads.

    `PerHead.from_table` reads it, as their code does.

    >>> record = sinkscope.measure(model, ids, [sinkscope.Reach(1, (4, 16))])
    >>> sinkscope.save_head_gates(sinkscope.head_gates(record), "gates.tsv")
    PosixPath('gates.tsv')

    Raises:
        SinkscopeError: gates of other dimensions, or not finite; a file that cannot be written, or is there already
            and is not as this function wrote it.
    """
    if not isinstance(gates, xr.DataArray) or set(gates.dims) != {"layer", "kv_head"}:
        raise SinkscopeError("give gates [layer, kv_head], as sinkscope.head_gates makes of a record.")
    if not bool(np.isfinite(gates).all()):
        raise SinkscopeError("some gates are not finite; give a number for each layer and key-value head.")
    written = StringIO()
    np.savetxt(written, gates.transpose("layer", "kv_head").values, fmt="%.6f", delimiter="\t")
    place = Path(path)
    write_sealed(place, written.getvalue().encode(), "the table of gates", ".tsv")
    return place


def _chosen(record: xr.Dataset, sinks: int | None, window: int | None) -> tuple[xr.Dataset, dict[Hashable, Any]]:
    """A record at one number of sinks and one window, and these."""
    record = whole(record)
    variable(record, "stream_error")
    chosen: dict[Hashable, Any] = {}
    for name, dim, given in (("sinks", "reach_sinks", sinks), ("window", "reach_window", window)):
        known = np.atleast_1d(record[dim].values).tolist()
        value = max(known) if given is None else given
        if value not in known:
            raise SinkscopeError(
                f"{name}={given!r} was not measured; give one of {', '.join(map(str, known))}, or measure with the "
                "probe Reach of others."
            )
        record = record.sel({dim: value}, drop=True) if dim in record.dims else record
        chosen[name] = int(value)
    return record, chosen
