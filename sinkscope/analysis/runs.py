"""Run folders: which cells are there, whether they are as they were written, and how two of them compare."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.sweep import LEVELS
from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.run_folder import TRAINING, Card, cell_in, cells_in, is_cell, read_cell

VERSIONS = ("torch", "transformers", "sinkscope")
Place = str | os.PathLike[str]


@checks_types
def list_cells(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """One row for each finished cell of a run folder: its key, what it is, seconds it took, when, and its `problem`,
    empty where it is as it was written. The laboratory's folders have trainings in the place of experiments.

    The hashes of all cells are computed anew. Raises SinkscopeError if there is no such folder, or no cell in it.

    >>> sinkscope.list_cells("run/").experiment.tolist()
    ['perplexity', 'perplexity']
    """
    rows: list[dict[str, Any]] = []
    for key, card in cells_in(folder).items():
        about = {} if isinstance(card, SinkscopeError) else card.about
        told = {name: about.get(name) for name in (*LEVELS, "seconds", "date")}
        rows.append({"cell": key} | told | {"problem": str(card) if isinstance(card, SinkscopeError) else ""})
    table = pd.DataFrame(rows)
    table["seed"] = table["seed"].astype("Int64")
    return table


@checks_types
def sweep_losses(folder: str | os.PathLike[str], model: str | None = None, text: str | None = None) -> xr.Dataset:
    """The losses of all policies that a run folder has of one model and text, as one record.

    `ppl_table` makes of it a table over the same tokens, with paired intervals; figures take it as that of
    `perplexity`. Raises SinkscopeError where there are no losses, those of several models or texts and no name, or of
    one that was changed between two sweeps.

    >>> sinkscope.sweep_losses("run/", "tiny", "words").policy.values.tolist()
    ['dense', 'sinks 2+6']
    """
    found: dict[tuple[str, str], dict[str, xr.Dataset]] = {}
    first: dict[tuple[str, str], Card] = {}
    for key, card in _cards(folder).items():
        place = card.about.get("model"), card.about.get("text")
        if card.about.get("experiment") == "perplexity" and model in (None, place[0]) and text in (None, place[1]):
            check_same(folder, first.setdefault((str(place[0]), str(place[1])), card), card)
            record = read_cell(cell_in(folder, key))
            seed, policy = card.about.get("seed"), card.about.get("policy")
            name = f"{policy}, seed {seed}" if seed is not None else f"{policy}"
            same = found.setdefault((str(place[0]), str(place[1])), {})
            if name in same:
                raise SinkscopeError(
                    f"{folder} has `{name}` of {place[0]} on {place[1]} twice, from runs with other settings; see "
                    "`sinkscope runs FOLDER`, and delete the cell that you do not mean."
                )
            same[name] = record.assign_coords(policy=[name]).assign_attrs(model=place[0], text=place[1])
    if len(found) != 1:
        several = "; ".join(f"{each[0]} on {each[1]}" for each in found) or "none"
        raise SinkscopeError(f"losses of one model and text are needed, and there are: {several}; name one of each.")
    ((_, records),) = found.items()
    options: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "outer"}
    return xr.concat(list(records.values()), "policy", combine_attrs="override", **options)


@checks_types
def compare_cells(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> pd.DataFrame:
    """How the numbers of two run folders, or of two cells, differ.

    One row for each pair of cells with the same levels: `cell`, `other_cell`, their keys, the same where everything
    that the numbers follow from is; `differs`, what of that is not; `largest`, the largest absolute difference of a
    number, 0 where they are equal to the bit, infinite where one has a number and the other none; `variable`, which
    one that is. Cells that one folder has alone have no `other_cell`, or no `cell`.

    Raises SinkscopeError if there is no cell, or a damaged one.

    >>> sinkscope.compare_cells("run/", "run/").largest.tolist()
    [0.0, 0.0]
    """
    sides = [_by_levels(place) for place in (one, other)]
    if all(is_cell(place) for place in (one, other)):  # these two, whatever they are
        sides = [{"the cells": cells} for side in sides for cells in side.values()]
    rows = []
    for level in dict.fromkeys([*sides[0], *sides[1]]):
        these: list[list[tuple[Path, Card] | None]] = [[*side.get(level, [])] or [None] for side in sides]
        for first, second in product(*these):
            known = first or second
            assert known is not None
            about = {name: known[1].about.get(name) for name in LEVELS}
            row: dict[str, Any] = {"cell": first and first[0].stem, "other_cell": second and second[0].stem}
            if first is not None and second is not None:
                row |= {"differs": ", ".join(_differing(first[1], second[1]))} | _largest(
                    _numbers(first[0]), _numbers(second[0])
                )
            rows.append(about | row)
    return pd.DataFrame(rows, columns=[*LEVELS, "cell", "other_cell", "differs", "largest", "variable"])


def check_same(folder: Place, one: Card, other: Card) -> None:
    """Raise SinkscopeError where two cells are of models or texts of one name that are not the same."""
    shared = {**one.read_model, **other.read_model, "text": ""}
    if one.settings.get("experiment") == other.settings.get("experiment"):
        shared |= {name: "" for name in (*one.settings, *other.settings) if name.startswith("normaliser")}
    if differ := [name for name in _differing(one, other) if name in shared]:
        raise SinkscopeError(
            f"{folder} has cells of two models or texts by the names {one.about.get('model')} and "
            f"{one.about.get('text')} ({', '.join(differ[:3])} differ); sweep each in a folder of its own, or delete "
            "the cells that you do not mean."
        )


def _cards(folder: Place) -> dict[str, Card]:
    cards = {}
    for key, card in cells_in(folder).items():
        if isinstance(card, SinkscopeError):
            raise card
        cards[key] = card
    return cards


def _by_levels(place: Place) -> dict[Any, list[tuple[Path, Card]]]:
    """The cells of a folder, or a cell alone, by what they are."""
    found: dict[Any, list[tuple[Path, Card]]] = {}
    for key, card in _cards(place).items():
        level: Any = tuple(card.about.get(name) for name in LEVELS)
        file = cell_in(place, key)
        if not file.is_dir():  # a training
            file = file.with_suffix(".safetensors")
            level = tuple(sorted((name, value) for name, value in card.settings.items() if name not in VERSIONS))
        found.setdefault(level, []).append((file, card))
    return found


def _differing(first: Card, second: Card) -> list[str]:
    names = [*first.settings, *(name for name in second.settings if name not in first.settings)]
    return [name for name in names if first.settings.get(name) != second.settings.get(name)]


def _numbers(place: Path) -> dict[str, np.ndarray]:
    """The measured numbers of a cell by name; not how long it took."""
    if place.is_dir():
        record = read_cell(place)
        return {str(name): each.values for name, each in record.data_vars.items() if each.dtype.kind in "fiub"}
    from sinkscope.tensors import read_tensors  # records need no torch

    tensors, _ = read_tensors(place, "the cell", TRAINING, "delete it")
    return {name: each.numpy() for name, each in tensors.items() if name != "seconds"}


def _largest(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The largest absolute difference, and in which variable."""
    found = {"largest": 0.0, "variable": ""}
    for name in dict.fromkeys([*one, *other]):
        difference = np.inf
        if name in one and name in other and one[name].shape == other[name].shape:
            first, second = one[name].astype(np.float64), other[name].astype(np.float64)
            same = (first == second) | (np.isnan(first) & np.isnan(second))
            with np.errstate(invalid="ignore"):
                apart = np.where(same, 0.0, np.abs(first - second))
            difference = float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
        if difference > float(found["largest"]):  # type: ignore[arg-type]
            found = {"largest": difference, "variable": name}
    return found
