"""A record from attention maps of any origin, so that every metric and every figure serves them too."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import platform
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import entr

from sinkscope import __version__
from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError

CORNER = 16
FULL_RESOLUTION = 512
POOLED_RESOLUTION = 64
UPPER_IS_ZERO = 1e-6
ROUNDING = 2.0**-8
"""How far a row's sum may be from one: the spacing of bfloat16 below one, in which maps often come."""

FORMS = "give a list of texts or of ids, or one such list per sequence"


@checks_types
def from_maps(array: Any, tokens: Any = None, first: int = 4, **attributes: Any) -> xr.Dataset:
    """Make a record from attention probabilities.

    array       [layer, head, query, key] or [sequence, layer, head, query, key]: anything numpy can read. For texts of
                different lengths a list with one [layer, head, query, key] array per sequence. A tuple is read as
                transformers' `output.attentions`: one [sequence, head, query, key] array per layer. No padding: cut it
                off first.
                Maps with other numbers of queries and keys are those of cross-attention.
    tokens      the texts or the ids of the T tokens, in cross-attention those of the queries: one list for all
                sequences, or one per sequence; None if unknown.
    first       how many of the first keys to keep apart in `sink_mass`.
    attributes  anything to remember beside the maps (model="...", bos="yes"): numbers and strings.

    Returns every variable that maps determine: sink_mass, received, entropy, distance_mass, attention_map (A itself up
    to 512 tokens, else 64 x 64 cells: mean over the cell's queries of the mass on the cell's keys), mean_probability,
    and virtual_sink_mass where rows sum to less than one. `attrs["causal"]` is 1 if no query sees a later key. In maps
    that are not causal, `distance_mass` adds both sides: the mass on the keys at |query - key| = distance. In
    cross-attention there are no distances, and the coordinate `key_length` has the number of keys.

    Raises SinkscopeError if the maps are not finite, non-negative, all square or all of cross-attention, with rows
    summing to at most one (up to the
    rounding of bfloat16), if there are fewer than `first` tokens, or if `tokens` do not match the maps.

    >>> maps = np.tril(np.ones((8, 8))) / np.arange(1, 9)[:, None]  # uniform causal attention
    >>> record = sinkscope.from_maps(maps[None, None, None])
    >>> round(sinkscope.sink_mass(record, first=1).item(), 4), round(sinkscope.uniform_mass(8), 4)
    (0.2454, 0.2454)
    """
    maps = _checked_maps(array)
    lengths, keys = (np.array([each.shape[axis] for each in maps]) for axis in (-2, -1))
    crosses = bool((lengths != keys).any())
    most = int(keys.max())
    if isinstance(first, bool) or not isinstance(first, (int, np.integer)) or not 1 <= first <= most:
        raise SinkscopeError(
            f"first={first!r} keys cannot be kept from maps of {most} tokens: give a whole number from 1 to {most}."
        )
    read = _checked_tokens(tokens, lengths)
    causal = not crosses and all(_is_causal(each) for each in maps)
    record = _measured(maps, int(lengths.max()), most, int(first), causal)
    record = record.assign_coords(length=("sequence", lengths))
    if crosses:
        record = record.assign_coords(key_length=("sequence", keys)).drop_vars(["distance_mass", "distance"])
    if read is not None:
        name = "token_text" if read.dtype.kind == "O" else "token_id"
        record = record.assign_coords({name: (("sequence", "token"), read)})
    record.attrs = _provenance(lengths, causal, read) | _checked_attributes(attributes)
    return record


def _is_causal(maps: np.ndarray) -> bool:
    later = np.triu(np.ones(maps.shape[-2:], dtype=bool), k=1)
    return all(not (layer[..., later] > UPPER_IS_ZERO).any() for layer in maps)


