"""A record from attention maps of any origin, so that every metric and every figure serves them too."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import entr

from sinkscope.analysis.map_checks import ROUNDING, checked_maps
from sinkscope.analysis.map_tokens import checked_tokens
from sinkscope.errors import SinkscopeError

CORNER = 16
FULL_RESOLUTION = 512
POOLED_RESOLUTION = 64
UPPER_IS_ZERO = 1e-6


def from_maps(array: Any, tokens: Any = None, first: int = 4, **attributes: Any) -> xr.Dataset:
    """Make a record from attention probabilities.

    array       [layer, head, query, key] or [sequence, layer, head, query, key]: anything numpy can read. For
                texts of different lengths a list with one [layer, head, query, key] array per sequence. A
                tuple is read as transformers' `output.attentions`: one [sequence, head, query, key] array per
                layer. No padding: cut it off first.
    tokens      the texts or the ids of the T tokens: one list for all sequences, or one list per sequence;
                None if unknown.
    first       how many of the first keys to keep apart in `sink_mass`.
    attributes  anything to remember beside the maps (model="...", bos="yes"): numbers and strings.

    Returns every variable that maps determine: sink_mass, received, entropy, distance_mass, map (A itself up
    to 512 tokens, else 64 x 64 cells: mean over the cell's queries of the mass on the cell's keys),
    mean_probability, and virtual_sink_mass where rows sum to less than one. `attrs["causal"]` is 1 if no
    query sees a later key. In maps that are not causal, `distance_mass` adds both sides: the mass on the keys
    at |query - key| = distance.

    Raises SinkscopeError if the maps are not square, finite, non-negative, with rows summing to at most one
    (up to the rounding of bfloat16), if there are fewer than `first` tokens, or if `tokens` do not match the
    maps.
    """
    maps = checked_maps(array)
    lengths = np.array([each.shape[-1] for each in maps])
    tokens_in_longest = int(lengths.max())
    if isinstance(first, bool) or not isinstance(first, (int, np.integer)) or not 1 <= first <= tokens_in_longest:
        raise SinkscopeError(
            f"first={first!r} keys cannot be kept from maps of {tokens_in_longest} tokens: "
            f"give a whole number from 1 to {tokens_in_longest}."
        )
    ids, texts = checked_tokens(tokens, lengths)
    causal = all(_is_causal(each) for each in maps)
    record = _measured(maps, tokens_in_longest, int(first), causal)
    record = record.assign_coords(length=("sequence", lengths))
    if ids is not None:
        record = record.assign_coords(token_id=(("sequence", "token"), ids))
    if texts is not None:
        record = record.assign_coords(token_text=(("sequence", "token"), texts))
    record.attrs = _provenance(lengths, causal, ids if texts is None else texts) | _checked_attributes(attributes)
    return record


def _is_causal(maps: np.ndarray) -> bool:
    later = np.triu(np.ones(maps.shape[-2:], dtype=bool), k=1)
    return all(not (layer[..., later] > UPPER_IS_ZERO).any() for layer in maps)


def _measured(maps: list[np.ndarray], length: int, first: int, causal: bool) -> xr.Dataset:
    """All variables, one layer of one sequence at a time in float64, stored as float32 with NaN past each
    text's end."""
    sequences, (layers, heads) = len(maps), maps[0].shape[:2]
    lead = ("sequence", "layer", "head")
    cells = _cell_starts(length)
    corner = min(CORNER, length)
    shapes = {
        "sink_mass": ((length, first), ("query", "sink")),
        "virtual_sink_mass": ((length,), ("query",)),
        "received": ((length,), ("key",)),
        "entropy": ((length,), ("query",)),
        "distance_mass": ((length,), ("distance",)),
        "attention_map": ((len(cells), len(cells)), ("map_query", "map_key")),
    }
    out = {name: np.full((sequences, layers, heads, *shape), np.nan, np.float32) for name, (shape, _) in shapes.items()}
    corner_sum = np.zeros((layers, heads, corner, corner))
    corner_count = np.zeros((corner, corner))
    for s, one in enumerate(maps):
        t = one.shape[-1]
        keep, near = min(first, t), min(corner, t)
        corner_count[:near, :near] += 1
        for layer in range(layers):
            a = one[layer].astype(np.float64)
            row = (s, layer, slice(None))
            out["sink_mass"][(*row, slice(t))] = 0.0
            out["sink_mass"][(*row, slice(t), slice(keep))] = a[:, :, :keep]
            out["virtual_sink_mass"][(*row, slice(t))] = np.maximum(1.0 - a.sum(-1), 0.0)
            out["received"][(*row, slice(t))] = a.sum(-2)
            out["entropy"][(*row, slice(t))] = entr(a).sum(-1)
            out["distance_mass"][(*row, slice(t))] = _distance_mass(a, causal)
            inside = cells[cells < t]
            out["attention_map"][(*row, slice(len(inside)), slice(len(inside)))] = _pooled(a, inside)
            corner_sum[layer, :, :near, :near] += a[:, :near, :near]
    mean = np.divide(corner_sum, corner_count, out=np.full_like(corner_sum, np.nan), where=corner_count > 0)
    if causal:
        mean[..., np.triu(np.ones((corner, corner), dtype=bool), k=1)] = np.nan
    if not (out["virtual_sink_mass"] > ROUNDING).any():
        del out["virtual_sink_mass"]
    positions = np.arange(length)
    record = xr.Dataset(
        {name: ((*lead, *shapes[name][1]), values) for name, values in out.items()},
        coords={
            "sequence": np.arange(sequences),
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "sink": np.arange(first),
            **{name: positions for name in ("query", "key", "token", "distance")},
            "map_query": cells,
            "map_key": cells,
            "corner_query": np.arange(corner),
            "corner_key": np.arange(corner),
        },
    )
    record["mean_probability"] = (("layer", "head", "corner_query", "corner_key"), mean.astype(np.float32))
    for held in record.data_vars.values():
        held.attrs["dims"] = " ".join(map(str, held.dims))
    record["attention_map"].attrs["pool"] = "mass"
    return record


