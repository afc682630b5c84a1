"""A report as files: its records, figures, tables and page, in a directory that is written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sinkscope.directories import check_directory, whole_directory, write_manifest, write_synced
from sinkscope.figures.style import source_json
from sinkscope.files import FORMATS
from sinkscope.record import record_bytes
from sinkscope.reporting.content import MAIN, Content
from sinkscope.reporting.page import page
from sinkscope.reporting.tables import csv_text, latex_text


def save(
    content: Content, directory: str | os.PathLike[str], progress: bool | None = None, prints: bool = True
) -> Path:
    """See `Report.save`."""
    target = check_directory(directory)
    files: list[str] = []
    with whole_directory(target) as folder:
        steps: list[Callable[[], list[str]]] = [
            lambda: _records(content, folder),
            *(lambda name=name: _figure(content, folder, name) for name in content.figures if prints),
            *(lambda name=name: _table(content, folder, name) for name in content.tables if prints),
            lambda: _page(content, folder, files),
        ]
        for step in tqdm(steps, desc="writing the report", unit="file", delay=2, disable=progress is False):
            files += step()
        write_manifest(folder, files, _about(content))
    return target


def _records(content: Content, folder: Path) -> list[str]:
    (folder / "records").mkdir()
    made = []
    for name, record in content.records.items():
        write_synced(folder / f"records/{name}.nc", record_bytes(record))
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


def _page(content: Content, folder: Path, files: list[str]) -> list[str]:
    _write(folder / "report.html", page(content, files))
    return ["report.html"]


def _about(content: Content) -> dict[str, Any]:
    provenance = {name: json.loads(source_json(record.attrs)) for name, record in content.records.items()}
    about = {"headline": content.headline, "provenance": provenance}
    main = content.records[MAIN].attrs
    if "plan_sha256" in main:
        told = {name: main[f"plan_{name}"] for name in ("sha256", "read")}
        about["plan"] = {**told, "text_sha256": main["text_sha256"].split(", "), "content": json.loads(main["plan"])}
    return about


def _write(path: Path, text: str) -> None:
    write_synced(path, text.encode("utf-8", "backslashreplace"))
