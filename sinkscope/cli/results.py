"""What commands leave in a folder: tables as CSV and LaTeX, figures as PDF, SVG and PNG, each in one step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")


def write_table(table: pd.DataFrame, path: Path, caption: str, attributes: Any) -> None:
    """The table as path.csv and path.tex, each with its source."""
    from sinkscope.files import replacing
    from sinkscope.reporting.table_files import csv_text, latex_text

    named = {str(name): value for name, value in attributes.items()}
    contents = {".csv": csv_text(table, named), ".tex": latex_text(table, named, caption, path.name)}
    for ending, content in contents.items():
        with replacing(path.with_suffix(ending), "the table") as partial:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(content, encoding="utf-8")


def draw(figure: Figure, path: Path) -> None:
    """The figure in every format, path.pdf first."""
    from sinkscope.files import replacing

    for kind in FORMATS:
        with replacing(path.with_suffix(f".{kind}"), "the figure") as partial:
            figure.savefig(partial, format=kind)
