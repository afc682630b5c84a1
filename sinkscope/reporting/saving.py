"""A report as files: a directory that is written whole or not at all, and that never takes a stranger's file with it.

An earlier report is replaced only if it is one, by its own manifest, and holds nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from sinkscope.errors import SinkscopeError
from sinkscope.figures.style import source_json, source_line
from sinkscope.files import FORMATS
from sinkscope.record import save_record
from sinkscope.reporting.content import Content
from sinkscope.reporting.page import formatted, page, readable

MANIFEST = "manifest.json"
FORMAT = "sinkscope report"
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "␣": r"\textvisiblespace{}", "…": r"\ldots{}",
    "×": r"$\times$", "−": r"$-$", "·": r"$\cdot$", "α": r"$\alpha$", "ε": r"$\varepsilon$", "≥": r"$\geq$",
    "∞": r"$\infty$",
    **{raised: f"$^{{{plain}}}$" for raised, plain in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)},
})  # fmt: skip


def save(content: Content, directory: str | os.PathLike[str], progress: bool | None = None) -> Path:
    """See `Report.save`."""
    target = check_directory(directory)
    files: list[str] = []
    with _whole_directory(target) as folder:
        steps: list[Callable[[], list[str]]] = [
            lambda: _records(content, folder),
            *(lambda name=name: _figure(content, folder, name) for name in content.figures),
            *(lambda name=name: _table(content, folder, name) for name in content.tables),
            lambda: _page(content, folder, files),
        ]
        for step in tqdm(steps, desc="writing the report", unit="file", delay=2, disable=progress is False):
            files += step()
        _manifest(content, folder, files)
    return target


def _records(content: Content, folder: Path) -> list[str]:
    (folder / "records").mkdir()
    made = []
    for name, record in content.records.items():
        save_record(record, folder / "records" / f"{name}.nc")
        made.append(f"records/{name}.nc")
    return made


def _figure(content: Content, folder: Path, name: str) -> list[str]:
    figure = content.tried(content.figures, name)
    if figure is None:
        return []
    (folder / "figures").mkdir(exist_ok=True)
    made, engine = [f"figures/{name}.{kind}" for kind in FORMATS], figure.get_layout_engine()
    figure.set_layout_engine("none")  # it is laid out: do not do it again for every format
    try:
        for path in made:
            figure.savefig(folder / path)
    except (ValueError, TypeError, RuntimeError) as problem:  # words that matplotlib cannot read, for one
        content.leave_out(f"the figure of `{name}` could not be drawn: {problem}", content.figures, name)
        for path in made:
            (folder / path).unlink(missing_ok=True)
        return []
    finally:
        figure.set_layout_engine(engine)
    return made


def _table(content: Content, folder: Path, name: str) -> list[str]:
    table, (about, record) = content.tried(content.tables, name), content.captions[name]
    if table is None:
        return []
    (folder / "tables").mkdir(exist_ok=True)
    _write(folder / f"tables/{name}.csv", csv_text(table, record.attrs))
    _write(folder / f"tables/{name}.tex", latex_text(table, record.attrs, about.caption, name))
    return [f"tables/{name}.csv", f"tables/{name}.tex"]


def csv_text(table: pd.DataFrame, attributes: Mapping[Any, Any]) -> str:
    """CSV at full precision, with the column `source` naming where every row comes from."""
    return readable(table).assign(source=source_line(attributes)).to_csv(index=False, lineterminator="\n")


def latex_text(table: pd.DataFrame, attributes: Mapping[Any, Any], caption: str, label: str) -> str:
    """A booktabs table; \\usepackage{booktabs}. Every cell is escaped; its source is a comment above it."""
    kinds = "".join("r" if pd.api.types.is_numeric_dtype(table[c]) else "l" for c in table.columns)
    heads = [latex_escape(str(column).replace("_", " ")) for column in table.columns]
    lines = [
        f"% {source_line(attributes)}",
        f"% {source_json(attributes)}",
        "% needs \\usepackage{booktabs}; letters outside Latin need LuaLaTeX or XeLaTeX",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_escape(caption)}}}",
        f"\\label{{tab:{re.sub(r'[^a-z0-9-]', '-', label)}}}",
        f"\\begin{{tabular}}{{{kinds}}}",
        "\\toprule",
        " & ".join(heads) + " \\\\",
        "\\midrule",
        *(" & ".join(map(latex_escape, row)) + " \\\\" for row in formatted(table)),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """`text` as LaTeX that prints it; nothing in it can be a command or end the row."""
    return text.translate(_LATEX)


def _page(content: Content, folder: Path, files: list[str]) -> list[str]:
    _write(folder / "report.html", page(content, files))
    return ["report.html"]


def _manifest(content: Content, folder: Path, files: list[str]) -> None:
    """The list by which a later save knows what it may replace: each file with its size and SHA-256."""
    listed = {}
    for path in sorted(files):
        held = (folder / path).read_bytes()
        listed[path] = {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}
    manifest = {
        "format": FORMAT,
        "version": 1,
        "headline": content.headline,
        "files": listed,
        "provenance": {name: json.loads(source_json(record.attrs)) for name, record in content.records.items()},
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


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
def _whole_directory(path: Path) -> Iterator[Path]:
    """A directory that takes the name `path` when the block ends well, and vanishes when it does not."""
    made: list[Path] = []
    partial: Path | None = None
    try:
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        partial = path.with_name(f".{path.name[:50]}.partial-{uuid.uuid4().hex}")
        partial.mkdir()
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


def saved_files(path: Path) -> set[str] | None:
    """The files of the report in `path`, relative to it, as its manifest lists them; None without one of ours."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT and isinstance(manifest.get("files"), dict)
    return {MANIFEST, *manifest["files"]} if ours else None


def _foreign_file(path: Path) -> str | None:
    """The first entry of `path`, relative to it, that the manifest of an earlier report does not list."""
    listed = saved_files(path) or set()
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


def _cannot_write(path: Path, error: OSError) -> SinkscopeError:
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return SinkscopeError(f"{path} cannot be renamed (a mount point, perhaps): give a new directory inside it.")
    reason = error.strerror or str(error) or type(error).__name__
    return SinkscopeError(f"cannot write the report to {path}: {reason}; what was there before is untouched.")
