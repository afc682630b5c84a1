"""Directories of a saved report: written whole or not at all, found again after a kill, never with a stranger's file.

A manifest lists every file with its size and SHA-256, and has a SHA-256 of its own. A file is ours if such a manifest
names it and it is as it was written; nothing else is replaced or deleted. A report is written beside its place, under a
hidden name, and renamed at the end. Between the two renames that take the place of an earlier report there may be none:
whoever comes next puts one of the two back (`restore`), and sweeps what a kill left behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xarray as xr

from sinkscope.errors import SinkscopeError, warn
from sinkscope.record import record_of

MANIFEST = "manifest.json"
FORMAT, VERSION = "sinkscope report", 2
_MOST = 64 * 2**20  # bytes of a manifest
_NAME = re.compile(
    r"report\.html|records/\w+\.nc|figures/\w+\.(?:pdf|svg|png)|tables/\w+\.(?:csv|tex)", re.ASCII
)  # what a report holds, and so all that a manifest may name: nothing above it, nothing of another kind
_FOLDERS = ("records", "figures", "tables")


def write_manifest(folder: Path, files: list[str], about: Mapping[str, Any]) -> None:
    """List the files of a report, and what is said about it, as the last thing that is written."""
    listed = {}
    for path in sorted(files):
        held = (folder / path).read_bytes()
        listed[path] = {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}
    said = {"format": FORMAT, "version": VERSION, **about, "files": listed}
    text = json.dumps({**said, "sha256": _own_hash(said)}, indent=1)
    write_synced(folder / MANIFEST, (text + "\n").encode())


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that is on the disk when this returns; an existing one is overwritten."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _own_hash(said: Mapping[str, Any]) -> str:
    kept = json.dumps({key: value for key, value in said.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(kept.encode()).hexdigest()


def _is_entry(listed: tuple[str, Any]) -> bool:
    name, held = listed
    said = [held.get("bytes"), held.get("sha256")] if isinstance(held, dict) else []
    return _NAME.fullmatch(name) is not None and list(map(type, said)) == [int, str]


class Manifest:
    """What the manifest in a directory lists.

    Raises:
        SinkscopeError: there is none of a report, it was saved in another format, or it was changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            if not (folder / MANIFEST).is_file():  # a pipe waits for somebody to write
                raise FileNotFoundError(MANIFEST)
            with (folder / MANIFEST).open("rb") as file:
                said = json.loads(file.read(_MOST))
        except (OSError, ValueError, RecursionError) as problem:
            raise SinkscopeError(
                f"{folder} is not a saved report (no {MANIFEST} of one): give a directory that save made."
            ) from problem
        if not (isinstance(said, dict) and said.get("format") == FORMAT):
            raise SinkscopeError(
                f"{folder} is not a saved report ({MANIFEST} is of something else): give a directory that save made."
            )
        if said.get("version") != VERSION:
            raise SinkscopeError(
                f"the report in {folder} was saved in format {said.get('version')!r}, and this release reads "
                f"{VERSION}: make the report anew."
            )
        files = said.get("files")
        if (
            said.get("sha256") != _own_hash(said)
            or not isinstance(files, dict)
            or not all(map(_is_entry, files.items()))
        ):
            raise SinkscopeError(f"{folder / MANIFEST} was changed since the report was saved, or is damaged.")
        self.files: dict[str, dict[str, Any]] = files

    def is_whole(self, name: str) -> bool:
        """Whether the file is as it was saved."""
        path = self.folder / name
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size != self.files[name]["bytes"]:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.files[name]["sha256"]
        except OSError:
            return False

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises SinkscopeError where they are not those that were saved."""
        path = self.folder / name
        try:
            if path.stat().st_size == self.files[name]["bytes"]:
                held = path.read_bytes()
                if hashlib.sha256(held).hexdigest() == self.files[name]["sha256"]:
                    return held
        except OSError as problem:
            raise SinkscopeError(f"cannot read {path}, which {MANIFEST} names: {problem.strerror}.") from problem
        raise SinkscopeError(
            f"{path} was changed since the report was saved, or is damaged: its SHA-256 is not that of {MANIFEST}."
        )

    def record(self, name: str) -> xr.Dataset:
        """The record in a file. Raises SinkscopeError where it is not as it was saved."""
        return record_of(self.read(name), self.folder / name)

    @property
    def changed(self) -> list[str]:
        """The files that are not, or no more, as they were saved."""
        return [name for name in self.files if not self.is_whole(name)]


def check_directory(directory: str | os.PathLike[str]) -> Path:
    """The absolute path of `directory`, if a report may be written there: for a check before measuring.

    Raises SinkscopeError where there is a file of that name, a directory with files that are no earlier report's, or
    are no more as it saved them (naming one), or a place that cannot be written to.
    """
    try:
        path = Path(os.path.abspath(Path(directory).expanduser()))
        if path.is_symlink():
            path = path.resolve()
        if path.exists() and not path.is_dir():
            raise SinkscopeError(f"{path} is a file, not a directory: give another name.")
        if path.is_dir() and (reason := _not_ours(path)):
            raise SinkscopeError(f"{path} holds {reason}: give an empty or a new directory.")
        if path == path.parent:
            raise SinkscopeError(f"{path} is the root of the file system: give a directory in it.")
        existing = next(parent for parent in path.parents if os.path.lexists(parent))
        if not existing.is_dir():
            raise SinkscopeError(
                f"{path} cannot be a directory, because {existing} is a file or a link that leads nowhere: give "
                "another place."
            )
        trial = _beside(existing / path.name, "partial")
        trial.mkdir()
        trial.rmdir()
    except SinkscopeError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a null byte; a loop of links, or a home that is not known
        raise _cannot_write(directory, error) from error
    return path


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory that takes the name `path` when the block ends well, and vanishes when it does not."""
    made: list[Path] = []
    partial, lock = _beside(path, "partial"), None
    try:
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        with _alone(path.parent):
            _put_back(path)
            _sweep(path)
            partial.mkdir()
            lock = _locked(partial)  # it is being written, and no leftover
        yield partial
        with _alone(path.parent):
            _replace(partial, check_directory(path))
        made = []
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        _remove(partial, unfinished=True)
        if lock is not None:
            os.close(lock)
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()


