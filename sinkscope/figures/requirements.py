"""What a figure needs of a record or a table, the sentence that says what is missing, and axes of layers and heads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.variables import advice, whole
from sinkscope.errors import SinkscopeError
from sinkscope.figures.marks import Axis
from sinkscope.figures.style import layer_ticks


def need(record: xr.Dataset, figure: str, *variables: str) -> xr.Dataset:
    """The record with sequence, layer and head as dimensions, also where one was selected away.

    Raises:
        SinkscopeError: it does not hold every one of `variables`.
    """
    for variable in variables:
        if variable not in record:
            raise SinkscopeError(f"{figure} needs {variable}, which this record does not hold: {advice(variable)}.")
    return whole(record)


def need_columns(table: pd.DataFrame, figure: str, *columns: str) -> None:
    """Raise SinkscopeError unless the table holds every one of `columns`, and a row."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise SinkscopeError(f"{figure} needs a table with the columns {', '.join(columns)}: {missing[0]} is missing.")
    if not len(table):
        raise SinkscopeError(f"{figure} needs a table with at least one row, and this one is empty.")


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


def tokens_named(first: int) -> str:
    """What the first so many tokens are called."""
    return "first token" if first == 1 else f"first {first} tokens"


def over(statistic: Callable[..., Any], values: np.ndarray, *arguments: Any, **options: Any) -> Any:
    """A NaN-skipping statistic of numpy; NaN, and no warning, where there is nothing (a layer that was skipped)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return statistic(values, *arguments, **options)


def numbers_of(record: xr.Dataset, dim: str) -> np.ndarray:
    """The numbers of the layers or heads of a record, as its coordinate has them."""
    return np.asarray(record[dim].values, dtype=int).reshape(-1)


def layer_axis(layers: np.ndarray, most: int = 12) -> Axis:
    """An axis along which lines run over these layers."""
    return Axis("layer", ticks=[int(layers[at]) for at in layer_ticks(len(layers), most)], margin=0.03)


def cell_axis(label: str, numbers: np.ndarray, most: int = 12) -> Axis:
    """An axis with one cell for each of these layers or heads."""
    ticks = layer_ticks(len(numbers), most)
    counted = np.array_equal(numbers, np.arange(len(numbers)))
    return Axis(label, ticks=ticks, names=None if counted else [str(numbers[at]) for at in ticks])