def _cell_starts(length: int) -> np.ndarray:
    """First position of each cell of the stored map."""
    if length <= FULL_RESOLUTION:
        return np.arange(length)
    return np.arange(POOLED_RESOLUTION) * length // POOLED_RESOLUTION


def _pooled(a: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[head, query, key] to [head, cell, cell]: mean over the cell's queries of the mass on the cell's
    keys."""
    if len(starts) == a.shape[-1]:
        return a
    queries_per_cell = np.diff(np.append(starts, a.shape[-1]))
    mass = np.add.reduceat(np.add.reduceat(a, starts, axis=-1), starts, axis=-2)
    return mass / queries_per_cell[:, None]


def _distance_mass(a: np.ndarray, causal: bool) -> np.ndarray:
    """[head, query, key] to [head, distance]: sum over queries of the mass on the key `distance` before (or
    after) them."""
    offsets = range(a.shape[-1])
    behind = np.stack([np.trace(a, offset=-d, axis1=-2, axis2=-1) for d in offsets], axis=-1)
    if not causal:
        ahead = np.stack([np.trace(a, offset=d, axis1=-2, axis2=-1) for d in offsets], axis=-1)
        behind[..., 1:] += ahead[..., 1:]
    return behind


def _provenance(lengths: np.ndarray, causal: bool, tokens: np.ndarray | None) -> dict[str, Any]:
    try:
        version = importlib.metadata.version("sinkscope")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    found = {
        "model": "unknown",
        "attention": "maps given",
        "causal": int(causal),
        "bos": "unknown",
        "tokens": int(lengths.sum()),
        "sequences": len(lengths),
        "sinkscope": version,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if tokens is not None:
        rows = ["\0".join(str(token) for token in row[:n]) for row, n in zip(tokens, lengths, strict=True)]
        found["tokens_sha256"] = hashlib.sha256("\0\0".join(rows).encode("utf-8", "surrogatepass")).hexdigest()
    return found


def _checked_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, (bool, np.bool_)):
            kept[name] = int(value)
        elif isinstance(value, (str, int, float, np.number)):
            kept[name] = value
        else:
            raise SinkscopeError(
                f"attribute {name}= is a {type(value).__name__}, which a record cannot store: give a number "
                "or a string."
            )
    if kept.get("causal", 0) not in (0, 1):
        raise SinkscopeError(f"attribute causal={kept['causal']!r} must be 1 (a query sees no later key) or 0.")
    return kept


__all__: Sequence[str] = ("from_maps",)
