"""Records and tables with something wrong with them, and what is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import sinkscope
from tests.fuzz import world
from tests.fuzz.ordinary import Make


def changed_records(record: xr.Dataset) -> Iterator[tuple[str, Make]]:
    """A record with something wrong with it, and what."""

    def change(said: str, make: Any) -> tuple[str, Make]:
        return said, lambda _: make(record.copy(deep=True))

    yield change("no attributes", lambda it: it.drop_attrs())
    yield change("hostile attributes", lambda it: it.assign_attrs(dict.fromkeys(it.attrs, 10**30)))
    yield change("attributes of None", lambda it: it.assign_attrs(dict.fromkeys(it.attrs)))
    yield change("attributes of tables", lambda it: it.assign_attrs({name: {"a": [1, {2}]} for name in it.attrs}))
    yield change("attributes by number", lambda it: it.assign_attrs({3: 4}))
    yield change("no coordinates", lambda it: it.drop_vars(it.coords))
    yield change("no variables", lambda it: it.drop_vars(it.data_vars))
    yield change("all NaN", lambda it: it.where(lambda each: each != each))
    yield change("all infinite", lambda it: it.map(lambda each: each * np.inf if each.dtype.kind == "f" else each))
    yield change("reversed dimensions", lambda it: it.transpose(*reversed(list(it.dims))))
    for dim in record.dims:
        yield change(f"no {dim}", lambda it, dim=dim: it.isel({dim: slice(0, 0)}))
        yield change(f"one {dim}", lambda it, dim=dim: it.isel({dim: 0}))
        yield change(f"a single {dim}", lambda it, dim=dim: it.isel({dim: [0]}))
        yield change(f"{dim} twice", lambda it, dim=dim: it.isel({dim: [0, 0]}))
        yield change(f"{dim} by another name", lambda it, dim=dim: it.rename({dim: "other"}))
        yield change(f"mean over {dim}", lambda it, dim=dim: it.mean(dim, numeric_only=True))
    for name in record.variables:
        yield change(f"without {name}", lambda it, name=name: it.drop_vars(name))
        yield change(f"{name} as text", lambda it, name=name: it.assign({name: it[name].astype(str)}))
        yield change(f"{name} complex", lambda it, name=name: it.assign({name: it[name] * 0 + 1j}))
        yield change(f"{name} NaN", lambda it, name=name: it.assign({name: it[name] * np.nan}))
        yield change(f"{name} negative", lambda it, name=name: it.assign({name: -1 - abs(it[name])}))
        yield change(f"{name} huge", lambda it, name=name: it.assign({name: it[name] * 0 + 2**62}))
        yield change(f"{name} one number", lambda it, name=name: it.drop_vars(name).assign({name: 1.0}))
        yield change(f"{name} of objects", lambda it, name=name: it.assign({name: it[name].astype(object)}))


def changed_tables(table: pd.DataFrame) -> Iterator[tuple[str, Make]]:
    def change(said: str, make: Any) -> tuple[str, Make]:
        return said, lambda _: make(table.copy())

    yield change("no rows", lambda it: it.iloc[:0])
    yield change("one row", lambda it: it.iloc[:1])
    yield change("rows twice", lambda it: pd.concat([it, it]))
    yield change("other index", lambda it: it.set_index(it.columns[0]))
    yield change("columns by number", lambda it: it.set_axis(range(it.shape[1]), axis=1))
    yield change("columns twice", lambda it: pd.concat([it, it], axis=1))
    for name in table.columns:
        yield change(f"without {name}", lambda it, name=name: it.drop(columns=name))
        yield change(f"{name} as text", lambda it, name=name: it.assign(**{name: "a"}))
        yield change(f"{name} NaN", lambda it, name=name: it.assign(**{name: np.nan}))
        yield change(f"{name} infinite", lambda it, name=name: it.assign(**{name: np.inf}))
        yield change(f"{name} negative", lambda it, name=name: it.assign(**{name: -1}))
        yield change(f"{name} None", lambda it, name=name: it.assign(**{name: None}))


def no_records() -> dict[str, Make]:
    return {
        "a scope": lambda _: sinkscope.capture(world.model()),
        "a model": lambda _: world.model(),
        "an array of a record": lambda _: world.record("measured")["sink_mass"],
        "a dict of arrays": lambda _: dict(world.record("measured").data_vars),
        "its dict": lambda _: world.record("recall").to_dict(),
        "a path": lambda folder: sinkscope.save_record(world.record("measured"), folder / "given.nc"),
        "a list of records": lambda _: [world.record("measured")],
        "an empty record": lambda _: xr.Dataset(),
        "an empty record of attributes": lambda _: xr.Dataset(attrs=world.record("measured").attrs),
        "an empty table": lambda _: pd.DataFrame(),
        "ids": lambda _: world.ids(),
        "the class of records": lambda _: xr.Dataset,
        **{f"the record {name}": (lambda _, name=name: world.record(name)) for name in world.names_of_records()},
    }
