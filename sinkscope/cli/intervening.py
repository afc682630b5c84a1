"""The command `intervene`: sinks taken away, or other keys, and their controls on the same line."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sinkscope
from sinkscope.cli import options as given
from sinkscope.cli.experiments import Numbers, Words, sequences_of, texts_of
from sinkscope.cli.options import check_free, limits, printed, say, write_table
from sinkscope.errors import SinkscopeError
from sinkscope.files import write_figure

if TYPE_CHECKING:
    import pandas as pd

    from sinkscope.experiments.intervention import Intervention


@given.loads_model
def intervene(
    model: given.Model = None,
    text: given.Texts = None,
    evict: Annotated[
        Words,
        typer.Option(help="Keys: sinks, random, recent, near-recent, next (behind the sinks), attended, delimiters."),
    ] = None,
    replace: Annotated[
        Words, typer.Option(help="Put 'line breaks' or random tokens in the place of the first ones.")
    ] = None,
    shift: Annotated[int | None, typer.Option(min=1, help="Start the text so many tokens later.")] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="A text of one token again and again.")] = False,
    massive: Annotated[Words, typer.Option(help="Massive activations to: zero, mean.")] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(help="Biases on the logits of the first keys, of as many behind them and random; -inf evicts."),
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
    draws: Annotated[
        int | None, typer.Option(min=2, help="Of each random control, each a reading of every text; 20 if left out.")
    ] = None,
    out: given.Out = Path("interventions"),
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Take sinks away, or other keys, and see what happens. With nothing named: the usual interventions."""
    from sinkscope.analysis.interventions import draws_said
    from sinkscope.experiments.doses import checked_doses
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
    if chosen or not doses:
        check_free(out, ["interventions"], ["effects"], ["interventions.nc"])
    if doses:
        check_free(out, ["dose"], ["dose"], ["dose.nc"])
    loaded, tokenizer = sinkscope.load(model, **loading)
    if segments is not None:
        ids = texts_of(tokenizer, text, tokens, 0, segments, starts)
    else:
        ids = [row for each in text or (None,) for row in sequences_of(tokenizer, each, tokens, sequences)]
    options: dict[str, Any] = {"start": start, "sinks": sinks, "seed": seed, "progress": False if quiet else None}
    read = f"{len(ids)} sequences of {tokens} tokens; keys go, and losses are scored, from query {start} on"
    done = response = None
    if chosen or not doses:
        done = sinkscope.run_interventions(loaded, ids, chosen or None, tokenizer=tokenizer, draws=draws, **options)
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
        say(quiet, title, printed(beside(table)), limits(table), *filter(None, [draws_said(table)]))
    if response is not None:
        table = sinkscope.dose_table(response, seed=seed)
        caption = f"A bias on the logits of the first keys ({count or sinks}), and of as many others: {read}."
        write_table(table, out / "dose", caption)
        sinkscope.save_record(response, out / "dose.nc")
        write_figure(sinkscope.figures.dose_response(table), out / "dose")
        say(quiet, caption, printed(table), limits(table))
    say(quiet, f"Written to {out}")


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
                "verdict": row.get("verdict", ""),
                "over draws": _between(row, "over_draws"),
                "mass removed": _bounded(row, "removed_mass"),
                "loss per mass": _bounded(row, "per_mass"),
            }
        )
    return pd.DataFrame(lines)


def _between(row: Any, name: str) -> str:
    """An interval, where there is one."""
    low, high = row.get(f"{name}_low", nan), row.get(f"{name}_high", nan)
    return "" if low != low else f"[{low:#.4g}, {high:#.4g}]"


def _bounded(row: Any, name: str, bounds: str = "") -> str:
    """A value and its interval, as far as they are known."""
    value, low, high = (row.get(each, nan) for each in (name, f"{bounds or name}_low", f"{bounds or name}_high"))
    if value != value:
        return ""
    return f"{value:#.4g}" + ("" if low != low or low == high else f" [{low:#.4g}, {high:#.4g}]")
