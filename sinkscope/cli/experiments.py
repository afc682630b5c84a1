"""The commands that measure: `perplexity`, `ablate`, `cost`, `lab` and `intervene`.

Each writes its record, tables and figures to a folder.
"""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sinkscope
from sinkscope.cli import options as given
from sinkscope.cli.options import printed, say, write_table
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.grid import WAYS, named_policies
from sinkscope.files import write_figure, write_sealed
from sinkscope.texts import read_stream

if TYPE_CHECKING:
    import pandas as pd
    import torch
    import xarray as xr

    from sinkscope.experiments.intervention import Intervention

FOUR_WAYS, SINKS, CACHES, POSITIONS, KINDS = list(WAYS[:4]), [0, 1, 2, 4, 8], [512], ["cache"], ["first"]  # defaults

TASKS = ("bigram", "language")
ALL: list[Any] = []  # as many as the task has by itself

Arms = Annotated[
    list[str],
    typer.Option(
        help="Any of: softmax softmax1 'learned sink' 'clipped softmax' sigmoid relu 'sink token'; all if left out (of "
        "the task language: softmax softmax1 'sink token').",
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
    loaded, tokenizer = sinkscope.load(model, **loading)
    ids = _texts(tokenizer, text, tokens, start, segments, starts)
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
    say(quiet, title, printed(table), _limits(table), f"Written to {out}")


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

    loaded, tokenizer = sinkscope.load(model, **loading)
    ids = _texts(tokenizer, text, tokens, start, segments, starts)
    travels = loaded if loading or jobs == 1 else model  # a name is lighter than weights
    table = sinkscope.ablate(
        travels, ids, sinks, cache, positions, kinds, tokenizer=tokenizer, n_jobs=jobs, folder=out / "cells",
        progress=False if quiet else None, text=text_name(text or None),
    )  # fmt: skip
    write_table(table, out / "ablation", f"Perplexity against the number of sink tokens; {table.attrs['bounds']}.")
    write_figure(sinkscope.figures.ablation(table), out / "ablation")
    say(quiet, f"{sum(map(len, ids)):,} tokens:", printed(table), _limits(table), f"Written to {out}")


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

    record: xr.Dataset = language_model(**options)
    sinkscope.save_record(record, out / "language.nc")
    table, heads, verdict = language_table(record), head_masses(record), language_verdict(record)
    write_table(table, out / "language", "Perplexity of models trained from scratch.")
    write_table(heads, out / "heads", "Attention of each head on the first token.")
    write_figure(language_emergence(record), out / "language_emergence")
    write_sealed(out / "verdict.txt", "\n".join(verdict).encode(), "the verdict")
    return [printed(table), *verdict]


@given.loads_model
def intervene(
    model: given.Model = None,
    text: given.Texts = None,
    evict: Annotated[Words, typer.Option(help="Keys: sinks, random, recent, delimiters.")] = None,
    replace: Annotated[
        Words, typer.Option(help="Put 'line breaks' or random tokens in the place of the first ones.")
    ] = None,
    shift: Annotated[int | None, typer.Option(min=1, help="Start the text so many tokens later.")] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="A text of one token again and again.")] = False,
    massive: Annotated[Words, typer.Option(help="Massive activations to: zero, mean.")] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(help="Biases on the logits of the first keys, and of as many random ones; -inf evicts."),
    ] = None,
    layers: Annotated[Numbers, typer.Option(help="Where; all, or the first massive layer.")] = None,
    heads: Annotated[Numbers, typer.Option(help="Where keys go; in all heads if left out.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many keys or tokens; as many as --sinks if left out.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens in each sequence.")] = 512,
    sequences: Annotated[int, typer.Option(min=1, help="How many sequences, one behind the other.")] = 8,
    segments: given.Segments = None,
    starts: given.Starts = "spaced",
    start: Annotated[int, typer.Option(min=2, help="The first query that notices, of each sequence.")] = 64,
    sinks: Annotated[int, typer.Option(min=1, help="How many first tokens count as sinks.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    out: given.Out = Path("interventions"),
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Take sinks away, or other keys, and see what happens. With nothing named: the usual interventions."""
    from sinkscope.experiments.interventions import checked_doses
    from sinkscope.texts import text_name

    where: dict[str, Any] = {"layers": layers or None, "heads": heads or None}
    chosen: list[Intervention] = [  # a word given twice counts once
        *(sinkscope.EvictKeys(which, count, **where) for which in dict.fromkeys(evict or [])),
        *(sinkscope.ReplaceTokens(by, count) for by in dict.fromkeys(replace or [])),
        *([] if shift is None else [sinkscope.Shift(shift)]),
        *([sinkscope.Repeat()] if repeat else []),
        *(sinkscope.SetMassive(layers or None, mode) for mode in dict.fromkeys(massive or [])),
    ]
    doses = checked_doses(dose) if dose else []
    used = {  # each option, and the words that it is for
        "--layers": (layers, evict or massive or doses),
        "--heads": (heads, evict or doses),
        "--count": (count, evict or replace or doses),
    }
    for option, (value, words) in used.items():
        if value and not words:
            raise SinkscopeError(f"{option} is for interventions on keys or layers; name some, such as --evict sinks.")
    loaded, tokenizer = sinkscope.load(model, **loading)
    if segments is not None:
        ids = _texts(tokenizer, text, tokens, 0, segments, starts)
    else:
        ids = [row for each in text or (None,) for row in _read(tokenizer, each, tokens, sequences)]
    options: dict[str, Any] = {"start": start, "sinks": sinks, "seed": seed, "progress": False if quiet else None}
    read = f"{len(ids)} sequences of {tokens} tokens; keys go, and losses are scored, from query {start} on"
    done = response = None
    if chosen or not doses:
        done = sinkscope.run_interventions(loaded, ids, chosen or None, tokenizer=tokenizer, **options)
        done.attrs["text"] = text_name(text or None)
    if doses:
        keys: dict[str, Any] = {"count": count or sinks, "layers": layers, "heads": heads}
        response = sinkscope.dose_response(loaded, ids, doses, **keys, **options, text=text_name(text or None))
    if done is not None:
        table = sinkscope.intervention_table(done, seed=seed)
        write_table(table, out / "interventions", f"Interventions and their controls: {read}.")
        sinkscope.save_record(done, out / "interventions.nc")
        write_figure(sinkscope.figures.effects(table), out / "effects")
        title = f"{read}. ratio: perplexity over that with nothing done; brackets: 95%."
        say(quiet, title, printed(beside(table)), _limits(table))
    if response is not None:
        table = sinkscope.dose_table(response, seed=seed)
        caption = f"A bias on the logits of the first keys ({count or sinks}), and of as many random ones: {read}."
        write_table(table, out / "dose", caption)
        sinkscope.save_record(response, out / "dose.nc")
        write_figure(sinkscope.figures.dose_response(table), out / "dose")
        say(quiet, caption, printed(table), _limits(table))
    say(quiet, f"Written to {out}")


def _texts(
    tokenizer: Any, sources: Words, tokens: int, start: int, count: int | None, starts: str
) -> list[torch.Tensor]:
    """One part of each text, or segments from all over it."""
    if count is None:
        parts = (sinkscope.read_tokens(tokenizer, each, limit=tokens, start=start) for each in sources or (None,))
        return [row for part in parts for row in part]
    if start:
        raise SinkscopeError("--start goes with one part of a text, not with --segments: leave one of them out.")
    return list(sinkscope.read_segments(tokenizer, sources, tokens, count, starts=starts))


def _read(tokenizer: Any, text: str | None, tokens: int, count: int) -> torch.Tensor:
    """Sequences [sequence, token] of a text, each with the tokens in front that this tokenizer puts there."""
    stream, front = read_stream(tokenizer, text, tokens * count)
    return sinkscope.sequences(stream, tokens, count, bos=front)


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """The table of interventions for a reader: one line for each effect, its control on the same line."""
    import pandas as pd

    lines, rows = [], table.to_dict("records")
    for row, below in zip(rows, [*rows[1:], {}], strict=True):
        if row["role"] == "control":
            continue
        control = below if below.get("role") == "control" else {}
        lines.append(
            {
                "intervention": row["intervention"],
                "ppl": f"{row['ppl']:#.4g}",
                "ratio": _bounded(row, "ratio"),
                "sink mass": _bounded(row, "sink_mass", "mass"),
                "control": control.get("intervention", ""),
                "its ratio": _bounded(control, "ratio"),
                "its sink mass": _bounded(control, "sink_mass", "mass"),
                "ratio over control's": _bounded(row, "over_control"),
            }
        )
    return pd.DataFrame(lines)


def _limits(table: pd.DataFrame) -> str:
    """What the intervals of losses are, and why some are not there."""
    missing = table["ratio"].notna() & table["ratio_low"].isna() & (table["ratio"] != 1)
    drifts = " Where there is none the losses drift along the text, or are too few." * bool(missing.any())
    return f"Intervals of losses: {table.attrs['bounds']}.{drifts}"


def _bounded(row: Any, name: str, bounds: str = "") -> str:
    """A value and its interval, as far as they are known."""
    value, low, high = (row.get(each, nan) for each in (name, f"{bounds or name}_low", f"{bounds or name}_high"))
    if value != value:
        return ""
    return f"{value:#.4g}" + ("" if low != low or low == high else f" [{low:#.4g}, {high:#.4g}]")
