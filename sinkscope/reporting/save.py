"""A report as files: records, figures in three formats, tables in two, the page, and a manifest of all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from sinkscope.figures.provenance import source_json
from sinkscope.reporting.directory import FORMAT, MANIFEST, check_directory, whole_directory
from sinkscope.reporting.page import page
from sinkscope.reporting.table_files import csv_text, latex_text
from sinkscope.reporting.tables import CONTENTS

if TYPE_CHECKING:
    from sinkscope.reporting.document import Report

FORMATS = ("pdf", "svg", "png")


def save(report: Report, directory: str | os.PathLike[str], progress: bool | None = None) -> Path:
    """Write the whole report to `directory`, or nothing; see `Report.save`."""
    target = check_directory(directory)
    files: list[str] = []
    with whole_directory(target) as folder:
        steps: list[Callable[[], list[str]]] = [
            lambda: _records(report, folder),
            *(lambda name=name: _figure(report, folder, name) for name in report.figures),
            *(lambda name=name: _table(report, folder, name) for name in report.tables),
            lambda: _page(report, folder, files),
        ]
        for step in tqdm(steps, desc="writing the report", unit="file", delay=2, disable=progress is False):
            files += step()
        _manifest(report, folder, files)
    return target


def _records(report: Report, folder: Path) -> list[str]:
    from sinkscope.record import save_record

    (folder / "records").mkdir()
    made = []
    for name, record in report.records.items():
        save_record(record, folder / "records" / f"{name}.nc")
        made.append(f"records/{name}.nc")
    return made


def _figure(report: Report, folder: Path, name: str) -> list[str]:
    (folder / "figures").mkdir(exist_ok=True)
    figure = report.figures[name]
    figure.set_layout_engine("none")  # it is laid out: do not do it again for every format
    made = [f"figures/{name}.{kind}" for kind in FORMATS]
    for path in made:
        figure.savefig(folder / path)
    return made


def _table(report: Report, folder: Path, name: str) -> list[str]:
    (folder / "tables").mkdir(exist_ok=True)
    table, attributes = report.tables[name], report.tables.attributes(name)
    _write(folder / f"tables/{name}.csv", csv_text(table, attributes))
    _write(folder / f"tables/{name}.tex", latex_text(table, attributes, CONTENTS[name].caption, name))
    return [f"tables/{name}.csv", f"tables/{name}.tex"]


def _page(report: Report, folder: Path, files: list[str]) -> list[str]:
    _write(folder / "report.html", page(report, files))
    return ["report.html"]


def _manifest(report: Report, folder: Path, files: list[str]) -> None:
    """The list by which a later save knows what it may replace: each file with its size and SHA-256."""
    listed = {}
    for path in sorted(files):
        content = (folder / path).read_bytes()
        listed[path] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    provenance = {name: json.loads(source_json(record.attrs)) for name, record in report.records.items()}
    manifest = {
        "format": FORMAT,
        "version": 1,
        "headline": report.headline,
        "files": listed,
        "provenance": provenance,
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
