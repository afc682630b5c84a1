"""Files that are never torn: written beside, and put in place in one step once they are whole."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sinkscope.errors import SinkscopeError

FORMATS = ("pdf", "svg", "png")  # of figures


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the context ends well; else an older file stays.

    `what` is its name in the error message, such as "the record".
    """
    if not path.name:
        raise SinkscopeError(f"cannot write {what} to {str(path)!r}, which names no file: give a name.")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as problem:
        raise SinkscopeError(f"cannot write {what} to {path}: {problem.strerror or problem}.") from problem
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, what: str) -> None:
    """Write a text file by `replacing`, and make its folder."""
    with replacing(path, what) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")


def write_figure(figure: Any, path: Path) -> list[Path]:
    """Write a matplotlib figure in each of `FORMATS` by `replacing`: the files, named by `path` and their suffix."""
    files = [path.with_suffix(f".{kind}") for kind in FORMATS]
    for file in files:
        with replacing(file, "the figure") as partial:
            figure.savefig(partial, format=file.suffix[1:])
    return files


def writable_folder(folder: str | os.PathLike[str], what: str) -> Path:
    """The folder, made where it is not there, as an absolute path: better refused now than after an hour.

    "~" is the user's home; `what` will be written is told in the error message.
    """
    place = Path(folder).expanduser().resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SinkscopeError(f"folder={str(place)!r} cannot be made: {problem.strerror}; give another.") from problem
    trial = place / ".writable"
    with replacing(trial, what) as partial:
        partial.touch()
    trial.unlink(missing_ok=True)
    return place
