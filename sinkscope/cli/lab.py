"""`sinkscope lab`: train small models from scratch, and see whether sinks grow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import options as given
from sinkscope.cli.results import draw, write_table
from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    import xarray as xr

TASKS = ("bigram", "language")
ALL: list[Any] = []  # as many as the task has by itself

Arms = Annotated[
    list[str],
    typer.Option(
        "--arms",
        help="Any of: softmax softmax1 'learned sink' 'clipped softmax' sigmoid relu 'sink token'; all if left out (of "
        "the task language: softmax softmax1 'sink token').",
    ),
]


def lab(
    task: Annotated[str, typer.Option("--task", help="bigram: Bigram-Backcopy; language: the text itself.")] = "bigram",
    arms: Arms = ALL,
    seeds: Annotated[list[int], typer.Option("--seeds", help="One run each; 0 1 2 if left out (language: 0).")] = ALL,
    steps: Annotated[int | None, typer.Option("--steps", help="Updates; 1000 if left out (language: 3000).")] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="1 to 3, 1 if left out (language: 4).")] = None,
    text: given.Text = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Runs at the same time, each in a process of its own.")] = 1,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1.")] = "cpu",
    out: given.Out = Path("lab"),
    quiet: given.Quiet = False,
) -> None:
    """Train small models with softmax and with what may replace it. Runs that are finished are not run again."""
    if task not in TASKS:
        raise SinkscopeError(f"{task!r} is no task; give one of {', '.join(TASKS)}.")
    chosen = {"arms": arms or None, "seeds": seeds or None, "steps": steps, "layers": layers}
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    options |= {"source": text, "device": device, "folder": out / "runs", "n_jobs": jobs}
    options["progress"] = False if quiet else None
    said = _bigram(out, options) if task == "bigram" else _language(out, options)
    if not quiet:
        for line in (*said, f"Written to {out}"):
            typer.echo(line)


def _bigram(out: Path, options: dict[str, Any]) -> list[str]:
    """Train, write, and say what came out."""
    from sinkscope import save_record
    from sinkscope.figures import emergence
    from sinkscope.lab import bigram_backcopy, emergence_summary, emergence_table

    record = bigram_backcopy(**options)
    save_record(record, out / "emergence.nc")
    table = emergence_table(record)
    summary, intervals = emergence_summary(table), table.attrs["intervals"]
    write_table(table, out / "emergence", f"Emergence on Bigram-Backcopy: {intervals}.", table.attrs)
    write_table(summary, out / "emergence_summary", f"Emergence on Bigram-Backcopy: mean, {intervals}.", table.attrs)
    for layer in record["layer"].values:
        name = f"emergence_layer_{layer}" if record.sizes["layer"] > 1 else "emergence"
        draw(emergence(record, int(layer)), out / name)
    null, best = (table.attrs[name] for name in ("bos_null", "best_loss_after_non_triggers"))
    return [
        f"Step {table.attrs['step']:,}; mean, {intervals}.",
        summary.set_index("arm").T.to_string(),
        f"Uniform BOS mass of non-triggers: {null:.3f}; best possible loss after non-triggers: {best:.3f}.",
    ]


def _language(out: Path, options: dict[str, Any]) -> list[str]:
    """Train, write, and say what came out."""
    from sinkscope import save_record
    from sinkscope.figures import language_emergence
    from sinkscope.files import replacing
    from sinkscope.lab import head_masses, language_model, language_table, language_verdict

    record: xr.Dataset = language_model(**options)
    save_record(record, out / "language.nc")
    table, heads, verdict = language_table(record), head_masses(record), language_verdict(record)
    write_table(table, out / "language", "Perplexity of models trained from scratch.", table.attrs)
    write_table(heads, out / "heads", "Attention of each head on the first token.", heads.attrs)
    draw(language_emergence(record), out / "language_emergence")
    with replacing(out / "verdict.txt", "the verdict") as partial:
        partial.write_text("\n".join(verdict) + "\n", encoding="utf-8")
    return [table.to_string(index=False, float_format=lambda value: f"{value:.4g}"), *verdict]
