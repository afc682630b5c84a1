"""The border of records: what is none, or not whole, is refused before anything reads it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import pandas as pd
import xarray as xr

from sinkscope.arguments import check_types
from sinkscope.errors import SinkscopeError, first_line, shown

P = ParamSpec("P")
R = TypeVar("R")


def reads(function: Callable[P, R]) -> Callable[P, R]:
    """A function of a record or of a table, its first argument, that refuses what it cannot read.

    It says in one sentence what is wrong: no record at all, nothing in it, or a variable, a coordinate or an attribute
    that is missing or is something else than sinkscope makes of it. Other arguments are checked as by `checks_types`,
    and blamed themselves where the record can be read without them.
    """
    signature = inspect.signature(function)
    first = next(iter(signature.parameters.values()))
    takes_table = "DataFrame" in str(first.annotation)
    takes_record = "Dataset" in str(first.annotation)

    @functools.wraps(function)
    def read(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = signature.bind(*args, **kwargs).arguments
        given = arguments.pop(first.name)
        check_source(given, function.__name__, takes_record, takes_table)
        check_types(signature, arguments)
        try:
            return function(*args, **kwargs)
        except SinkscopeError:
            raise
        except Exception as problem:  # what pandas and xarray raise depends on how a record was changed
            what = first_line(problem)
            if isinstance(problem, KeyError):  # of a name alone, or with xarray's own words
                what = f"it has no {problem}" if str(problem.args[0]).isidentifier() else str(problem.args[0])
            kind = "record" if isinstance(given, xr.Dataset) else "table"
            if blamed := _blamed(function, signature, given, arguments):
                told = " and ".join(f"{name}={shown(arguments[name])}" for name in blamed)
                raise SinkscopeError(
                    f"{function.__name__} can read this {kind}, but not with {told} ({what}): leave that out, or give "
                    "what fits it."
                ) from problem
            raise SinkscopeError(
                f"{function.__name__} cannot read this {kind} ({what}): give one as sinkscope makes it, with all its "
                "variables, dimensions and attributes."
            ) from problem

    return read


def _blamed(
    function: Callable[..., Any], signature: inspect.Signature, given: Any, arguments: Mapping[str, Any]
) -> list[str]:
    """The arguments beside a record, of those that may be left out, without which a reader reads it; none where it
    cannot anyway."""
    optional = [name for name in arguments if signature.parameters[name].default is not inspect.Parameter.empty]
    for some in [*([name] for name in optional), optional]:
        with suppress(Exception):
            function(given, **{name: value for name, value in arguments.items() if name not in some})
            return some
    return []


def check_source(given: Any, reader: str, takes_record: bool = True, takes_table: bool = False) -> None:
    """Raise SinkscopeError for what is no record or table, or holds nothing."""
    if takes_table and isinstance(given, pd.DataFrame):
        if not len(given.columns):
            raise SinkscopeError(f"{reader} reads a table, and this one has no columns: give one that sinkscope made.")
        return
    words = " or ".join(["a record"] * takes_record + ["a table"] * takes_table)
    if not (takes_record and isinstance(given, xr.Dataset)):
        raise SinkscopeError(f"{reader} reads {words}, not a {type(given).__name__}: {_advice(given)}.")
    if empty := [str(dim) for dim, size in given.sizes.items() if not size]:
        raise SinkscopeError(f"{reader} reads {words}, and this one holds no {empty[0]}: select one at least.")


def _advice(given: Any) -> str:
    """How to come from what was given to a record."""
    if isinstance(given, xr.DataArray):
        return "give the whole record that it is from"
    if isinstance(given, (str, bytes)) or hasattr(given, "__fspath__"):
        return "sinkscope.open_record reads one from a file"
    if isinstance(getattr(type(given), "record", None), property):
        return "give its `record`"
    if isinstance(given, (Mapping, list, tuple, set)):
        return "give one of them at a time"
    return "give what sinkscope.measure and the like return"
