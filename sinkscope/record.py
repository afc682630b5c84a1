"""Records on disk: one NetCDF file each, written beside and renamed, so that a torn file is never seen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.errors import SinkscopeError
from sinkscope.files import replacing

STREAMED = ("perplexity", "ablation", "decode", "recall")
"""Kinds of streaming records, as their attrs["kind"] says."""


def first_evicted(cache_size: int) -> int:
    """The first token whose loss can differ from the dense one.

    Query t sees the last `cache_size` tokens and itself; t = cache_size + 1 is the first not to see them all, and
    predicts the token after it.
    """
    return cache_size + 2


def save_record(record: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write what `capture`, `measure` or `from_maps` made as NetCDF-4 (HDF5, compressed); returns the path.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
    """
    path = Path(path)
    encoding = {
        name: {"zlib": True, "complevel": 1, "shuffle": True}
        for name, variable in record.variables.items()
        if variable.dtype.kind in "fi" and variable.ndim > 0
    }
    with replacing(path, "the record") as partial:
        _storable(record).to_netcdf(partial, engine="h5netcdf", encoding=encoding)
    return path


def open_record(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a record that `save_record` wrote, whole, into memory.

    Raises:
        SinkscopeError: no such file, or not a record.
    """
    path = Path(path)
    if not path.is_file():
        raise SinkscopeError(f"there is no record at {path}.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            record = stored.load()
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise SinkscopeError(f"{path} is not a record of sinkscope, or it is damaged ({problem}).") from problem
    measured = {"layer", "policy"} & set(record.dims) and "length" in record.coords
    if not (measured or record.attrs.get("kind") in STREAMED):
        raise SinkscopeError(f"{path} is a NetCDF file but not a record of sinkscope (no layers, policies or lengths).")
    return record


def _storable(record: xr.Dataset) -> xr.Dataset:
    """The record as HDF5 can hold it: plain attributes, and strings without the null bytes that would end them."""
    record = record.assign_attrs({name: _plain(value) for name, value in record.attrs.items()})
    for variable in record.variables.values():
        variable.attrs = {name: _plain(value) for name, value in variable.attrs.items()}
    if "token_text" not in record.coords:
        return record
    texts = record.token_text
    shown = np.array([_plain(str(text)) for text in texts.values.flat], dtype=object)
    return record.assign_coords(token_text=(texts.dims, shown.reshape(texts.shape)))


def _plain(value: Any) -> Any:
    """A number, or a string with U+2400 for null bytes and ? for what is no character."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, float, np.number)):
        return value
    return str(value).replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8")
