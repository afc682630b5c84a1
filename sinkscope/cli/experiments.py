"""The commands that measure one thing: `perplexity`, `ablate`, `cost` and `lab`.

Each writes its record, tables and figures to a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sinkscope
from sinkscope.cli import options as given
from sinkscope.cli.options import check_free, limits, printed, say, write_table
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.grid import WAYS, named_policies
from sinkscope.files import write_figure, write_sealed
from sinkscope.texts import read_stream

if TYPE_CHECKING:
    import pandas as pd
    import torch
    import xarray as xr

FOUR_WAYS, SINKS, CACHES, POSITIONS, KINDS = list(WAYS[:4]), [0, 1, 2, 4, 8], [512], ["cache"], ["first"]  # defaults

TASKS = ("bigram", "language")
ALL: list[Any] = []  # as many as the task has by itself

Arms = Annotated[
    list[str],
    typer.Option(
        help="Any of: softmax softmax1 'learned sink' 'clipped softmax' sigmoid relu 'sink token' softpick gated; all "
        "if left out (of the task language: softmax softmax1 'sink token').",
    ),
]
Words = list[str] | None
Numbers = list[int] | None

Policies = Annotated[list[str], typer.Option(help=f"Any of: {' '.join(WAYS)}.")]
Cache = Annotated[int, typer.Option(help="Tokens that every policy but dense keeps.")]
Tokens = Annotated[int, typer.Option(min=2, help="Tokens of the text to read.")]
Sinks = Annotated[int, typer.Option(help="First tokens among them, for the policy sinks.")]


@given.loads_model
def perplexity(
    model: given.Model = None,
    text: given.Texts = None,
    tokens: Tokens = 4096,
    start: given.Start = 0,
    segments: given.Segments = None,
    starts: given.Starts = "spaced",
    policies: Policies = FOUR_WAYS,
    cache: Cache = 512,
    sinks: Sinks = 4,
    samples: Annotated[
        int, typer.Option(min=0, help="Tokens that re-computation scores beyond its first window; 0: all.")
    ] = 256,
    block: Annotated[int, typer.Option(min=1, help="Tokens per forward pass; losses stay the same.")] = 1024,
    out: given.Out = Path("perplexity"),
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Perplexity of one text under several ways to attend to it. The same command goes on where it was stopped."""
    from sinkscope.texts import text_name

    ways = named_policies(policies, cache, sinks)
    check_free(out, ["perplexity"], ["log_perplexity"], ["perplexity.nc"])
    loaded, tokenizer = sinkscope.load(model, **loading)
    ids = texts_of(tokenizer, text, tokens, start, segments, starts)
    record = sinkscope.perplexity(
        loaded, ids, ways, block=block, samples=samples or None, checkpoint=out / "checkpoints",
        progress=False if quiet else None, text=text_name(text or None),
    )  # fmt: skip
    sinkscope.save_record(record, out / "perplexity.nc")
    table = sinkscope.ppl_table(record)
    said = f"Perplexity over the tokens that every policy scored; {table.attrs['bounds']}."
    write_table(table, out / "perplexity", said, record.attrs)
    write_figure(sinkscope.figures.log_perplexity(record), out / "log_perplexity")
    title = f"{int(record.length.sum()):,} tokens; perplexity over those that every policy scored:"
    say(quiet, title, printed(table), limits(table), f"Written to {out}")


