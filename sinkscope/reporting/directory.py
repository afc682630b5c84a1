"""A directory that is written whole or not at all, and that never takes a stranger's file with it.

Everything goes into a hidden sibling directory first, which is then renamed into place. An earlier report is
replaced only if it is one, by its own manifest, and holds nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sinkscope.errors import SinkscopeError

MANIFEST = "manifest.json"
FORMAT = "sinkscope report"


def check_directory(directory: str | os.PathLike[str]) -> Path:
    """The absolute path of `directory`, if a report may be written there: for a check before measuring.

    Raises SinkscopeError where there is a file of that name, a directory with files that are no earlier
    report's (naming one), or a place that cannot be written to.
    """
    path = Path(os.path.abspath(Path(directory).expanduser()))
    if path.is_symlink():
        path = path.resolve()
    try:
        if path.exists() and not path.is_dir():
            raise SinkscopeError(f"{path} is a file, not a directory: give another name.")
        foreign = _foreign_file(path) if path.is_dir() else None
        if foreign is not None:
            raise SinkscopeError(
                f"{path} holds {foreign}, which is not part of an earlier report: give an empty or a new directory."
            )
        if path == path.parent:
            raise SinkscopeError(f"{path} is the root of the file system: give a directory in it.")
        existing = next(parent for parent in path.parents if parent.exists())
        if not existing.is_dir():
            raise SinkscopeError(f"{path} cannot be a directory, because {existing} is a file: give another place.")
        with tempfile.TemporaryDirectory(prefix=".sinkscope-", dir=existing):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


@contextmanager
def whole_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory that takes the name `directory` when the block ends well, and vanishes when it
    does not.
    """
    path = check_directory(directory)
    made: list[Path] = []
    partial: Path | None = None
    try:
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name[:50]}.partial-", dir=path.parent))
        os.chmod(partial, 0o777 & ~_umask())
        yield partial
        _replace(partial, check_directory(path))
        partial, made = None, []
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()


def read_manifest(path: Path) -> dict[str, object] | None:
    """The manifest of the report in `path`, or None if there is none or it is not ours."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    return manifest if isinstance(manifest.get("files"), dict) else None


def _foreign_file(path: Path) -> str | None:
    """The first entry of `path`, relative to it, that the manifest of an earlier report does not list."""
    manifest = read_manifest(path)
    listed = set(manifest["files"]) if manifest else set()  # type: ignore[call-overload]
    if manifest:
        listed.add(MANIFEST)
    folders = {str(parent) for name in listed for parent in Path(name).parents if str(parent) != "."}
    for here, names, files in os.walk(path):
        inside = Path(here).relative_to(path)
        for name in sorted(files):
            if (inside / name).as_posix() not in listed:
                return (inside / name).as_posix()
        for name in sorted(names):
            if (inside / name).as_posix() not in folders or (Path(here) / name).is_symlink():
                return (inside / name).as_posix() + "/"
    return None


def _replace(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`; what was there goes only after that worked, and else comes back."""
    if not path.exists():
        os.rename(partial, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:50]}.old-", dir=path.parent))
    old = aside / "report"
    try:
        os.rename(path, old)
        os.rename(partial, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        with suppress(OSError):
            aside.rmdir()  # only if empty: whatever happens, the old report is not deleted
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> SinkscopeError:
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return SinkscopeError(f"{path} cannot be renamed (a mount point, perhaps): give a new directory inside it.")
    reason = error.strerror or str(error) or type(error).__name__
    return SinkscopeError(f"cannot write the report to {path}: {reason}; what was there before is untouched.")
