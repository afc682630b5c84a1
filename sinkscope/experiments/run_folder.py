"""A run folder: a directory for each finished cell, named by a hash of everything that its numbers follow from.

    KEY/record.nc   its record
    KEY/cell.json   its card: the settings that KEY is a hash of, the SHA-256 of the record, what it is called, and its
                    rows of the table

A directory is made beside under a hidden name and then renamed, which fails where there is one already. So of several
writers on one file system the first one's cell stands, whole, and nobody waits for a lock. Neither torch nor HDF5 is
needed to list a folder or to verify it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any

import xarray as xr

from sinkscope.errors import SinkscopeError, first_line, shown
from sinkscope.files import partial_beside, write_text
from sinkscope.record import open_record, save_record

CARD, RECORD = "cell.json", "record.nc"
TRAINING = "sinkscope training run 2"  # kind of the files of the laboratory's trainings
LARGEST = 2**24  # bytes of the header of such a file
KEY = re.compile("[0-9a-f]{32}")
ADVICE = "delete it, and the same sweep makes it again"


@dataclass(frozen=True)
class Card:
    """What is known of a finished cell without opening its record.

    Attributes:
        settings: everything that its numbers follow from, by name.
        about: what it is called and how long it took: experiment, model, text, policy, seed, seconds, date.
        rows: its rows of the table.
        sha256: of the bytes of its record.
    """

    settings: dict[str, str]
    about: dict[str, Any]
    rows: list[dict[str, Any]]
    sha256: str

    @property
    def read_model(self) -> dict[str, str]:
        """The settings that are the model's: those before the experiment's."""
        return dict(takewhile(lambda each: each[0] != "experiment", self.settings.items()))

    def check(self) -> None:
        """Raise ValueError for what no sweep writes."""
        parts = self.settings, self.about, *self.rows
        if not all(isinstance(each, dict) for each in parts):
            raise ValueError("its parts are of other kinds")
        if not all(isinstance(each, (str, int, float, NoneType)) for part in parts for each in part.values()):
            raise ValueError("a value in it is neither a word nor a number")
        seed = self.about.get("seed")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**63):
            raise ValueError(f"its seed is {seed!r}")


def settings_text(settings: Mapping[str, Any]) -> str:
    """The settings as JSON."""
    return json.dumps({name: str(value) for name, value in settings.items()}, sort_keys=True)


def key_of(text: str) -> str:
    """The name of a cell: a hash of its settings as JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_cell(
    place: Path, settings: Mapping[str, Any], about: dict[str, Any], rows: list[dict[str, Any]], record: xr.Dataset
) -> None:
    """Put a finished cell in its place; where another writer was quicker, its cell stays.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    partial = partial_beside(place)
    try:
        partial.mkdir(parents=True)
        save_record(record, partial / RECORD)
        told = {name: str(value) for name, value in settings.items()}
        card = asdict(Card(told, about, rows, _sha256(partial / RECORD)))
        write_text(partial / CARD, json.dumps(card | {"card_sha256": _hash(card)}, indent=1), "the card of a cell")
        for name in (RECORD, CARD):
            with (partial / name).open("rb") as file:
                os.fsync(file.fileno())
        try:
            partial.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    except OSError as problem:
        raise SinkscopeError(f"cannot write the cell {place}: {problem.strerror or problem}.") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_card(place: Path) -> Card | None:
    """The card of a cell whose record is as it was written; None where there is no such cell.

    Raises:
        SinkscopeError: the card or the record is damaged, was changed, or is that of another cell.
    """
    if not place.is_dir():
        return None
    try:
        if other := next(
            (name for name in (CARD, RECORD) if (place / name).exists() and not (place / name).is_file()), ""
        ):
            raise ValueError(f"its {other} is no file")  # a pipe or a device, which nobody comes to the end of
        held = json.loads((place / CARD).read_text(encoding="utf-8"))
        said = held.pop("card_sha256")
        card = Card(**held)
        card.check()
        found = _sha256(place / RECORD)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise SinkscopeError(f"the cell {place} is damaged ({first_line(problem)}); {ADVICE}.") from problem
    if said != _hash(held) or key_of(settings_text(card.settings)) != place.name:
        raise SinkscopeError(f"the card of the cell {place} is not the one that was written with it; {ADVICE}.")
    if found != card.sha256:
        raise SinkscopeError(f"the record of the cell {place} is not the one that was written with it; {ADVICE}.")
    return card


def read_cell(place: Path) -> xr.Dataset:
    """The record of a finished cell; SinkscopeError where there is none, and as `read_card`."""
    if read_card(place) is None:
        raise SinkscopeError(f"there is no cell at {place}: see the list of its folder with `sinkscope runs list`.")
    return open_record(place / RECORD)


def cells_folder(folder: str | os.PathLike[str]) -> Path:
    """Where the cells of a run are: in `cells` where there is such a folder, else in the folder itself. That of a cell
    is the cell.

    Raises:
        SinkscopeError: there is no such folder.
    """
    if (place := found_folder(folder)) is not None:
        return found_folder(place / "cells") or place
    raise SinkscopeError(f"there is no folder {shown(os.fspath(folder))}: give one that `sinkscope sweep` wrote.")


def found_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder of a name; None where there is none, as of a name that no file system has."""
    place = os.path.expanduser(path)
    return Path(place) if os.path.isdir(place) else None