def _replace(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`; what was there goes only after that worked, and else comes back."""
    if not path.exists():
        os.rename(partial, path)
        return
    old = _beside(path, "old")
    try:
        os.rename(path, old)
        if reason := _not_ours(old):  # put there since it was looked at
            raise SinkscopeError(f"{path} holds {reason}: give an empty or a new directory.")
        os.rename(partial, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    _synced(path.parent)
    _discard(path, old)


def restore(path: Path) -> None:
    """Put a report back where a save was killed between its two renames: the new one if it is whole, or the old one."""
    if not os.path.lexists(path) and (_left(path, "partial") or _left(path, "old")):
        with suppress(OSError), _alone(path.parent):
            _put_back(path)


def _put_back(path: Path) -> None:
    if os.path.lexists(path):
        return
    whole = [left for left in _left(path, "partial") if _is_whole(left) and not _is_locked(left)]
    done = "finished" if whole else "undone, and the report that was there is back"
    for found in (whole or _left(path, "old"))[:1]:
        os.rename(found, path)
        warn(f"a save of the report {path} was cut off; it was {done}.")


def _sweep(path: Path) -> None:
    """Delete what killed saves of this report left beside it, where it is ours."""
    for left in _left(path, "partial"):
        if not _is_locked(left):
            _remove(left, unfinished=True)
    for left in _left(path, "old") if path.exists() else []:
        if not _not_ours(left):
            _discard(path, left)
    for left in _left(path, "done"):
        if not _not_ours(left):
            _remove(left)


def _discard(path: Path, old: Path) -> None:
    """Delete an earlier report, under a name that nobody puts back when half of it is gone."""
    done = _beside(path, "done")
    os.rename(old, done)
    _remove(done)


def _left(path: Path, kind: str) -> list[Path]:
    """The hidden directories of this kind beside `path`, the latest first."""
    form = re.compile(re.escape(f".{_stem(path)}.{kind}-") + "[0-9a-f]{32}")
    with suppress(OSError):
        found = [each for each in path.parent.iterdir() if form.fullmatch(each.name) and not each.is_symlink()]
        return sorted(found, key=lambda each: each.stat().st_mtime, reverse=True)
    return []


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{_stem(path)}.{kind}-{uuid.uuid4().hex}")


def _stem(path: Path) -> str:
    """The name, or what stands for one that is too long to be a part of another."""
    if len(os.fsencode(path.name)) <= 200:
        return path.name
    return f"{path.name[:40]}~{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}"


def _is_whole(folder: Path) -> bool:
    try:
        return not Manifest(folder).changed
    except SinkscopeError:
        return False


def _not_ours(folder: Path) -> str:
    """Why what is in the directory may not be deleted, naming a file; nothing for an earlier report, or none at all."""
    names = (name for name in _inside(folder) if not (name in _FOLDERS and not (folder / name).is_symlink()))
    if (first := next(names, None)) is None:
        return ""
    try:
        manifest = Manifest(folder)
    except SinkscopeError as reason:
        if (folder / MANIFEST).exists():
            return f"{MANIFEST}, which does not prove what else is there ({str(reason).rstrip('.')})"
        return f"{first}, which is not part of an earlier report"
    for name in (first, *names):
        if name != MANIFEST and name not in manifest.files:
            return f"{name}, which is not part of an earlier report"
        if name != MANIFEST and not manifest.is_whole(name):
            return f"{name}, which was changed since the report was saved there (move it away to keep it)"
    return ""


def _inside(folder: Path) -> Iterator[str]:
    """Everything in the directory, relative to it; what a link leads to is not in it."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        for name in (*sorted(files), *folders):
            yield (Path(here) / name).relative_to(folder).as_posix()


def _remove(folder: Path, unfinished: bool = False) -> None:
    """Delete a report file by file, its manifest last, so that a kill leaves what is left provably ours.

    An `unfinished` one has no manifest yet: files with the names of a report's, in a directory with a name of ours.
    """
    with suppress(OSError, SinkscopeError):
        names = _inside(folder) if unfinished else Manifest(folder).files
        for name in [name for name in names if _NAME.fullmatch(name)]:
            (folder / name).unlink(missing_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    for name in (*_FOLDERS, "."):
        with suppress(OSError):
            (folder / name).rmdir()  # only if empty


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process renames or sweeps in this folder meanwhile, where the file system has locks."""
    lock = _locked(folder)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, wait: bool = True) -> int | None:
    """The folder, open and locked until it is closed or the process ends; None where that cannot be."""
    with suppress(ImportError, OSError):
        import fcntl

        opened = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return opened
        except OSError:
            os.close(opened)
    return None


def _is_locked(folder: Path) -> bool:
    """Whether a process writes in the folder, or may do so: without locks nobody knows."""
    if (lock := _locked(folder, wait=False)) is None:
        return True
    os.close(lock)
    return False


def _synced(folder: Path) -> None:
    """Have the renames in the folder on the disk."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _cannot_write(path: str | os.PathLike[str], error: Exception) -> SinkscopeError:
    if getattr(error, "errno", None) in (errno.EBUSY, errno.EXDEV):
        return SinkscopeError(f"{path} cannot be renamed (a mount point, perhaps): give a new directory inside it.")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SinkscopeError(f"cannot write the report to {path}: {reason}; what was there before is untouched.")
