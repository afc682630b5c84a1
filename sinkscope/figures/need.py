"""What a figure needs of a record, and the sentence that says which probe would have measured it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.analysis.variables import advice
from sinkscope.errors import SinkscopeError


def need(record: xr.Dataset, figure: str, *variables: str) -> None:
    """Raise SinkscopeError unless the record holds every one of `variables`."""
    for variable in variables:
        if variable not in record:
            raise SinkscopeError(f"{figure} needs {variable}, which this record does not hold: {advice(variable)}.")


def first_keys(record: xr.Dataset, first: int) -> int:
    """`first`, checked against the number of leading keys the record kept apart."""
    kept = record.sizes["sink"]
    if not 1 <= first <= kept:
        raise SinkscopeError(
            f"first={first} is not between 1 and {kept}, the number of first keys this record keeps: "
            f"choose fewer, or measure again with SinkMass(first={max(first, 1)})."
        )
    return first


def index(record: xr.Dataset, dim: str, value: int) -> int:
    """`value` as a position along `dim`, or SinkscopeError naming what there is."""
    size = record.sizes[dim]
    if not 0 <= value < size:
        raise SinkscopeError(f"{dim} {value} is out of range: this record has {dim}s 0 to {size - 1}.")
    return int(value)


def lengths(record: xr.Dataset) -> np.ndarray:
    """Real tokens of each sequence, [sequence] int."""
    if "length" in record.coords:
        return np.asarray(record["length"].values, dtype=int).reshape(-1)
    longest = max(record.sizes[dim] for dim in ("token", "query", "key") if dim in record.sizes)
    return np.full(record.sizes.get("sequence", 1), longest)


def is_causal(record: xr.Dataset) -> bool:
    return bool(record.attrs.get("causal", 1))


def layer_ticks(size: int, most: int = 12) -> list[int]:
    """Whole numbers to mark on an axis of `size` layers or heads."""
    step = next(s for s in (1, 2, 3, 5, 10, 20, 50, 100, 1000) if size / s <= most)
    return list(range(0, size, step))


def over(statistic: Callable[..., Any], values: np.ndarray, *given: Any, **options: Any) -> Any:
    """A NaN-skipping statistic of numpy; NaN, and no warning, where there is nothing (a layer that was skipped)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return statistic(values, *given, **options)
