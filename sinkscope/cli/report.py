"""`sinkscope report MODEL --text FILE --out DIRECTORY`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinkscope.cli import options as given


@given.loads_model
def report(
    model: given.Model = None,
    text: given.Text = None,
    out: Annotated[Path, typer.Option("--out", help="Where to write: new, empty, or an earlier report.")] = Path(
        "report"
    ),
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="How many sequences of the text.")] = 8,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens in each sequence.")] = 1024,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens in all, in place of --sequences.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming/--no-streaming", help="Also stream the text: perplexity, sinks, costs.")
    ] = True,
    softmax: Annotated[
        bool, typer.Option("--softmax/--no-softmax", help="Also what sum-to-one forces: interventions and controls.")
    ] = True,
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Measure where a model's attention goes and write it up: a page, figures, tables and the record."""
    from sinkscope.reporting import check_directory

    target = check_directory(out)
    if tokens is not None:
        length = min(length, tokens)
        sequences = max(1, tokens // length)

    from sinkscope.reporting.gather import report as measure_report

    progress = False if quiet else None
    made = measure_report(
        model, None, text, sequences=sequences, length=length, streaming=streaming, softmax=softmax, progress=progress,
        **loading,
    )  # fmt: skip
    made.save(target, progress=progress)
    if not quiet:
        for line in (made.headline, *made.notes, f"Open {target / 'report.html'}"):
            typer.echo(line)
