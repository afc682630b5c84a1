"""Records on disk: one NetCDF file each, written beside and renamed, so that a torn file is never seen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from sinkscope.errors import SinkscopeError


def save_record(record: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a record as NetCDF-4 (HDF5, compressed).

    Args:
        record: what `capture`, `measure` or `from_maps` made.
        path: the file; an older one is replaced in one step.

    Returns:
        The path.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
    """
    path = Path(path)
    encoding = {
        name: {"zlib": True, "complevel": 1, "shuffle": True}
        for name, variable in record.variables.items()
        if variable.dtype.kind in "fi" and variable.ndim > 0
    }
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(descriptor)
        _storable(record).to_netcdf(partial, engine="h5netcdf", encoding=encoding)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
        partial = None
    except OSError as problem:
        raise SinkscopeError(f"cannot write the record to {path}: {problem.strerror or problem}.") from problem
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
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
    except (OSError, ValueError, KeyError) as problem:
        raise SinkscopeError(f"{path} is not a record of sinkscope, or it is damaged ({problem}).") from problem
    if "layer" not in record.dims or "length" not in record.coords:
        raise SinkscopeError(f"{path} is a NetCDF file but not a record of sinkscope (no layers or lengths in it).")
    return record


def _storable(record: xr.Dataset) -> xr.Dataset:
    """The record as HDF5 can hold it: U+2400 for null bytes, where its strings would end, and plain attributes."""
    record = record.assign_attrs(
        {
            name: value if isinstance(value, (int, float, np.number)) else str(value)
            for name, value in record.attrs.items()
        }
    )
    if "token_text" not in record.coords:
        return record
    texts = record.token_text
    shown = [str(text).replace("\0", "\u2400") for text in texts.values.flat]
    return record.assign_coords(token_text=(texts.dims, np.array(shown, dtype=object).reshape(texts.shape)))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
