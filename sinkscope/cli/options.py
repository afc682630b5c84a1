"""What all commands share: which model and text, how to load them, and options that take several values at once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.files import replacing, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


Model = Annotated[
    str | None,
    typer.Argument(help="A directory, a .gguf file or a name on the Hugging Face Hub; the demo model if left out."),
]
Text = Annotated[str | None, typer.Option("--text", help="A UTF-8 file or hf:NAME; the King James Bible if left out.")]
Start = Annotated[int, typer.Option("--start", min=0, help="How many tokens of the text to skip.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no summary.")]
Out = Annotated[Path, typer.Option("--out", help="The folder to write to.")]
Loading = dict[str, Any]  # arguments of `load`


def loads_model(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `load` in the place of its parameter `loading`, which gets those given."""
    own, options = (inspect.signature(each, eval_str=True).parameters for each in (command, _loading))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        loading = _loading(**{name: given.pop(name) for name in options})
        command(**given, loading=loading)

    shown = [each for one in own.values() for each in (options.values() if one.name == "loading" else [one])]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # what typer makes options of
    return run


def _loading(
    *,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps, cuda:1.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> Loading:
    """What was given of these options."""
    given = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust_remote_code or None}
    return {name: value for name, value in given.items() if value is not None}


def spread(words: Sequence[str], several: Iterable[str]) -> list[str]:
    """The words of a command line with `--sinks 0 1` written as `--sinks=0 --sinks=1`, as the parser wants it."""
    taking, option, spread_words = set(several), None, []
    for word in words:
        if word.startswith("--"):
            option = word if word in taking else None
            if option is None:
                spread_words.append(word)
        elif option is not None:
            spread_words.append(f"{option}={word}")
        else:
            spread_words.append(word)
    return spread_words


FORMATS = ("pdf", "svg", "png")


def write_table(table: pd.DataFrame, path: Path, caption: str, attributes: Any) -> None:
    """The table as path.csv and path.tex, each with its source."""
    from sinkscope.reporting.saving import csv_text, latex_text

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
