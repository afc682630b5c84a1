"""`sinkscope intervene`: what happens to a model when its sinks are taken away, the control beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import options as given
from sinkscope.cli.options import draw, say, write_table
from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    import xarray as xr

    from sinkscope.experiments.intervention import Intervention

Words = list[str] | None
Numbers = list[int] | None


@given.loads_model
def intervene(
    model: given.Model = None,
    text: given.Text = None,
    evict: Annotated[Words, typer.Option("--evict", help="Keys: sinks, random, recent, delimiters.")] = None,
    replace: Annotated[
        Words, typer.Option("--replace", help="Put 'line breaks' or random tokens in the place of the first ones.")
    ] = None,
    shift: Annotated[int | None, typer.Option("--shift", min=1, help="Start the text so many tokens later.")] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="A text of one token again and again.")] = False,
    massive: Annotated[Words, typer.Option("--massive", help="Massive activations to: zero, mean.")] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option("--dose", help="Biases on the logits of the first keys, and of as many random ones; -inf evicts."),
    ] = None,
    layers: Annotated[Numbers, typer.Option("--layers", help="Where; all, or the first massive layer.")] = None,
    heads: Annotated[Numbers, typer.Option("--heads", help="Where keys go; in all heads if left out.")] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="How many keys or tokens; as many as --sinks if left out.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens in each sequence.")] = 512,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="How many sequences of the text.")] = 8,
    start: Annotated[int, typer.Option("--start", min=2, help="The first query that notices, of each sequence.")] = 64,
    sinks: Annotated[int, typer.Option("--sinks", min=1, help="How many first tokens count as sinks.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn at random.")] = 0,
    out: given.Out = Path("interventions"),
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Take sinks away, or other keys, and see what happens. With nothing named: the usual interventions."""
    from sinkscope import dose_response, dose_table, figures, intervention_table, load, run_interventions
    from sinkscope.experiments.interventions import checked_doses
    from sinkscope.reporting.gather import text_name

    chosen = _chosen(evict, replace, shift, repeat, massive, layers, heads, count)
    doses = checked_doses(dose) if dose else []
    _check_used(evict, replace, massive, doses, {"--layers": layers, "--heads": heads, "--count": count})
    loaded, tokenizer = load(model, **loading)
    ids, named = _read(tokenizer, text, tokens, sequences), {"text": text_name(text)}
    options: dict[str, Any] = {"start": start, "sinks": sinks, "seed": seed, "progress": False if quiet else None}
    read = f"{sequences} sequences of {tokens} tokens; keys go, and losses are scored, from query {start} on"
    done = response = None
    if chosen or not doses:
        done = run_interventions(loaded, ids, chosen or None, tokenizer=tokenizer, **options).assign_attrs(named)
    if doses:
        keys: dict[str, Any] = {"count": count or sinks, "layers": layers, "heads": heads}
        response = dose_response(loaded, ids, doses, **keys, **options, **named)
    if done is not None:
        table = intervention_table(done, seed=seed)
        _keep(done, table, out / "interventions", f"Interventions and their controls: {read}.")
        draw(figures.effects(table), out / "effects")
        say(quiet, beside(table), f"{read}. ratio: perplexity over that with nothing done; brackets: 95%.")
    if response is not None:
        table = dose_table(response, seed=seed)
        caption = f"A bias on the logits of the first keys ({count or sinks}), and of as many random ones: {read}."
        _keep(response, table, out / "dose", caption)
        draw(figures.dose_response(table), out / "dose")
        say(quiet, table, caption)
    if not quiet:
        typer.echo(f"Written to {out}")


def _chosen(
    evict: Words,
    replace: Words,
    shift: int | None,
    repeat: bool,
    massive: Words,
    layers: Numbers,
    heads: Numbers,
    count: int | None,
) -> list[Intervention]:
    """The interventions named; a word given twice counts once."""
    from sinkscope import EvictKeys, Repeat, ReplaceTokens, SetMassive, Shift

    where: dict[str, Any] = {"layers": layers or None, "heads": heads or None}
    return [
        *(EvictKeys(which, count, **where) for which in dict.fromkeys(evict or [])),
        *(ReplaceTokens(by, count) for by in dict.fromkeys(replace or [])),
        *([] if shift is None else [Shift(shift)]),
        *([Repeat()] if repeat else []),
        *(SetMassive(layers or None, mode) for mode in dict.fromkeys(massive or [])),
    ]


def _check_used(evict: Words, replace: Words, massive: Words, dose: Any, asked: dict[str, Any]) -> None:
    """Refuse an option that nothing named would follow."""
    used = {
        "--layers": evict or massive or dose,
        "--heads": evict or dose,
        "--count": evict or replace or dose,
    }
    for option, value in asked.items():
        if value and not used[option]:
            raise SinkscopeError(f"{option} is for interventions on keys or layers; name some, such as --evict sinks.")


def _read(tokenizer: Any, text: str | None, tokens: int, count: int) -> torch.Tensor:
    """Sequences [sequence, token] of a text, each with the token in front that this tokenizer puts there."""
    from sinkscope import read_tokens, sequences
    from sinkscope.reporting.gather import front_token

    stream = read_tokens(tokenizer, text, limit=tokens * count, bos=False)
    return sequences(stream, tokens, count, bos=front_token(tokenizer))


def _keep(record: xr.Dataset, table: pd.DataFrame, path: Path, caption: str) -> None:
    from sinkscope import save_record

    path.parent.mkdir(parents=True, exist_ok=True)
    save_record(record, path.with_suffix(".nc"))
    write_table(table, path, caption, table.attrs)


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """The table of interventions for a reader: one line for each effect, its control on the same line."""
    import pandas as pd

    lines, rows = [], table.to_dict("records")
    for row, below in zip(rows, [*rows[1:], None], strict=True):
        if row["role"] == "control":
            continue
        control = below if below is not None and below["role"] == "control" else None
        lines.append(
            {
                "intervention": row["intervention"],
                "ppl": f"{row['ppl']:#.4g}",
                "ratio": _bounded(row, "ratio"),
                "sink mass": _bounded(row, "sink_mass", "mass"),
                "control": "" if control is None else control["intervention"],
                "its ratio": "" if control is None else _bounded(control, "ratio"),
                "its sink mass": "" if control is None else _bounded(control, "sink_mass", "mass"),
                "ratio over control's": _bounded(row, "over_control"),
            }
        )
    return pd.DataFrame(lines)


def _bounded(row: Any, name: str, bounds: str | None = None) -> str:
    """A value and its interval, as far as they are known."""
    value, low, high = (row[each] for each in (name, f"{bounds or name}_low", f"{bounds or name}_high"))
    if value != value:
        return ""
    return f"{value:#.4g}" + ("" if low != low or low == high else f" [{low:#.4g}, {high:#.4g}]")
