"""The table of a sweep: one row for each number of each cell."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import __version__
from sinkscope.analysis.importance import EPSILON, sink_rate
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.interventions import intervention_table
from sinkscope.analysis.mass import sink_mass
from sinkscope.analysis.perplexity import ppl_table
from sinkscope.analysis.recall import recall_table
from sinkscope.analysis.variables import whole
from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError, warn
from sinkscope.experiments.run_folder import Card, cells_in

LEVELS = ("experiment", "model", "text", "policy", "policy_kind", "sinks", "cache_size", "positions", "seed")
COLUMNS = (*LEVELS, "at", "quantity", "value", "low", "high", "null", "tokens", "cell")
RESAMPLES = 2000


@checks_types
def sweep(
    grid: Any,
    folder: str | os.PathLike[str] | None = None,
    *,
    n_jobs: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Run every cell of a grid, and give one tidy table.

    Cells run through joblib, inside `joblib.parallel_config(backend="loky" | "dask" | "ray")` on its workers. A model
    given by name or path travels as that, and each worker loads it once; a loaded one travels with every cell.

    >>> grid = {"models": {"tiny": model}, "texts": {"text": ids}, "policies": ["dense", "window"], "cache_sizes": 16}
    >>> sinkscope.sweep(grid).policy.tolist()
    ['dense', 'window 16']

    Args:
        grid: a `sinkscope.Grid`, a mapping with its arguments, or the path of a YAML file.
        folder: a run folder, which keeps a record of each cell under a hash of everything its numbers follow from. The
            same call goes on where it was stopped; several processes may work in one folder at the same time.
        n_jobs: cells at the same time; as the surrounding `joblib.parallel_config` says, otherwise 1, when None.
        progress: whether to show a bar; once two seconds have passed when None.

    Returns the table that `sweep_table` describes.
    Raises SinkscopeError for a fault in the grid, an experiment or policy that no model can take, a damaged cell, a
    worker that died, and once all others have finished a cell that could not be run.
    """
    from sinkscope.experiments.sweep import run_sweep  # not above: reading a table needs no torch

    rows: dict[Any, list[dict[str, Any]]] = {}
    for point, cell, finished in run_sweep(grid, folder, n_jobs=n_jobs, progress=progress, summary=cell_rows):
        rows[tuple(point.about.values())] = [point.about | row | {"cell": cell.key} for row in finished.rows]
    return _table([row for some in rows.values() for row in some])


