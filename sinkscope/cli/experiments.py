"""`sinkscope perplexity`, `ablate`, `cost` and `lab`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import options as given
from sinkscope.cli.options import draw, say, write_table
from sinkscope.errors import SinkscopeError
from sinkscope.files import write_text

if TYPE_CHECKING:
    import xarray as xr

    from sinkscope.policies import Policy


HALVES = {"phantom": "zeroed", "mean-values": "mean", "values-only": "added"}  # what is left of the sinks' values
WAYS = ("dense", "window", "recompute", "sinks", *HALVES)
FOUR_WAYS, SINKS, CACHES, POSITIONS, KINDS = list(WAYS[:4]), [0, 1, 2, 4, 8], [512], ["cache"], ["first"]  # defaults

TASKS = ("bigram", "language")
ALL: list[Any] = []  # as many as the task has by itself

LabArms = Annotated[
    list[str],
    typer.Option(
        "--arms",
        help="Any of: softmax softmax1 'learned sink' 'clipped softmax' sigmoid relu 'sink token'; all if left out (of "
        "the task language: softmax softmax1 'sink token').",
    ),
]

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
    say(quiet, table, f"{int(record.length.sum()):,} tokens; perplexity over those that every policy scored:", out)


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
    say(quiet, table, f"{ids.numel():,} tokens:", out)


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
    from sinkscope.analysis.costs import four_policies

    ways = [_policy(name, cache, sinks) for name in dict.fromkeys(policies)]
    loaded, _ = load(model, **loading)
    table = four_policies(cost_table(loaded, ways, tokens))
    if out is not None:
        write_table(table, out / "cost", f"Cost of attending to {tokens:,} tokens.", table.attrs)
    say(False, table, f"{tokens:,} tokens:", out)


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


def lab(
    task: Annotated[str, typer.Option("--task", help="bigram: Bigram-Backcopy; language: the text itself.")] = "bigram",
    arms: LabArms = ALL,
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
    from sinkscope.lab import head_masses, language_model, language_table, language_verdict

    record: xr.Dataset = language_model(**options)
    save_record(record, out / "language.nc")
    table, heads, verdict = language_table(record), head_masses(record), language_verdict(record)
    write_table(table, out / "language", "Perplexity of models trained from scratch.", table.attrs)
    write_table(heads, out / "heads", "Attention of each head on the first token.", heads.attrs)
    draw(language_emergence(record), out / "language_emergence")
    write_text(out / "verdict.txt", "\n".join(verdict) + "\n", "the verdict")
    return [table.to_string(index=False, float_format=lambda value: f"{value:.4g}"), *verdict]


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
