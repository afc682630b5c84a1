"""Files that are never torn: written beside, and put in place in one step once they are whole."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sinkscope.errors import SinkscopeError
from sinkscope.seals import check_own, comment, held_by, not_own, sealed

FORMATS = ("pdf", "svg", "png")  # of figures


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the context ends well; else an older file stays.

    `what` is its name in the error message, such as "the record".
    """
    if "\0" in str(path):
        raise SinkscopeError(f"cannot write {what} to {str(path)!r}: no name holds a null byte.")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        if path.exists() and not path.is_file():  # os.replace would take the place of a device too
            raise SinkscopeError(f"cannot write {what} to {path}: it is there already and is no file.")
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


def write_bytes(path: Path, data: bytes, what: str) -> None:
    """Write a file by `replacing`, on the disk before it takes the place of an older one."""
    with replacing(path, what) as partial, partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_sealed(path: Path, data: bytes, what: str) -> None:
    """Write a file with the line that proves it, in the place of none but one that has a right one; make its folder."""
    check_own(path, what)
    with suppress(OSError):  # the writing says why
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, sealed(data, path.suffix), what)


def write_table_files(rows: str, page: Path, text: str) -> None:
    """Write a table as CSV, and beside it as a page in LaTeX or Markdown that proves both: a CSV has no comments."""
    csv, what = page.with_suffix(".csv"), "the table"
    check_own(page, what)
    new, old, proof = rows.encode("utf-8", "backslashreplace"), held_by(csv), held_by(page)
    proofs = [_proof(csv, new, page.suffix), _proof(csv, old, page.suffix)]
    if old and old != new and proofs[1] not in proof:
        raise not_own(csv, what)
    for said in (dict.fromkeys(proofs), proofs[:1]):  # a kill in between leaves a page that proves the older table too
        write_sealed(page, b"".join([text.encode("utf-8", "backslashreplace"), *said]), what)
        write_bytes(csv, new, what)


def _proof(csv: Path, held: bytes, kind: str) -> bytes:
    return comment(f"SHA-256 of {csv.name}: {hashlib.sha256(held).hexdigest()}", kind)


def write_figure(figure: Any, path: Path) -> list[Path]:
    """Write a matplotlib figure in each of `FORMATS` by `write_sealed`: the files, named by `path` and their suffix."""
    files = [path.with_suffix(f".{kind}") for kind in FORMATS]
    for file in files:  # none is replaced where one may not be
        check_own(file, "the figure")
    for file in files:
        target = io.BytesIO()
        figure.savefig(target, format=file.suffix[1:])
        write_sealed(file, target.getvalue(), "the figure")
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
