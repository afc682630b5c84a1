"""What the commands share: which model and text, how to load the model, and how to write tables and figures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.files import FORMATS, check_table_files, write_table_files
from sinkscope.seals import check_own, has_seal, held_by, not_own

if TYPE_CHECKING:
    import pandas as pd

Model = Annotated[
    str | None,
    typer.Argument(help="A directory, a .gguf file or a name on the Hugging Face Hub; the demo model if left out."),
]
Text = Annotated[
    str | None, typer.Option(help="A UTF-8 file, hf:NAME or demo:ferry; the King James Bible if left out.")
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="A file, hf:NAME or demo:ferry, again for another; the King James Bible if left out."),
]
Segments = Annotated[
    int | None,
    typer.Option(min=1, help="So many segments from all over each text, each of --tokens; one text if left out."),
]
Starts = Annotated[str, typer.Option(help="Where segments start: spaced, random.")]
Start = Annotated[int, typer.Option(min=0, help="How many tokens of the text to skip.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no summary.")]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]
Loading = dict[str, Any]  # arguments of `load`


def loads_model(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `load` in the place of its parameter `loading`, which gets those given."""
    own, options = (inspect.signature(each, eval_str=True).parameters for each in (command, _load_options))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        values = {name: given.pop(name) for name in options}
        command(**given, loading={name: value for name, value in values.items() if value not in (None, False)})

    shown = [each for one in own.values() for each in (options.values() if one.name == "loading" else [one])]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # what typer makes options of
    return run


def _load_options(
    *,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, cuda:1.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Never called: its signature is what `loads_model` puts into that of a command."""


def check_free(out: Path, tables: Iterable[str] = (), figures: Iterable[str] = (), others: Iterable[str] = ()) -> None:
    """Before what takes long: raise SinkscopeError where files to be written are there and are not sinkscope's own."""
    for name in tables:
        check_table_files((out / name).with_suffix(".tex"))
        table = (out / name).with_suffix(".csv")
        head = held_by(table).partition(b"\n")[0]
        if head and not head.replace(b'"', b"").endswith(b",source"):
            raise not_own(table, "the table")
    for name in figures:
        for kind in FORMATS:
            check_own((out / name).with_suffix(f".{kind}"), "the figure")
    for place in map(out.joinpath, others):
        if place.suffix != ".nc":
            check_own(place, "the text")
        elif held_by(place) and not has_seal(place, place.suffix):  # a damaged one may go
            raise not_own(place, "the record")


def write_table(table: pd.DataFrame, path: Path, caption: str, attributes: Mapping[Any, Any] | None = None) -> None:
    """The table as path.csv and path.tex, each with its source: `attributes`, or those of the table."""
    from sinkscope.reporting.tables import csv_text, latex_text

    source = table.attrs if attributes is None else attributes
    write_table_files(csv_text(table, source), path.with_suffix(".tex"), latex_text(table, source, caption, path.name))


def printed(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda value: f"{value:.4g}")


def say(quiet: bool, *lines: str) -> None:
    if not quiet:
        typer.echo("\n".join(lines))


def limits(table: pd.DataFrame) -> str:
    """What the intervals of losses are, and why some are not there."""
    missing = table["ratio"].notna() & table["ratio_low"].isna() & (table["ratio"] != 1)
    drifts = " Where there is none the losses drift along the text, or are too few for how long they are alike." * bool(
        missing.any()
    )
    return f"Intervals of losses: {table.attrs['bounds']}.{drifts}"
