"""What a figure needs of a record or a table, the sentence that says what is missing, and axes of layers and heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.variables import advice, sequence_lengths, whole
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


def lengths(record: xr.Dataset) -> np.ndarray:
    """Real tokens of each sequence, [sequence] int."""
    return np.atleast_1d(sequence_lengths(record).values)


def tokens_named(first: int) -> str:
    """What the first so many tokens are called."""
    return "first token" if first == 1 else f"first {first} tokens"


def other_tokens(arm: str, count: int) -> str:
    """What the tokens of an arm of doses are called that is not on the first ones."""
    if arm == "next":
        return "the token right behind the sinks" if count == 1 else f"the {count} tokens right behind the sinks"
    return f"a {arm} token" if count == 1 else f"{count} {arm} tokens"


def layer_axis(layers: Any) -> Axis:
    """An axis along which lines run over these layers."""
    return Axis("layer", ticks=np.asarray(layers)[layer_ticks(len(layers))].tolist(), margin=0.03)


def cell_axis(record: xr.Dataset, dim: str, most: int = 12) -> Axis:
    """An axis with one cell for each layer or head of a record, called as its coordinate has them."""
    numbers = record[dim].values
    ticks = layer_ticks(len(numbers), most)
    counted = np.array_equal(numbers, np.arange(len(numbers)))
    return Axis(dim, ticks=ticks, names=None if counted else [str(numbers[at]) for at in ticks])
