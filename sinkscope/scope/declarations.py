"""What probes declare, and whether what they give is that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkscope.attention.placement import passed_over
from sinkscope.errors import SinkscopeError
from sinkscope.probes import HiddenProbe, LayerProbe, Measured, Measurements, Probe, TileProbe, Variable

OF_THE_RECORD = ("sequence", "layer", "token", "token_id", "token_text", "length")
SHARED = ("head", "kv_head", "query", "key", "map_query", "map_key")
"""Dimensions that variables of several probes have."""
NUMBERED = ("head", "kv_head", "key")
"""Dimensions in which coordinates are numbers of what a layer has."""
WHOLE = torch.iinfo(torch.int32).max
ODD = (torch.uint16, torch.uint32, torch.uint64)  # which torch itself does little with
LARGE = 32 << 20  # bytes from which the record keeps an array itself, and no copy


IDEAS = {LayerProbe: ("observe",), TileProbe: ("start", "add", "finish"), HiddenProbe: ("observe_hidden",)}
"""What a probe is asked, by its kind."""


def check_kind(probe: Probe) -> None:
    """Raise SinkscopeError for a probe of two kinds, or one with a method that nobody asks."""
    kind, kinds = type(probe).__name__, [each for each in IDEAS if isinstance(probe, each)]
    if len(kinds) > 1:
        raise SinkscopeError(
            f"{kind} is a {' and a '.join(each.__name__ for each in kinds)} at once; make two probes of it, with "
            "variables of their own."
        )
    if member := passed_over(type(probe), sum(IDEAS.values(), ()), IDEAS[kinds[0]]):
        raise SinkscopeError(
            f"{kind} is a {kinds[0].__name__}, so nobody asks the `{member}` of its own that it gives; leave it out, "
            "or give it another name."
        )


def check_declared(probe: Probe) -> None:
    """Raise SinkscopeError unless a probe declares variables that a record can hold."""
    kind = type(probe).__name__
    if not isinstance(probe.makes, Mapping):
        raise SinkscopeError(
            f"{kind} has {probe.makes!r} for `makes`; give a mapping from names to sinkscope.Variable(dims=...).",
            page="A policy, a normaliser or a probe of my own",
        )
    for name, variable in probe.makes.items():
        if not isinstance(name, str) or not name or name != name.strip() or "/" in name:
            raise SinkscopeError(f"{kind} declares {name!r}, which names no variable of a file; give words without /.")
        if not isinstance(variable, Variable) or not _are_names(variable.dims) or variable.dims[:1] != ("sequence",):
            raise SinkscopeError(
                f"{kind} declares `{name}` as {variable!r}; expected a sinkscope.Variable whose first dimension is "
                '"sequence", and the others a tuple of names.'
            )
        if not isinstance(variable.units, str) or not isinstance(variable.description, str):
            raise SinkscopeError(f"{kind} declares `{name}` as {variable!r}; give units and description as words.")
        taken = {*OF_THE_RECORD, *SHARED}
        if (
            len({*variable.dims, name}) <= len(variable.dims)
            or name in taken
            or {*variable.dims} & {*OF_THE_RECORD} - {"sequence", "token"}
        ):
            raise SinkscopeError(
                f"{kind} declares `{name}` with the dimensions {variable.dims}; each needs a name of its own, and "
                f"the record itself has {', '.join((*OF_THE_RECORD, *SHARED))}."
            )


def _are_names(dims: Any) -> bool:
    return isinstance(dims, tuple) and all(isinstance(dim, str) and dim for dim in dims)


def check_coordinates(probes: Sequence[Probe]) -> None:
    """Raise SinkscopeError unless the coordinates of probes are arrays with names of their own, as their dimensions."""
    makers = {name: probe for probe in probes for name in probe.makes}
    having = {dim: probe for probe in probes for variable in probe.makes.values() for dim in variable.dims}
    known: dict[str, np.ndarray] = {}
    for probe in probes:
        kind, given = type(probe).__name__, probe.coordinates
        if not isinstance(given, Mapping):
            raise SinkscopeError(f"{kind} has {given!r} for `coordinates`; give a mapping from names to 1-D arrays.")
        own = {dim for variable in probe.makes.values() for dim in variable.dims}
        for name, numbers in given.items():
            if name in (*OF_THE_RECORD, *SHARED) or name in makers or (name in having and name not in own):
                raise SinkscopeError(
                    f"{kind} has coordinates called {name!r}, as the record or another variable has; give them a name "
                    "of their own."
                )
            held = np.asarray(numbers)
            if not isinstance(name, str) or not name or "/" in name or held.ndim != 1 or held.dtype.kind not in "biufU":
                raise SinkscopeError(
                    f"{kind} has the coordinates {name!r}: {numbers!r}; give a 1-D array of numbers, by name."
                )
            if not np.array_equal(known.setdefault(name, held), held):
                raise SinkscopeError(f"{kind} and another probe have other coordinates {name!r}; give one of them.")
    for probe in probes:
        for name in probe.makes:
            if name in having:
                raise SinkscopeError(
                    f"{type(probe).__name__} makes `{name}`, and {type(having[name]).__name__} has a dimension of that "
                    "name; give the variable another one."
                )


def placed(probe: Probe, sizes: Mapping[Any, int]) -> dict[str, tuple[str, np.ndarray]]:
    """The coordinates of a probe for a record of these sizes."""
    found = {}
    for name, numbers in probe.coordinates.items():
        held = np.asarray(numbers)
        if sizes.get(name, len(held)) != len(held):
            raise SinkscopeError(
                f"{type(probe).__name__} has {len(held)} coordinates {name!r} for {sizes[name]} entries along it; give "
                "one for each."
            )
        found[name] = (name, held)
    return found


def declared(probe: Probe, measured: Measurements, sizes: Mapping[str, int]) -> dict[str, Measured]:
    """What a probe gave for `sizes` sequences, heads, queries and tokens, or SinkscopeError when it did not declare
    that, or with other dimensions."""
    kind = type(probe).__name__
    if not isinstance(measured, Mapping):
        raise SinkscopeError(f"{kind} gave a {type(measured).__name__}; expected a mapping by name.")
    found = {}
    for name, given in measured.items():
        held = given if isinstance(given, Measured) else Measured(given)
        variable = probe.makes.get(name)
        if variable is None:
            raise SinkscopeError(
                f"{kind} gave `{name}`, which it does not declare (its `makes` has "
                f"{', '.join(probe.makes) or 'nothing'}); add {name!r}: sinkscope.Variable(dims=...) to it.",
                page="A policy, a normaliser or a probe of my own",
            )
        values, dims = held.values, variable.dims
        is_tensor = isinstance(values, Tensor)
        if not is_tensor or _is_odd(values) or values.dim() != len(dims):
            shape = f"{values.dtype} {tuple(values.shape)}" if is_tensor else type(values).__name__
            raise SinkscopeError(
                f"{kind} gave `{name}` as {shape}; it declares a tensor of real numbers "
                f"[{', '.join(dims)}] for each layer, dense, as float32 or int32."
            )
        coords = _checked_coords(kind, name, held, dims)
        for dim, size in zip(dims, values.shape, strict=True):
            if dim not in coords and size != sizes.get(dim, size):
                raise SinkscopeError(
                    f"{kind} gave `{name}` with {size} entries along {dim!r}, and there are {sizes[dim]}; give one for "
                    "each, NaN where there is nothing, or a dimension of another name."
                )
            if dim in NUMBERED and dim in coords and dim in sizes and not np.isin(coords[dim], range(sizes[dim])).all():
                raise SinkscopeError(
                    f"{kind} gave `{name}` for the {dim}s {coords[dim].tolist()}, of {sizes[dim]} that there are; "
                    "number them from 0."
                )
        _check_range(kind, name, values)
        if values.is_cpu and values.nbytes >= LARGE and not type(probe).__module__.startswith("sinkscope."):
            values = values.clone()  # smaller ones are copied anyway, and built-in probes use no tensor again
        found[name] = Measured(values, coords)
    return found


def _is_odd(values: Tensor) -> bool:
    """Whether a record cannot hold some numbers as they are."""
    is_dense = values.layout == torch.strided and not values.is_meta and not values.is_quantized
    return not is_dense or values.is_complex() or values.dtype in ODD


def _checked_coords(kind: str, name: str, held: Measured, dims: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """The coordinates given with some numbers, as arrays."""
    if not held.coords:
        return {}
    coords = {dim: np.asarray(at) for dim, at in held.coords.items()}
    for dim, at in coords.items():
        size = held.values.shape[dims.index(dim)] if dim in dims[1:] else None
        if at.shape != (size,) or len(np.unique(at)) < len(at):
            raise SinkscopeError(
                f"{kind} gave `{name}` [{', '.join(dims)}] with {at.size} coordinates along {dim!r}; give different "
                f"ones, {'of dimensions that it has' if size is None else f'{size} of them'}."
            )
    return coords


def _check_range(kind: str, name: str, values: Tensor) -> None:
    """Raise SinkscopeError where 32 bits do not hold some numbers."""
    if values.dtype == torch.int64 and values.numel():
        largest = max(int(values.min()), int(values.max()), key=abs)
        if abs(largest) > WHOLE:
            raise SinkscopeError(f"{kind} gave the whole number {largest} for `{name}`; a record holds 32 bits.")
    if values.dtype == torch.float64 and bool((values.float().isinf() & values.isfinite()).any()):
        raise SinkscopeError(
            f"{kind} gave numbers beyond 3e38 for `{name}`; a record holds 32 bits, so give their logarithm."
        )