@checks_types
def sweep_table(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The table of all cells in a run folder.

    experiment, model, text         what was done, and the names of both in the grid
    policy, policy_kind             name and class of the policy
    sinks, cache_size, positions    first tokens kept, or taken away by interventions; tokens kept, -1 for all; how
                                    positions are counted
    seed                            of what is drawn at random; missing where nothing is
    at                              the part of the cell: a distance, an intervention; else empty
    quantity                        "ppl"; "sink_mass", "sink_rate" and the means of all else that was measured;
                                    "again", "first", "gain", "recalled" and "context" of recall; "ppl", "ratio",
                                    "over_control" and "sink_mass" of interventions
    value, low, high                its value and 95% interval, NaN where there is none
    null                            what uniform attention would give, where that is known
    tokens                          that were read, or scored for a loss
    cell                            the key of the cell

    Perplexities are over all tokens that a cell scored: all but the first, unless re-computation was given `samples`.
    `ppl_table` compares policies over the same tokens, with paired intervals.
    Raises SinkscopeError if the folder holds no cell, or a damaged one.

    >>> sinkscope.sweep_table("run/").policy.tolist()
    ['dense', 'sinks 2+6']
    """
    rows: list[dict[str, Any]] = []
    same: dict[Any, Card] = {}
    again: list[str] = []
    for key, card in cells_in(folder).items():
        if isinstance(card, SinkscopeError):
            raise card
        about = {name: card.about.get(name) for name in LEVELS}
        before = same.setdefault(tuple(about.values()), card)
        if card.rows and before is not card:
            differ = [name for name, value in card.settings.items() if before.settings.get(name) != value]
            again.append(
                f"{about['experiment']} of {about['model']} on {about['text']} under `{about['policy']}` more than "
                f"once, with other {', '.join(differ)}"
            )
        rows += [about | row | {"cell": key} for row in card.rows]
    if again:
        others = f", and {len(again) - 1:,} others" if len(again) > 1 else ""
        warn(f"{folder} has {again[0]}{others}: the column `cell` tells which row is of which.")
    return _table(rows)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["seed"] = table["seed"].astype("Int64")
    for name in ("value", "low", "high", "null"):
        table[name] = table[name].astype(float)
    order = ["experiment", "model", "text", "policy", "sinks", "cache_size", "seed", "cell"]
    table = table.sort_values(order, kind="stable", ignore_index=True)  # rows of a cell keep their order
    table.attrs = {"kind": "sweep", "cells": int(table["cell"].nunique()), "sinkscope": __version__}
    for name in ("model", "text"):
        table.attrs[name] = ", ".join(map(str, table[name].unique()))
    return table


def cell_rows(record: xr.Dataset) -> list[dict[str, Any]]:
    """The rows of one cell from its record."""
    kind = str(record.attrs.get("kind", "measure"))
    rows = {"perplexity": _losses, "recall": _recall, "interventions": _interventions, "measure": _measured}[kind](
        record
    )
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _losses(record: xr.Dataset) -> list[dict[str, Any]]:
    return [
        {"at": "", "quantity": "ppl", "value": row.ppl, "low": row.low, "high": row.high, "tokens": row.tokens}
        for row in ppl_table(record, resamples=RESAMPLES).itertuples()
    ]


def _recall(record: xr.Dataset) -> list[dict[str, Any]]:
    rows, tokens = [], int(record["nll"].notnull().isel(policy=0, distance=0).sum())
    for row in recall_table(record, RESAMPLES).to_dict("records"):
        shared = {"at": f"distance {row['distance']}", "tokens": tokens}
        rows += [
            shared | {"quantity": "again", "value": row["again"], "low": row["low"], "high": row["high"]},
            shared | {"quantity": "first", "value": row["first"]},
        ]
        for name in ("gain", "recalled", "context"):
            if name in row:
                ends = {"low": row[f"{name}_low"], "high": row[f"{name}_high"]}
                rows.append(shared | {"quantity": name, "value": row[name]} | ends)
    return rows


def _interventions(record: xr.Dataset) -> list[dict[str, Any]]:
    table, rows = intervention_table(record, RESAMPLES), []
    for row in table.to_dict("records"):
        shared = {"at": row["intervention"], "tokens": row["tokens"]}
        for name, low, high in (
            ("ppl", "low", "high"),
            ("ratio", "ratio_low", "ratio_high"),
            ("over_control", "over_control_low", "over_control_high"),
            ("sink_mass", "mass_low", "mass_high"),
        ):
            if not pd.isna(row[name]):
                rows.append(shared | {"quantity": name, "value": row[name], "low": row[low], "high": row[high]})
    return rows


def _measured(record: xr.Dataset) -> list[dict[str, Any]]:
    rows, tokens, record = [], int(record["length"].sum()), whole(record)
    shortest, is_dense = int(record["length"].min()), record.attrs.get("policy") == "Dense()"
    for name, values in record.data_vars.items():
        if "layer" not in values.dims or values.dtype.kind not in "fi":
            continue
        known: dict[str, Any] = {}
        each = values.astype(np.float64)
        if name == "sink_mass":
            first = values.sizes["sink"]
            if first >= shortest:
                continue
            known["null"] = sink_mass(record, first).attrs["null"] if is_dense else np.nan
            each = each.sum("sink", skipna=False).where(values["query"] >= first)
        mean = each.mean([dim for dim in each.dims if dim != "sequence"])
        if "sequence" in mean.dims:
            found = interval(mean, resamples=RESAMPLES)
            known |= {"value": found["mean"], "low": found["lower"], "high": found["upper"]}
        else:
            known["value"] = mean
        rows.append({"at": "", "quantity": name, "tokens": tokens} | known)
        if name == "sink_mass":
            rate = sink_rate(record, EPSILON)
            null = rate.attrs["null_rate"] if is_dense else np.nan
            rows.append({"at": "", "quantity": "sink_rate", "value": rate, "null": null, "tokens": tokens})
    return rows


def _plain(value: Any) -> Any:
    """A number or a text as JSON holds it."""
    if isinstance(value, (xr.DataArray, np.generic)):
        value = value.item()
    return value