def _measured(maps: list[np.ndarray], length: int, keys: int, first: int, causal: bool) -> xr.Dataset:
    """All variables, one layer of one text at a time in float64, stored as float32 with NaN past each text's end."""
    sequences, (layers, heads) = len(maps), maps[0].shape[:2]
    corner = min(CORNER, length), min(CORNER, keys)
    sizes = {"sequence": sequences, "layer": layers, "head": heads, "sink": first, "key": keys}
    sizes |= dict.fromkeys(("query", "token", "distance"), length)
    sizes |= dict(zip(("corner_query", "corner_key"), corner, strict=True))
    cells = {"map_query": _cells(length), "map_key": _cells(keys)}
    coordinates = {name: np.arange(size) for name, size in sizes.items()} | cells
    record = xr.Dataset(coords=coordinates)
    dims = {
        "sink_mass": ("query", "sink"),
        "virtual_sink_mass": ("query",),
        "received": ("key",),
        "entropy": ("query",),
        "distance_mass": ("distance",),
        "attention_map": ("map_query", "map_key"),
    }
    for name, own in dims.items():
        every = ("sequence", "layer", "head", *own)
        record[name] = (every, np.full([len(coordinates[dim]) for dim in every], np.nan, np.float32))
    corner_sum = np.zeros((layers, heads, *corner))
    corner_count = np.zeros(corner)
    for s, one in enumerate(maps):
        t, k = one.shape[-2:]
        keep, near = min(first, k), np.s_[: min(corner[0], t), : min(corner[1], k)]
        corner_count[near] += 1
        for layer in range(layers):
            a = one[layer].astype(np.float64)
            row = {name: record[name].values[s, layer] for name in dims}
            row["sink_mass"][:, :t] = 0.0
            row["sink_mass"][:, :t, :keep] = a[:, :, :keep]
            row["virtual_sink_mass"][:, :t] = np.maximum(1.0 - a.sum(-1), 0.0)
            row["received"][:, :k] = a.sum(-2)
            row["entropy"][:, :t] = entr(a).sum(-1)
            if t == k:
                row["distance_mass"][:, :t] = _distance_mass(a, causal)
            rows, columns = (at[at < end] for at, end in zip(cells.values(), (t, k), strict=True))
            row["attention_map"][:, : len(rows), : len(columns)] = _pooled(a, rows, columns)
            corner_sum[layer, :, *near] += a[:, *near]
    mean = np.divide(corner_sum, corner_count, out=np.full_like(corner_sum, np.nan), where=corner_count > 0)
    if causal:
        mean[..., np.triu(np.ones(corner, dtype=bool), k=1)] = np.nan
    if not bool((record["virtual_sink_mass"] > ROUNDING).any()):
        record = record.drop_vars("virtual_sink_mass")
    record["mean_probability"] = (("layer", "head", "corner_query", "corner_key"), mean.astype(np.float32))
    for held in record.data_vars.values():
        held.attrs["dims"] = " ".join(map(str, held.dims))
    record["attention_map"].attrs["pool"] = "mass"
    return record


def _cells(length: int) -> np.ndarray:
    """The first position in each cell of a map."""
    return (
        np.arange(length) if length <= FULL_RESOLUTION else np.arange(POOLED_RESOLUTION) * length // POOLED_RESOLUTION
    )


