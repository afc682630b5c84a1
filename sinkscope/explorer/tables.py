"""What is looked at as a table to take away: the row of a query, the part of the map shown, and all heads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.controller import CLOSED, Controller
from sinkscope.explorer.results import HeadMaps
from sinkscope.files import write_bytes
from sinkscope.reporting.tables import plain_csv
from sinkscope.seals import held_by

MOST_COPIED = 200_000  # rows
TABLES = {"row of the query": "row", "part of the map": "map", "all heads": "heads", "spans": "spans"}


def table_of(controller: Controller, what: str) -> pd.DataFrame:
    """One of `TABLES`: exact probabilities, and logits where there is a model; beside a partner also its own.

    Raises:
        SinkscopeError: there is no such table, or nothing is shown that it could hold.
    """
    if what not in TABLES.values():
        raise SinkscopeError(f"{what!r} is no table; give one of {', '.join(TABLES.values())}.")
    maps = controller.comparison.shown.maps
    if maps is None:
        waiting = "nothing is shown yet, so there is no table; wait for the first map"
        raise SinkscopeError(f"{CLOSED if controller.is_closed else waiting}.")
    if what == "heads":
        return _heads(controller)
    if what == "spans":
        return controller.parts.table()
    region = controller.map_options.region or (maps.tokens.start, maps.tokens.stop) * 2
    if what == "row":
        if controller.query not in maps.tokens:
            raise SinkscopeError(
                f"no row of query {controller.query} is shown: the map is of tokens {maps.tokens[0]} to "
                f"{maps.tokens[-1]}; choose one of those."
            )
        region = (controller.query, controller.query + 1, maps.tokens.start, maps.tokens.stop)
    return _cells(controller, region)


def _cells(controller: Controller, region: tuple[int, int, int, int]) -> pd.DataFrame:
    """A row for each cell of the region that a query sees."""
    beside = controller.comparison
    maps, unit = beside.shown.maps, beside.shown.unit
    assert maps is not None
    places = maps.first + maps.starts
    rows, columns = (np.flatnonzero((places >= low) & (places < stop)) for low, stop in (region[:2], region[2:]))
    if not len(rows) or not len(columns):
        raise SinkscopeError("the part of the map that is shown holds no cell of its own; zoom out.")
    parts = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    query, key = (grid.ravel() for grid in np.meshgrid(places[parts[0]], places[parts[1]], indexing="ij"))
    tokens = [text.encode("utf-8", "backslashreplace").decode() for text in maps.texts(controller.tokens)[parts[1]]]
    texts = tokens * (parts[0].stop - parts[0].start)
    found = {"query": query, "key": key, "token": texts}
    found |= _values(maps, unit, parts, "")
    seen, table = ~np.isnan(found["probability"]), pd.DataFrame(found)
    partner, is_compared = beside.partner, controller.map_options.compare != "nothing" and not beside.problem
    if is_compared and partner.maps is not None and partner.maps.tokens == maps.tokens:
        other = _values(partner.maps, partner.unit, parts, "partner ")
        seen |= ~np.isnan(other["partner probability"])
        table = table.assign(**other, partner=partner.caption)
    return table.assign(shown=controller.caption)[seen].reset_index(drop=True)


def _values(maps: HeadMaps, unit: int, parts: tuple[slice, slice], name: str) -> dict[str, np.ndarray]:
    found = {f"{name}probability": maps.probabilities(unit, *parts).ravel()}
    if maps.has_logits:
        found[f"{name}logit"] = maps.logits(unit, *parts).ravel()
    return found


def _heads(controller: Controller) -> pd.DataFrame:
    overview, units = controller.now.overview, controller.units
    if overview is None:
        raise SinkscopeError("the heads are still being measured, so there is no table of them; wait for the overview.")
    table = pd.DataFrame({"layer": [each.layer for each in units], "head": [each.head for each in units]})
    return table.assign(**overview.scores, setting=overview.configuration.name if controller.model else controller.name)


def table_csv(controller: Controller, what: str) -> str:
    """The same as CSV; text that a spreadsheet would run is made plain text."""
    return plain_csv(table_of(controller, what))


def copied(controller: Controller, what: str) -> dict[str, Any]:
    """What a browser copies: the CSV and how many rows it has.

    Raises:
        SinkscopeError: as `table_of`; there are more rows than anybody pastes.
    """
    table = table_of(controller, what)
    if len(table) > MOST_COPIED:
        raise SinkscopeError(
            f"{len(table):,} rows are more than the {MOST_COPIED:,} that can be copied; zoom in, or save the table."
        )
    return {"text": plain_csv(table), "rows": len(table)}


def save_table(controller: Controller, path: str | os.PathLike[str], what: str) -> Path:
    """Write a table as CSV, in the place of no other file.

    Raises:
        SinkscopeError: as `table_of`; the file cannot be written, or is there already and is another.
    """
    data, path = table_csv(controller, what).encode("utf-8", "backslashreplace"), Path(os.path.expanduser(path))
    if (held := held_by(path)) and held != data:
        raise SinkscopeError(
            f"cannot write the table to {path}: what is there already is another; delete it, or give another name."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SinkscopeError(f"cannot write the table to {path}: {problem.strerror or problem}.") from problem
    write_bytes(path, data, "the table")
    return path
