"""What a report shows, made when it is asked for; and what functions written elsewhere make, checked and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.analysis.reading import check_source
from sinkscope.errors import SinkscopeError, shown
from sinkscope.figures.requirements import lengths

T = TypeVar("T")
COLUMNS = ("quantity", "unit", "value", "lower", "upper", "null", "above_null", "measured_on", "note")
"""Of the summary."""
NUMBERS = ("value", "lower", "upper", "null")


class Made(Mapping[str, T]):
    """Things by name, each made once, when it is first asked for; what names there are is known beforehand."""

    def __init__(self, makers: Mapping[str, Callable[[], T]]) -> None:
        self._makers, self._made = dict(makers), dict[str, T]()

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def drop(self, name: str) -> None:
        """Have one thing less."""
        self._makers.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


class Figures(Made[Figure]): ...


class Tables(Made[pd.DataFrame]):
    """A copy for everyone who asks."""

    def __getitem__(self, name: str) -> pd.DataFrame:
        return super().__getitem__(name).copy()


@contextmanager
def named(what: str) -> Iterator[None]:
    """Whatever is raised, as a SinkscopeError that says of what."""
    try:
        yield
    except Exception as problem:
        raise SinkscopeError(f"{what} could not be made: {reason_of(problem)}") from problem


def reason_of(problem: Exception) -> str:
    """What a note says of an exception."""
    return str(problem) if isinstance(problem, SinkscopeError) else f"it raised {type(problem).__name__}: {problem}"


def checked(given: Any, kind: type[T], what: str, words: str) -> T:
    """What was made, or SinkscopeError when it is something else."""
    if not isinstance(given, kind):
        raise SinkscopeError(f"{what} is a {type(given).__name__}; give {words}.")
    return given


def summary_rows(given: Any, what: str) -> list[dict[str, Any]]:
    """The rows that an item gives for the summary, without what is None; SinkscopeError for what are none."""
    rows = [] if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable) else list(given)
    if not rows and given != []:
        raise SinkscopeError(f"{what} are a {type(given).__name__}; give a list of dicts, one for each quantity.")
    found = []
    for row in rows:
        known = isinstance(row, Mapping) and {"quantity", "value"} <= set(row) <= set(COLUMNS)
        told = {name: each for name, each in row.items() if each is not None} if known else {}
        numbers = [told[name] for name in NUMBERS if name in told]
        if "value" not in told or not all(isinstance(each, (int, float, np.number)) for each in numbers):
            raise SinkscopeError(
                f'{what} have the row {row!r}; give a dict with "quantity" and a number as "value", and if there are '
                f"any {', '.join(COLUMNS[1:2] + COLUMNS[3:6] + COLUMNS[8:])}, of which lower, upper and null are "
                "numbers."
            )
        found.append(told)
    return found


def plain_table(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """A table with all that its index says in columns; SinkscopeError for cells that are neither numbers nor words."""
    if isinstance(table.columns, pd.MultiIndex):
        table = table.set_axis([" ".join(filter(None, map(str, each))) for each in table.columns], axis=1)
    if any(table.index.names) or not pd.api.types.is_integer_dtype(table.index):  # else what a choice of rows left
        table = table.reset_index()
    if not table.columns.is_unique:
        raise SinkscopeError(f"{what} has two columns of one name; give each a name of its own.")
    for column in table.columns:
        for cell in table[column]:
            if not (cell is None or cell is pd.NA or isinstance(cell, (str, bool, int, float, np.number, np.bool_))):
                raise SinkscopeError(
                    f"{what} has {shown(cell)} in the column {column!r}; give numbers and words, None where there is "
                    "nothing."
                )
    return table


def read_only(given: Any) -> Any:
    """A record whose numbers a function cannot write over, which others read; anything else as it is."""
    if not isinstance(given, xr.Dataset):
        return given
    return given.copy(data={name: _view(each.values) for name, each in given.data_vars.items()})


def _view(values: np.ndarray) -> np.ndarray:
    seen = values.view()
    seen.flags.writeable = False
    return seen


def check_records(records: Any) -> None:
    """Raise SinkscopeError for what are no records by name."""
    if not isinstance(records, Mapping):
        raise SinkscopeError(f"a report is made of a record, or of records by name, not of {shown(records)}.")
    for name, record in records.items():
        check_source(record, f"a report (its record {shown(name)})")


def check_functions(thing: Any, *names: str) -> None:
    """Raise SinkscopeError for a part of an item or a section that is no function, no table of one and not None."""
    for name in names:
        given = getattr(thing, name)
        if not (given is None or callable(getattr(given, "make", given))):
            raise SinkscopeError(f"{name}={shown(given)} of a report is no function: give one of a record, or None.")


def measured_on(record: xr.Dataset) -> str:
    """`8 × 1,024 tokens`: sequences times their (shortest to longest) length."""
    real = lengths(record)
    span = f"{real.min():,}" if real.min() == real.max() else f"{real.min():,} to {real.max():,}"
    return f"{len(real):,} × {span} tokens"