def _pooled(a: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[head, query, key] to [head, cell, cell]: mean over the cell's queries of the mass on the cell's keys."""
    if a.shape[-2:] == (len(rows), len(columns)):
        return a
    queries_per_cell = np.diff(np.append(rows, a.shape[-2]))
    mass = np.add.reduceat(np.add.reduceat(a, columns, axis=-1), rows, axis=-2)
    return mass / queries_per_cell[:, None]


def _distance_mass(a: np.ndarray, causal: bool) -> np.ndarray:
    """[head, query, key] to [head, distance]: sum over queries of the mass on the key `distance` before (or after)."""
    sums = np.stack([np.trace(a, offset=-d, axis1=-2, axis2=-1) for d in range(a.shape[-1])], axis=-1)
    return sums if causal else sums + np.pad(_distance_mass(a.swapaxes(-1, -2), True)[..., 1:], ((0, 0), (1, 0)))


def _provenance(lengths: np.ndarray, causal: bool, tokens: np.ndarray | None) -> dict[str, Any]:
    found = {
        "model": "unknown",
        "attention": "maps given",
        "causal": int(causal),
        "bos": "unknown",
        "tokens": int(lengths.sum()),
        "sequences": len(lengths),
        "sinkscope": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if tokens is not None:
        rows = ["\0".join(str(token) for token in row[:n]) for row, n in zip(tokens, lengths, strict=True)]
        found["tokens_sha256"] = hashlib.sha256("\0\0".join(rows).encode("utf-8", "surrogatepass")).hexdigest()
    return found


def _checked_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    for name, value in attributes.items():
        if not isinstance(value, (str, int, float, np.bool_, np.number)):
            kind = type(value).__name__
            raise SinkscopeError(
                f"attribute {name}= is a {kind}, which a record cannot store: give a number or a string."
            )
    if attributes.get("causal", 0) not in (0, 1):
        raise SinkscopeError(f"attribute causal={attributes['causal']!r} must be 1 (a query sees no later key) or 0.")
    return {name: int(value) if isinstance(value, (bool, np.bool_)) else value for name, value in attributes.items()}


def _checked_maps(array: Any) -> list[np.ndarray]:
    """One [layer, head, query, key] array per sequence; layers and heads the same for all."""
    maps = _one_per_sequence(array)
    if len(shapes := {each.shape[:2] for each in maps}) > 1:
        raise SinkscopeError(
            f"the sequences' maps have different numbers of layers and heads {sorted(shapes)}: "
            "give maps of one model, [layer, head, query, key] each."
        )
    for each in maps:
        _check(each)
    square = {each.shape[-2] == each.shape[-1] for each in maps if each.shape[-1] > 1}
    if len(square) > 1:
        raise SinkscopeError(
            "some maps have as many queries as keys and others do not: give maps of tokens that look at "
            "their own text, or maps of cross-attention, not both."
        )
    return maps


def _one_per_sequence(array: Any) -> list[np.ndarray]:
    if isinstance(array, (tuple, list)) and len(array) > 0 and all(getattr(each, "ndim", 0) == 4 for each in array):
        parts = [_as_array(each) for each in array]
        alike = len({each.shape for each in parts}) == 1
        if isinstance(array, tuple):
            if not alike:
                raise SinkscopeError(
                    "the layers' maps have different shapes: a tuple is read as one [sequence, head, query, key] array "
                    "per layer, all of one shape; give a list for one array per sequence."
                )
            return list(np.stack(parts, axis=1))
        if alike and len(parts) > 1 and len(parts[0]) == 1:
            raise SinkscopeError(
                f"a list of {len(parts)} arrays of shape {parts[0].shape} may hold one array per layer or one per "
                "sequence: give a tuple for one [sequence, head, query, key] array per layer, or stack them yourself.",
                page="Maps from another framework",
            )
        return parts
    whole = _as_array(array)
    if whole.ndim not in (4, 5):
        raise SinkscopeError(
            f"maps of shape {whole.shape} have {whole.ndim} dimensions: "
            "give [layer, head, query, key] or [sequence, layer, head, query, key]."
        )
    if 0 in whole.shape:
        raise SinkscopeError(f"maps of shape {whole.shape} are empty: give at least one layer, one head and one token.")
    return [whole] if whole.ndim == 4 else list(whole)


def _as_array(value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SinkscopeError(
            f"numpy cannot read these maps ({error}): give a rectangular array of numbers on the CPU, "
            "such as maps.detach().float().cpu() of a torch tensor."
        ) from error
    # Extension types such as ml_dtypes' bfloat16 have kind "V" and still turn into float32.
    if array.dtype.kind in "V" and array.dtype.names is None:
        with contextlib.suppress(TypeError, ValueError):
            array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise SinkscopeError(
            f"maps hold values of type {array.dtype}, not real numbers: give an array of probabilities."
        )
    return array


def _check(maps: np.ndarray) -> None:
    if 0 in maps.shape:
        raise SinkscopeError(f"maps of shape {maps.shape} are empty: give at least one layer, one head and one token.")
    for layer, values in enumerate(maps):
        if not np.isfinite(values).all():
            raise SinkscopeError(
                f"the maps of layer {layer} hold NaN or infinity: give finite probabilities, with 0 for masked keys."
            )
        if values.min() < 0:
            raise SinkscopeError(
                f"the maps of layer {layer} hold {float(values.min()):.4g}, below zero: give probabilities "
                "(after the softmax), not logits.",
                page="Maps from another framework",
            )
        if (total := float(values.sum(-1, dtype=np.float64).max())) > 1 + ROUNDING:
            raise SinkscopeError(
                f"a row of the maps of layer {layer} sums to {total:.4g}: give probabilities (after the "
                "softmax) that sum to at most 1."
            )


def _checked_tokens(tokens: Any, lengths: np.ndarray) -> np.ndarray | None:
    """Texts (objects) or ids (int64), [sequence, token]; past a text's end an id is -1 and a text is empty."""
    if tokens is None:
        return None
    if isinstance(tokens, (str, bytes)):
        raise SinkscopeError(f"tokens is one string, not the tokens of the maps: {FORMS}.")
    rows = _rows(tokens, len(lengths))
    for s, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if len(row) != length:
            raise SinkscopeError(
                f"sequence {s} has {len(row)} tokens, but its maps have {length}: give one token per position."
            )
    kinds = {_kind(token) for row in rows for token in row}
    if kinds not in ({"text"}, {"id"}):
        raise SinkscopeError(f"tokens mix texts, ids or other things: {FORMS}.")
    if kinds == {"id"} and any(int(token) < 0 for row in rows for token in row):
        raise SinkscopeError("a token id is negative: give ids of 0 or more, as the tokenizer makes them.")
    plain, blank, dtype = (str, "", object) if kinds == {"text"} else (int, -1, np.int64)
    filled = np.full((len(rows), int(lengths.max())), blank, dtype=dtype)
    for s, row in enumerate(rows):
        filled[s, : len(row)] = [plain(token) for token in row]
    return filled


def _rows(tokens: Any, sequences: int) -> list[list[Any]]:
    items = _listed(tokens, f"tokens is of type {type(tokens).__name__}")
    if items and not any(_kind(item) == "other" for item in items):
        return [items] * sequences
    rows = [_listed(item, "tokens mix texts, ids or other things") for item in items]
    if len(rows) != sequences:
        raise SinkscopeError(f"tokens has {len(rows)} lists for {sequences} sequences: give one list per sequence.")
    return rows


def _listed(values: Any, problem: str) -> list[Any]:
    try:
        return list(values.tolist() if hasattr(values, "tolist") else values)
    except TypeError as error:
        raise SinkscopeError(f"{problem}: {FORMS}.") from error


def _kind(token: Any) -> str:
    if isinstance(token, str):
        return "text"
    if isinstance(token, (int, np.integer)) and not isinstance(token, bool):
        return "id"
    # A list of 0-d tensors, as iterating over a tensor of ids gives.
    if getattr(token, "shape", None) == () and hasattr(token, "item") and isinstance(token.item(), int):
        return "id"
    return "other"
