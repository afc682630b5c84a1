"""Variables of a record as the metrics need them: all dimensions there, missing ones named with their probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.analysis.intervals import TEXT
from sinkscope.errors import SinkscopeError

PER_QUERY = ("sink_mass", "log_sum_exp", "entropy")
PER_SEQUENCE = ("length", "token_id", "token_text", "next_loss", "next_entropy")
"""Coordinates of the texts, and losses beside them."""

SETTINGS = ("policy", "arm", "dose")
"""Dimensions along which the same texts are read again."""

RUN = 32  # tokens; unrelated texts hardly share as many in a row
SHARED = 1 / 8  # of a text's runs, from which on it is taken to be a part of another


def variable(record: xr.Dataset, name: str) -> xr.DataArray:
    """`record[name]`. Raises SinkscopeError naming the probe that makes it, if it is not there."""
    if name not in record:
        raise SinkscopeError(f"the record has no {name}: {advice(name)}.")
    return record[name]


def first_keys(record: xr.Dataset, count: int, name: str) -> xr.DataArray:
    """`sink_mass` of the first `count` keys; SinkscopeError, which names the argument, where there are fewer."""
    kept = variable(record, "sink_mass")
    if count > kept.sizes["sink"]:
        raise SinkscopeError(
            f"{name}={count} keys are asked for, but the record keeps {kept.sizes['sink']} apart: "
            f"measure with the probe SinkMass(first={count})."
        )
    return kept.isel(sink=slice(count))


def check_begins(record: xr.Dataset) -> None:
    """Raise SinkscopeError for a record whose first token was cut off, in a place where others are set beside it."""
    if int(record["token"].values.flat[0]) > 0:
        raise SinkscopeError(
            f"this record begins at token {int(record['token'].values.flat[0])}, and the first token of each text is "
            "asked for; give the record of whole texts."
        )


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
    """The record with sequence, layer and head as dimensions, also where one was selected: record.sel(layer=12).

    Where texts are there twice, or overlap, the coordinate `same_text` [sequence] says which are one to an interval."""
    for dim in ("head", "layer", "sequence"):
        if dim in record.coords and dim not in record.dims:
            chosen = record[dim].item()
            record = record.drop_vars(dim)
            per_text = PER_SEQUENCE if dim == "sequence" else ()
            held = [name for name in record.data_vars if name in per_text or dim in _dims(record[name])]
            for name in [*held, *(name for name in per_text if name in record.coords)]:
                record[name] = record[name].expand_dims({dim: [chosen]})
    record = record.transpose("sequence", "layer", "head", ..., missing_dims="ignore")
    if "token_id" in record.coords and set(record["token_id"].dims) == {"sequence", "token"}:
        text = same_texts(record, overlapping=True)
        if len(np.unique(text)) < len(text):
            return record.assign_coords({TEXT: ("sequence", text)})
    return record


def prefix(record: xr.Dataset, length: int) -> xr.Dataset:
    """`sink_mass` of the first tokens of every text alone: exact, as no causal query sees a later one."""
    record = record[["sink_mass"]].isel(query=slice(0, length), token=slice(0, length), missing_dims="ignore")
    record = record.drop_vars(["token_id", "token_text"], errors="ignore")
    return record.assign_coords(length=("sequence", np.full(record.sizes["sequence"], length)))


def same_texts(record: xr.Dataset | xr.DataArray, overlapping: bool = False) -> np.ndarray:
    """[sequence] numbers by `token_id`, the same for texts that are one to an interval.

    Those are texts of the same tokens, if what was measured of them is the same too (under one policy at least), and
    with `overlapping` texts that share an eighth or more of the runs of 32 tokens of the shorter one. A run of a few
    tokens said again and again is of no text more than of another.
    """
    ids = record["token_id"].transpose("sequence", "token").values
    alike = np.unique(ids, axis=0, return_inverse=True)[1].ravel()
    text = np.arange(len(ids))
    for row in range(len(ids)):
        for other in np.flatnonzero(alike[:row] == alike[row]).tolist():
            if _measured_alike(record, row, other):
                text[row] = text[other]
                break
    if not overlapping or len(ids) < 2 or ids.shape[1] < RUN:
        return text
    runs = np.lib.stride_tricks.sliding_window_view(ids, RUN, axis=1)
    inside = (runs.min(-1) >= 0) & ~_says_again(ids)
    # a random linear hash: two different runs have the same one with a probability of 2^-64 or so
    hashes = runs @ np.random.default_rng(0).integers(-(2**63), 2**63, RUN, dtype=np.int64)
    owner = np.broadcast_to(np.arange(len(ids))[:, None], inside.shape)
    found = np.unique(np.stack([hashes[inside], owner[inside]], axis=1), axis=0)
    group, size = np.unique(found[:, 0], return_inverse=True, return_counts=True)[1:]
    shared, each = found[size[group] > 1], np.bincount(found[:, 1], minlength=len(ids))
    together: Counter[tuple[int, int]] = Counter()
    for same in np.split(shared[:, 1], np.flatnonzero(np.diff(shared[:, 0])) + 1):
        together.update(combinations(same.tolist(), 2))
    for (one, other), count in together.items():
        if alike[one] != alike[other] and count >= SHARED * min(each[one], each[other]):
            text[text == text[other]] = text[one]
    return text


def _says_again(ids: np.ndarray) -> np.ndarray:
    """[sequence, start] whether a run of tokens has a period of half of it or less."""
    found = np.zeros((len(ids), ids.shape[1] - RUN + 1), bool)
    for period in range(1, RUN // 2 + 1):
        same = np.cumsum(np.pad(ids[:, period:] == ids[:, :-period], ((0, 0), (1, 0))), axis=1)
        size = RUN - period
        found |= (same[:, size:] - same[:, :-size] == size)[:, : found.shape[1]]
    return found


def _measured_alike(record: xr.Dataset | xr.DataArray, row: int, other: int) -> bool:
    """Whether the first variable of two sequences is the same, but for what rounding makes of it in another batch.

    Under one of the policies or doses: others may draw at random in each text.
    """
    every = [record] if isinstance(record, xr.DataArray) else list(record.data_vars.values())
    own = next((each for each in every if "sequence" in each.dims and each.dtype.kind == "f"), None)
    if own is None:
        return True
    settings = [dim for dim in SETTINGS if dim in own.dims]
    own = own.transpose("sequence", *settings, ...).isel(sequence=[row, other])
    one, two = own.values.reshape(2, int(np.prod([own.sizes[dim] for dim in settings])), -1)
    alike = np.isclose(one, two, rtol=1e-2, atol=1e-3, equal_nan=True).all(-1)
    known = np.isfinite(one).any(-1)
    return bool((alike & (known | ~known.any())).any())


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
