"""What commands leave in a folder, tables as CSV and LaTeX, figures as PDF, SVG and PNG, each in one step; and what
they say of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sinkscope.files import replacing, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")


def write_table(table: pd.DataFrame, path: Path, caption: str, attributes: Any) -> None:
    """The table as path.csv and path.tex, each with its source."""
    from sinkscope.reporting.table_files import csv_text, latex_text

    named = {str(name): value for name, value in attributes.items()}
    write_text(path.with_suffix(".csv"), csv_text(table, named), "the table")
    write_text(path.with_suffix(".tex"), latex_text(table, named, caption, path.name), "the table")


def draw(figure: Figure, path: Path) -> None:
    """The figure in every format, path.pdf first."""
    for kind in FORMATS:
        with replacing(path.with_suffix(f".{kind}"), "the figure") as partial:
            figure.savefig(partial, format=kind)


def say(quiet: bool, table: pd.DataFrame, title: str, out: Path | None = None) -> None:
    """Print a table under its title, and where it was written."""
    if quiet:
        return
    typer.echo(title)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if out is not None:
        typer.echo(f"Written to {out}")
