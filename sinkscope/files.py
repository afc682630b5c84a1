"""Files that are never torn: written beside, and put in place in one step once they are whole.

What is written beside has a name that tells which process writes it. One that was killed leaves it behind, and whoever
writes in that folder next clears it away: at once where the process is known to be gone, and after a day where it ran
on another machine or in another container, whose processes cannot be seen from here.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sinkscope.errors import SinkscopeError, shown
from sinkscope.seals import check_own, comment, held_by, not_own, sealed

FORMATS = ("pdf", "svg", "png")  # of figures
PARTIAL = re.compile(r"\.sinkscope-([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{32}\.partial")
DAY = 86400.0  # seconds, after which what another machine began is held to be left


def partial_beside(path: Path) -> Path:
    """A name in the folder of `path` that nothing else has, for a file or a folder that is to take its place.

    `clear_partials` removes it once this process is gone.
    """
    pid = os.getpid()
    return path.with_name(f".sinkscope-{_machine()}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex}.partial")


def clear_partials(folder: Path) -> None:
    """Remove what killed processes left in a folder under names of `partial_beside`; all else stays."""
    with suppress(OSError):  # a folder that is not there, or that others change at the same time
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(".sinkscope-")]
        for name in names:
            place, told = folder / name, PARTIAL.fullmatch(name)
            if told is not None and _is_left(place, told[1], int(told[2]), int(told[3])):
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place, ignore_errors=True)
                else:
                    place.unlink(missing_ok=True)


def _is_left(place: Path, machine: str, pid: int, started: int) -> bool:
    """Whether the process that writes here is gone."""
    if machine == _machine():
        return _started(pid) != started if started else not _runs(pid)
    now = place.with_name(f"{place.name[:-8]}.now")  # the clock of the file system, which others set
    now.touch()
    try:
        return now.stat().st_mtime - place.lstat().st_mtime > DAY
    finally:
        now.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """This machine since it was started, and the processes that are seen from here, as 12 letters."""
    told = [platform.node(), str(uuid.getnode())]
    with suppress(OSError):
        told += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("|".join(told).encode()).hexdigest()[:12]


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where it is gone, or cannot be asked."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if told[0] in "ZX" else int(told[19])  # one that is dead, but not taken note of by its parent


def _runs(pid: int) -> bool:
    """Whether there is a process of this number; where that cannot be asked it is held to run."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the context ends well; else an older file stays.

    A link stays one: what it leads to is replaced. `what` is its name in the error message, such as "the record".
    """
    if "\0" in str(path):
        raise SinkscopeError(f"cannot write {what} to {str(path)!r}: no name holds a null byte.")
    if not path.name:
        raise SinkscopeError(f"cannot write {what} to {str(path)!r}, which names no file: give a name.")
    if path.is_symlink():
        linked, path = path, Path(os.path.realpath(path))
        if path.is_symlink():
            raise SinkscopeError(f"cannot write {what} to {linked}: it is a link that leads to itself.")
    clear_partials(path.parent)
    partial = partial_beside(path)
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


def write_sealed(path: Path, data: bytes, what: str, kind: str | None = None) -> None:
    """Write a file with the line that proves it, in the place of none but one that has a right one; make its folder.

    `kind` is what the file is, such as ".svg"; what its name ends in when None.
    """
    kind = kind or path.suffix
    check_own(path, what, kind)
    with suppress(OSError):  # the writing says why
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, sealed(data, kind), what)


def check_table_files(page: Path) -> None:
    """Raise SinkscopeError where the files that `write_table_files` would write are there and are somebody's own.

    A CSV without its page may be that of the same table: writing it tells.
    """
    check_own(page, "the table")
    csv = page.with_suffix(".csv")
    if (old := held_by(csv)) and (proof := held_by(page)) and _proof(csv, old, page.suffix) not in proof:
        raise not_own(csv, "the table")


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
    place = Path(os.path.realpath(os.path.expanduser(folder)))
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SinkscopeError(
            f"folder={shown(str(place))} cannot be made: {problem.strerror}; give another."
        ) from problem
    check_writable(place, what)
    return place


def check_writable(folder: Path, what: str) -> None:
    """Make a folder, or raise SinkscopeError where no file can be written in it; `what` is told in the message."""
    clear_partials(folder)
    trial = partial_beside(folder / "trial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as problem:
        raise SinkscopeError(f"cannot write {what} to {folder}: {problem.strerror or problem}.") from problem