def cells_in(folder: str | os.PathLike[str]) -> dict[str, Card | SinkscopeError]:
    """By its key, the card of every finished cell of a run, or of the one given, or why it cannot be relied on.

    Raises:
        SinkscopeError: there is no such folder, or it holds no cell.
    """
    place = cells_folder(folder)
    found: dict[str, Card | SinkscopeError] = {}
    for entry in [place] if is_cell(place) else sorted(place.iterdir()):
        if KEY.fullmatch(entry.name) and entry.is_dir():
            try:
                card = read_card(entry)
            except SinkscopeError as problem:
                found[entry.name] = problem
            else:
                if card is not None:
                    found[entry.name] = card
        elif entry.suffix == ".safetensors" and KEY.fullmatch(entry.stem) and not _is_unfinished(entry):
            found[entry.stem] = _tensors_card(entry)
    if not found:
        raise SinkscopeError(f"{place} holds no finished cell: give a folder that `sinkscope sweep` wrote.")
    return found


def cell_in(folder: str | os.PathLike[str], key: str) -> Path:
    """Where a cell of a run is, or of the folder of that cell itself."""
    place = cells_folder(folder)
    return place if is_cell(place) else place / key


def is_cell(place: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of one cell."""
    path = found_folder(place)
    return path is not None and KEY.fullmatch(path.name) is not None and os.path.exists(path / CARD)


def _is_unfinished(path: Path) -> bool:
    """Whether a file of tensors keeps how far a cell is, and is none itself."""
    with suppress(OSError, ValueError, TypeError, AttributeError), path.open("rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), LARGEST))
        return json.loads(header).get("__metadata__", {}).get("kind", TRAINING) != TRAINING
    return False


def _tensors_card(path: Path) -> Card | SinkscopeError:
    """The card of a training run of the laboratory, which is one file of tensors."""
    from sinkscope.tensors import read_tensors  # reading records needs no torch

    try:
        _, about = read_tensors(path, "the cell", TRAINING, "delete it, and the same run makes it again")
        settings = json.loads(about["settings"])
        if key_of(about["settings"]) != path.stem:
            raise SinkscopeError(f"the cell {path} is of other settings than its name says; delete it.")
    except SinkscopeError as problem:
        return problem
    except (KeyError, ValueError) as problem:
        return SinkscopeError(f"the cell {path} is damaged ({first_line(problem)}); delete it.")
    return Card(settings, {"experiment": "training", "text": settings.get("text", "")[:12]}, [], _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