@given.loads_model
def ablate(
    model: given.Model = None,
    text: given.Texts = None,
    tokens: Tokens = 4096,
    start: given.Start = 0,
    segments: given.Segments = None,
    starts: given.Starts = "spaced",
    sinks: Annotated[list[int], typer.Option(help="Numbers of sink tokens.")] = SINKS,
    cache: Annotated[list[int], typer.Option(help="Cache sizes, sinks included.")] = CACHES,
    positions: Annotated[list[str], typer.Option(help="cache, original or both.")] = POSITIONS,
    kinds: Annotated[list[str], typer.Option(help="What the sinks are: first, 'line breaks', random.")] = KINDS,
    jobs: Annotated[int, typer.Option(help="Cells at the same time, each in a process of its own.")] = 1,
    out: given.Out = Path("ablation"),
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Perplexity against the number of sink tokens. Cells that are finished are not run again."""
    from sinkscope.texts import text_name

    check_free(out, ["ablation"], ["ablation"])
    loaded, tokenizer = sinkscope.load(model, **loading)
    ids = texts_of(tokenizer, text, tokens, start, segments, starts)
    travels = loaded if loading or jobs == 1 else model  # a name is lighter than weights
    table = sinkscope.ablate(
        travels, ids, sinks, cache, positions, kinds, tokenizer=tokenizer, n_jobs=jobs, folder=out / "cells",
        progress=False if quiet else None, text=text_name(text or None),
    )  # fmt: skip
    write_table(table, out / "ablation", f"Perplexity against the number of sink tokens; {table.attrs['bounds']}.")
    write_figure(sinkscope.figures.ablation(table), out / "ablation")
    say(quiet, f"{sum(map(len, ids)):,} tokens:", printed(table), limits(table), f"Written to {out}")


@given.loads_model
def cost(
    model: given.Model = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the text.")] = 65536,
    policies: Policies = FOUR_WAYS,
    cache: Cache = 1024,
    sinks: Sinks = 4,
    out: Annotated[Path | None, typer.Option(help="A folder for the table as CSV and LaTeX.")] = None,
    *,
    loading: given.Loading,
) -> None:
    """Operations and KV memory of the ways to attend, from the model's own shapes."""
    from sinkscope.analysis.costs import four_policies

    ways = named_policies(policies, cache, sinks)
    loaded, _ = sinkscope.load(model, **loading)
    table = four_policies(sinkscope.cost_table(loaded, ways, tokens))
    if out is not None:
        write_table(table, out / "cost", f"Cost of attending to {tokens:,} tokens.")
    say(False, f"{tokens:,} tokens:", printed(table), *([] if out is None else [f"Written to {out}"]))


def lab(
    task: Annotated[str, typer.Option(help="bigram: Bigram-Backcopy; language: the text itself.")] = "bigram",
    arms: Arms = ALL,
    seeds: Annotated[list[int], typer.Option(help="One run each; 0 to 7 if left out (language: 0).")] = ALL,
    steps: Annotated[int | None, typer.Option(help="Updates; 1000 if left out (language: 3000).")] = None,
    layers: Annotated[int | None, typer.Option(help="1 to 3, 1 if left out (language: 4).")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a sequence; 64 if left out (language: 256).")] = None,
    text: given.Text = None,
    jobs: Annotated[int, typer.Option(help="Runs at the same time, each in a process of its own.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    out: given.Out = Path("lab"),
    quiet: given.Quiet = False,
) -> None:
    """Train small models with softmax and with what may replace it. Runs that are finished are not run again."""
    if task not in TASKS:
        raise SinkscopeError(f"{task!r} is no task; give one of {', '.join(TASKS)}.")
    chosen = {"arms": arms or None, "seeds": seeds or None, "steps": steps, "layers": layers, "length": length}
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    options |= {"source": text, "device": device, "folder": out / "runs", "n_jobs": jobs}
    options["progress"] = False if quiet else None
    said = _bigram(out, options) if task == "bigram" else _language(out, options)
    say(quiet, *said, f"Written to {out}")


def _bigram(out: Path, options: dict[str, Any]) -> list[str]:
    from sinkscope.figures import emergence
    from sinkscope.lab import bigram_backcopy, emergence_summary, emergence_table

    check_free(out, ["emergence", "emergence_summary"], ["emergence"], ["emergence.nc"])
    record = bigram_backcopy(**options)
    sinkscope.save_record(record, out / "emergence.nc")
    table = emergence_table(record)
    summary, intervals = emergence_summary(table), table.attrs["intervals"]
    write_table(table, out / "emergence", f"Emergence on Bigram-Backcopy: {intervals}.")
    write_table(summary, out / "emergence_summary", f"Emergence on Bigram-Backcopy: mean, {intervals}.", table.attrs)
    for layer in record["layer"].values:
        name = f"emergence_layer_{layer}" if record.sizes["layer"] > 1 else "emergence"
        write_figure(emergence(record, int(layer)), out / name)
    null, best = (table.attrs[name] for name in ("bos_null", "best_loss"))
    return [
        f"Step {table.attrs['step']:,}; mean, {intervals}.",
        summary.set_index("arm").T.to_string(),
        f"Uniform BOS mass of non-triggers: {null:.3f}; best possible loss: {best:.3f}.",
        *_told_apart(table),
    ]


def _told_apart(table: pd.DataFrame) -> list[str]:
    """Differences in the attention on BOS, with their p values, where there are any."""
    rows = table[(table["quantity"] == "BOS mass of non-triggers") & table["p_holm"].notna()]
    shown = rows[["arm", "layer", "difference", "difference_low", "difference_high", "p", "p_holm"]]
    if shown.empty:
        return []
    return [f"BOS mass of non-triggers, difference to {table.attrs['baseline']}:", printed(shown)]


def _language(out: Path, options: dict[str, Any]) -> list[str]:
    from sinkscope.figures import language_emergence
    from sinkscope.lab import head_masses, language_model, language_table, language_verdict

    check_free(out, ["language", "heads"], ["language_emergence"], ["language.nc", "verdict.txt"])
    record: xr.Dataset = language_model(**options)
    sinkscope.save_record(record, out / "language.nc")
    table, heads, verdict = language_table(record), head_masses(record), language_verdict(record)
    write_table(table, out / "language", "Perplexity of models trained from scratch.")
    write_table(heads, out / "heads", "Attention of each head on the first token.")
    write_figure(language_emergence(record), out / "language_emergence")
    write_sealed(out / "verdict.txt", "\n".join(verdict).encode(), "the verdict")
    return [printed(table), *verdict]


def texts_of(
    tokenizer: Any, sources: Words, tokens: int, start: int, count: int | None, starts: str
) -> list[torch.Tensor]:
    """One part of each text, or segments from all over it."""
    if count is None:
        parts = (sinkscope.read_tokens(tokenizer, each, limit=tokens, start=start) for each in sources or (None,))
        return [row for part in parts for row in part]
    if start:
        raise SinkscopeError("--start goes with one part of a text, not with --segments: leave one of them out.")
    return list(sinkscope.read_segments(tokenizer, sources, tokens, count, starts=starts))


def sequences_of(tokenizer: Any, text: str | None, tokens: int, count: int) -> torch.Tensor:
    """Sequences [sequence, token] of a text, each with the tokens in front that this tokenizer puts there."""
    stream, front = read_stream(tokenizer, text, tokens * count)
    return sinkscope.sequences(stream, tokens, count, bos=front)
