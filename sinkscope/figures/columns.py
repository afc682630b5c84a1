"""What a figure needs of a table, and the sentence that says what is missing."""

from __future__ import annotations

import pandas as pd

from sinkscope.errors import SinkscopeError


def need_columns(table: pd.DataFrame, figure: str, *columns: str) -> None:
    """Raise SinkscopeError unless the table holds every one of `columns`, and a row."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise SinkscopeError(f"{figure} needs a table with the columns {', '.join(columns)}: {missing[0]} is missing.")
    if not len(table):
        raise SinkscopeError(f"{figure} needs a table with at least one row, and this one is empty.")
