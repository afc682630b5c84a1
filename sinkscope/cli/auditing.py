"""The command `audit`: what holds on which types of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinkscope.cli import options as given
from sinkscope.cli.options import say
from sinkscope.files import writable_folder, write_table_files


def audit(
    types: Annotated[
        list[str] | None,
        typer.Argument(help="As transformers names them, such as llama; every causal one if left out."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Types at the same time, each in a process of its own.")] = 1,
    out: given.Out = Path("audit"),
    quiet: given.Quiet = False,
) -> None:
    """Check tiny random models of every type against what they do by themselves, and write the compatibility page."""
    from sinkscope.experiments import audit as experiment
    from sinkscope.reporting.compatibility import compatibility_page
    from sinkscope.reporting.tables import plain_csv

    chosen = experiment.checked_types(types or None)
    folder = writable_folder(out, "the audit")
    table = experiment.audit(chosen, workers=workers, progress=False if quiet else None)
    write_table_files(plain_csv(table), folder / "compatibility.md", compatibility_page(table))
    counts = table.groupby(["check", "verdict"], sort=False).size().unstack(fill_value=0)
    say(quiet, f"{len(chosen)} types:", counts.to_string(), f"Written to {out}")
