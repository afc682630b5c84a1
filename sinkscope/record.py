"""Records on disk: one NetCDF file each, with a checksum behind it, written beside and renamed.

HDF5 takes damaged bytes for numbers, or never comes back from them. So it sees no bytes but those that were written: a
last line behind the end of the HDF5 file, which HDF5 does not read, holds the SHA-256 of all before it. xarray, ncdump
and h5py open such a file as any other.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError, first_line
from sinkscope.files import write_bytes
from sinkscope.hdf5_trial import try_hdf5
from sinkscope.seals import has_seal, sealed, unsealed

KIND = ".nc"
MOST = 4 * 2**30
"""Bytes that a record may take, as a file and in memory, unless `open_record` is told otherwise."""

STREAMED = ("perplexity", "ablation", "decode", "recall", "task", "atlas")
"""Kinds of streaming records, as their attrs["kind"] says."""


@checks_types
def first_evicted(cache_size: int) -> int:
    """The first token whose loss can differ from the dense one.

    Query t sees the last `cache_size` tokens and itself; t = cache_size + 1 is the first not to see them all, and
    predicts the token after it.

    >>> sinkscope.first_evicted(512)
    514
    """
    return cache_size + 2


@checks_types
def save_record(record: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write what `capture`, `measure` or `from_maps` made as NetCDF-4 (HDF5, compressed); returns the path.

    >>> sinkscope.save_record(record, "measured.nc")
    PosixPath('measured.nc')

    Raises:
        SinkscopeError: it cannot be stored, the folder cannot be written, or the disk is full; an older file stays as
            it was. Or there is a file of that name that is no record.
    """
    data, path = record_bytes(record), Path(path)
    with _trying("write to", path):
        if path.is_file() and path.stat().st_size and not has_seal(path, KIND):
            raise SinkscopeError(f"{path} is there already and is no whole record of sinkscope: give another name.")
    write_bytes(path, data, "the record")
    return path


def record_bytes(record: xr.Dataset) -> bytes:
    """The file that `save_record` writes, made in memory: HDF5 cannot go on from a disk that is full."""
    if not isinstance(record, xr.Dataset):
        raise SinkscopeError(f"a {type(record).__name__} is no record: give an xarray.Dataset that was measured.")
    try:
        storable = _storable(record)
        encoding = {
            name: {"zlib": True, "complevel": 1, "shuffle": True}
            for name, variable in storable.variables.items()
            if variable.dtype.kind in "fi" and variable.ndim > 0
        }
        with _alone():
            data = bytes(storable.to_netcdf(engine="h5netcdf", encoding=encoding))
    except Exception as problem:  # what xarray and h5py raise depends on what they were given
        raise SinkscopeError(f"the record cannot be stored as NetCDF: {first_line(problem)}.") from problem
    return sealed(data, KIND)


@checks_types
def open_record(path: str | os.PathLike[str], *, max_memory: int = MOST) -> xr.Dataset:
    """Read a record that `save_record` wrote, whole, into memory.

    >>> record = sinkscope.open_record(sinkscope.save_record(record, "measured.nc"))
    >>> record.attrs["model"]
    'LlamaForCausalLM'

    Args:
        path: of the file.
        max_memory: bytes that it may take, as a file and in memory.

    Raises:
        SinkscopeError: no such file, not a record, without its checksum, damaged, or too large.
    """
    path = Path(path)
    with _trying("read", path):
        if not path.is_file():
            raise SinkscopeError(f"there is no record at {path}.")
        if not has_seal(path, KIND):
            raise SinkscopeError(
                f"{path} is not a record of sinkscope, or it is damaged or was changed: the checksum that "
                "`save_record` puts at its end is not there. If you trust it, open it with xarray.open_dataset and "
                "save it again."
            )
        size = path.stat().st_size
        if size > max_memory:
            raise SinkscopeError(f"{path} is {size:,} bytes long, and max_memory is {max_memory:,}: give more.")
        data = path.read_bytes()
    return record_of(data, path, max_memory)


