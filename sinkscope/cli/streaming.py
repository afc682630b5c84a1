"""`sinkscope perplexity`, `sinkscope ablate` and `sinkscope cost`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import options as given
from sinkscope.cli.results import draw, write_table
from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    import pandas as pd

    from sinkscope.core.policies import Policy

HALVES = {"phantom": "zeroed", "mean-values": "mean", "values-only": "added"}  # what is left of the sinks' values
WAYS = ("dense", "window", "recompute", "sinks", *HALVES)
FOUR_WAYS, SINKS, CACHES, POSITIONS, KINDS = list(WAYS[:4]), [0, 1, 2, 4, 8], [512], ["cache"], ["first"]  # defaults

Policies = Annotated[list[str], typer.Option("--policies", help=f"Any of: {' '.join(WAYS)}.")]
Cache = Annotated[int, typer.Option("--cache", help="Tokens that every policy but dense keeps.")]
Sinks = Annotated[int, typer.Option("--sinks", help="First tokens among them, for the policy sinks.")]


@given.loads_model
def perplexity(
    model: given.Model = None,
    text: given.Text = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens of the text to read.")] = 4096,
    start: given.Start = 0,
    policies: Policies = FOUR_WAYS,
    cache: Cache = 512,
    sinks: Sinks = 4,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Tokens that re-computation scores beyond its first window; 0: all.")
    ] = 256,
    block: Annotated[int, typer.Option("--block", min=1, help="Tokens per forward pass; losses stay the same.")] = 1024,
    out: given.Out = Path("perplexity"),
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Perplexity of one text under several ways to attend to it. The same command goes on where it was stopped."""
    from sinkscope import load, perplexity, ppl_table, read_tokens, save_record
    from sinkscope.figures import log_perplexity
    from sinkscope.reporting.gather import text_name

    ways = [_policy(name, cache, sinks) for name in dict.fromkeys(policies)]
    loaded, tokenizer = load(model, **loading)
    ids = read_tokens(tokenizer, text, limit=tokens, start=start)
    record = perplexity(
        loaded, ids, ways, block=block, samples=samples or None, checkpoint=out / "checkpoints",
        progress=False if quiet else None, text=text_name(text),
    )  # fmt: skip
    save_record(record, out / "perplexity.nc")
    table = ppl_table(record)
    write_table(table, out / "perplexity", "Perplexity over the tokens that every policy scored.", record.attrs)
    draw(log_perplexity(record), out / "log_perplexity")
    _say(quiet, table, out, f"{int(record.length.sum()):,} tokens; perplexity over those that every policy scored:")


@given.loads_model
def ablate(
    model: given.Model = None,
    text: given.Text = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens of the text to read.")] = 4096,
    start: given.Start = 0,
    sinks: Annotated[list[int], typer.Option("--sinks", help="Numbers of sink tokens.")] = SINKS,
    cache: Annotated[list[int], typer.Option("--cache", help="Cache sizes, sinks included.")] = CACHES,
    positions: Annotated[list[str], typer.Option("--positions", help="cache, original or both.")] = POSITIONS,
    kinds: Annotated[
        list[str], typer.Option("--kinds", help="What the sinks are: first, 'line breaks', random.")
    ] = KINDS,
    jobs: Annotated[int, typer.Option("--jobs", help="Cells at the same time, each in a process of its own.")] = 1,
    out: given.Out = Path("ablation"),
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Perplexity against the number of sink tokens. Cells that are finished are not run again."""
    from sinkscope import ablate, load, read_tokens
    from sinkscope.figures import ablation
    from sinkscope.reporting.gather import text_name

    loaded, tokenizer = load(model, **loading)
    ids = read_tokens(tokenizer, text, limit=tokens, start=start)
    travels = loaded if loading or jobs == 1 else model  # a name is lighter than weights
    table = ablate(
        travels, ids, sinks, cache, positions, kinds, tokenizer=tokenizer, n_jobs=jobs, folder=out / "cells",
        progress=False if quiet else None, text=text_name(text),
    )  # fmt: skip
    write_table(table, out / "ablation", "Perplexity against the number of sink tokens.", table.attrs)
    draw(ablation(table), out / "ablation")
    _say(quiet, table, out, f"{ids.numel():,} tokens:")


@given.loads_model
def cost(
    model: given.Model = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Length of the text.")] = 65536,
    policies: Policies = FOUR_WAYS,
    cache: Cache = 1024,
    sinks: Sinks = 4,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for the table as CSV and LaTeX.")] = None,
    *,
    loading: given.Loading,
) -> None:
    """Operations and KV memory of the ways to attend, from the model's own shapes."""
    from sinkscope import cost_table, load
    from sinkscope.analysis.four_policies import four_policies

    ways = [_policy(name, cache, sinks) for name in dict.fromkeys(policies)]
    loaded, _ = load(model, **loading)
    table = four_policies(cost_table(loaded, ways, tokens))
    if out is not None:
        write_table(table, out / "cost", f"Cost of attending to {tokens:,} tokens.", table.attrs)
    _say(False, table, out, f"{tokens:,} tokens:")


def _policy(name: str, cache: int, sinks: int) -> Policy:
    from sinkscope import Dense, Recompute, SinkWindow, Window

    if name not in WAYS:
        raise SinkscopeError(f"{name!r} is no policy; give any of {', '.join(WAYS)}.")
    if name not in WAYS[:3] and sinks >= cache:
        raise SinkscopeError(f"{sinks} sinks leave no window in a cache of {cache}; give fewer sinks or more cache.")
    made: dict[str, Any] = {
        "dense": Dense,
        "window": lambda: Window(cache),
        "recompute": lambda: Recompute(cache),
        "sinks": lambda: SinkWindow(sinks, cache - sinks),
        **{half: partial(SinkWindow, sinks, cache - sinks, values=values) for half, values in HALVES.items()},
    }
    return made[name]()


def _say(quiet: bool, table: pd.DataFrame, out: Path | None, title: str) -> None:
    if quiet:
        return
    typer.echo(title)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if out is not None:
        typer.echo(f"Written to {out}")
