"""`Report`: the records of one model, and every figure and table drawn from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from sinkscope.errors import SinkscopeError
from sinkscope.figures.provenance import source_line
from sinkscope.reporting.directory import read_manifest
from sinkscope.reporting.headline import headline
from sinkscope.reporting.plates import Figures
from sinkscope.reporting.softmax_findings import finding
from sinkscope.reporting.tables import Tables

RECORDS = (
    "text", "short", "sentences",
    "perplexity", "ablation", "decode",
    "forced", "collapse", "dose", "interventions", "predictability",
)  # fmt: skip
SHOWN = ("sink_mass_heatmap", "received_by_position", "sink_rate_curve")


class Report:
    """Where a model's attention goes: records in, figures, tables and a page out. Needs no model and no
    torch.

    records: one record, or several by name: "text" (the main one), and if there are "short" (many short
        sequences, for the sink rate as it is published), "sentences" (for mean logits), of streaming
        "perplexity", "ablation" and "decode", and of what softmax forces "forced", "collapse", "dose",
        "interventions" and "predictability".
    figures: name -> matplotlib Figure, drawn when asked for; only those the records can give.
    tables: name -> pandas DataFrame, computed when asked for.

    Raises SinkscopeError for records without "text" or of an unknown name.
    """

    def __init__(self, records: xr.Dataset | Mapping[str, xr.Dataset]) -> None:
        named = {"text": records} if isinstance(records, xr.Dataset) else dict(records)
        for name in named:
            if name not in RECORDS:
                raise SinkscopeError(f"a report has the records {', '.join(RECORDS)}, not {name!r}.")
        if "text" not in named:
            raise SinkscopeError('a report needs its main record: pass it as {"text": record}.')
        self.records: dict[str, xr.Dataset] = {name: named[name] for name in RECORDS if name in named}
        self.figures = Figures(self.records)
        self.tables = Tables(self.records)

    @property
    def headline(self) -> str:
        """The result in one sentence, and what streaming costs in another."""
        return headline(self.records)

    def finding(self, name: str) -> str:
        """What the figure of this name shows, in words made of its numbers; nothing for most."""
        return finding(name, self.records, self.tables)

    @property
    def notes(self) -> list[str]:
        """What differs from what was asked for: a shorter text, a model's limit."""
        return [line for line in str(self.records["text"].attrs.get("notes", "")).split("\n") if line]

    def save(self, directory: str | os.PathLike[str], *, progress: bool | None = None) -> Path:
        """Write report.html, figures/, tables/, records/ and manifest.json to `directory`; its absolute path.

        All of it or nothing: it is written beside and renamed. An earlier report in `directory` is replaced.
        Raises SinkscopeError if `directory` holds anything else or cannot be written to.
        """
        from sinkscope.reporting.save import save

        return save(self, directory, progress=progress)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Report:
        """The report saved in `directory`, from its records alone. Raises SinkscopeError if there is none."""
        from sinkscope.record import open_record

        path = Path(directory).expanduser()
        manifest = read_manifest(path)
        if manifest is None:
            raise SinkscopeError(
                f"{path} is not a saved report (no manifest.json of one): give a directory that save made."
            )
        listed = [name for name in RECORDS if f"records/{name}.nc" in manifest["files"]]  # type: ignore[operator]
        return cls({name: open_record(path / "records" / f"{name}.nc") for name in listed})

    def __repr__(self) -> str:
        return f"{self.headline}\n{source_line(self.records['text'].attrs)}\nfigures: {', '.join(self.figures)}\n" + (
            f"tables: {', '.join(self.tables)}"
        )

    def _repr_html_(self) -> str:
        from sinkscope.reporting.notebook import fragment

        return fragment(self, [name for name in SHOWN if name in self.figures] or list(self.figures)[:2])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}