def record_of(data: bytes, path: Path, max_memory: int = MOST) -> xr.Dataset:
    """The record in the bytes of a file, and `open_record`'s errors; `path` is where they are from."""
    inside = unsealed(data, KIND)
    if inside is None:
        raise SinkscopeError(f"{path} is damaged, or was changed: it has not the checksum that it was saved with.")
    try:
        try_hdf5(inside, max_memory)
        with xr.open_dataset(io.BytesIO(inside), engine="h5netcdf") as stored:
            record = stored.load()
    except Exception as problem:
        raise SinkscopeError(f"{path} is not a record of sinkscope ({first_line(problem)}).") from problem
    measured = {"layer", "policy"} & set(record.dims) and "length" in record.coords
    if not (measured or record.attrs.get("kind") in STREAMED):
        raise SinkscopeError(f"{path} is a NetCDF file but not a record of sinkscope (no layers, policies or lengths).")
    return record


@contextmanager
def _alone() -> Iterator[None]:
    """Where a Dask cluster is in use xarray asks it for a lock on the file, which these bytes in memory are not."""
    dask = sys.modules.get("dask")
    with nullcontext() if dask is None else dask.config.set(scheduler="synchronous"):
        yield


@contextmanager
def _trying(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except SinkscopeError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: a name with a null byte
        reason = getattr(problem, "strerror", None) or first_line(problem)
        raise SinkscopeError(f"cannot {what} {str(path)!r}: {reason}.") from problem


# by the rules of NetCDF, and of xarray's reader
_TAKEN = {"_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", "_Encoding", "coordinates"}
_HDF5, _BLANK = "_nc4_non_coord_", re.compile(r"\s")  # coordinates are listed by their names, between blanks


def _is_taken(name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether values would be read as others by an attribute: as times, booleans or texts, scaled, or hidden."""
    value = str(attributes[name])
    is_time = (name == "units" and "since" in value) or (name == "dtype" and "64[" in value)
    return name in _TAKEN or is_time or (name == "dtype" and value == "bool")


def _storable(record: xr.Dataset) -> xr.Dataset:
    """The record as HDF5 can hold it: plain attributes, and strings without the null bytes that would end them."""
    record = record.assign_attrs({name: _plain(value) for name, value in record.attrs.items()})
    for name, variable in record.variables.items():
        variable.attrs = {each: _plain(value) for each, value in variable.attrs.items()}
        taken = {each for each in variable.attrs if _is_taken(each, variable.attrs)}
        if variable.dtype.kind in "mM":
            taken &= _TAKEN  # times have such units indeed, and xarray refuses others
        if taken:
            raise SinkscopeError(
                f"{name!r} has the attribute {min(taken)!r}, by which its values would be read as others"
            )
        if str(name).startswith(_HDF5) or (
            name in record.coords and name not in record.dims and _BLANK.search(str(name))
        ):
            raise SinkscopeError(f"{name!r} is a name that NetCDF takes for something else")
        if variable.dtype.kind == "c":
            raise SinkscopeError(f"{name!r} holds complex numbers, which NetCDF has not")
    if "coordinates" in record.attrs or any("\0" in str(name) for name in record.attrs):
        raise SinkscopeError("it has an attribute called 'coordinates', or with a NUL in its name, which would be lost")
    texts = {}
    for name, variable in record.coords.items():
        held = variable.values
        if held.dtype.kind == "U" or (held.dtype.kind == "O" and all(isinstance(each, str) for each in held.flat)):
            shown = np.array([_plain(str(text)) for text in held.flat], dtype=object)
            texts[name] = variable.dims, shown.reshape(held.shape), variable.attrs
    return record.assign_coords(texts)


def _plain(value: Any) -> Any:
    """A number that HDF5 has, or a string with U+2400 for null bytes and ? for what is no character."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, np.integer)) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, (int, float, np.number)):
        return value
    return str(value).replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8")
