"""The command line: `sinkscope report MODEL --text FILE --out DIRECTORY`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sinkscope.errors import SinkscopeError

DEFAULT_OUT = Path("report")
INTERRUPTED = 130  # 128 + SIGINT

app = typer.Typer(
    name="sinkscope",
    help="Where the attention of a transformer goes, exactly.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        from sinkscope import __version__

        typer.echo(f"sinkscope {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def sinkscope(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    """Where the attention of a transformer goes, exactly."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def report(
    model: Annotated[
        str | None,
        typer.Argument(help="A directory, a .gguf file or a name on the Hugging Face Hub; the demo model if left out."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="A UTF-8 file or hf:NAME; the King James Bible if left out.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where to write: new, empty, or an earlier report.")] = DEFAULT_OUT,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="How many sequences of the text.")] = 8,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens in each sequence.")] = 1024,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens in all, in place of --sequences.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps, cuda:1.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no summary.")] = False,
) -> None:
    """Measure where a model's attention goes and write it up: a page, figures, tables and the record."""
    from sinkscope.reporting.directory import check_directory

    target = check_directory(out)
    if tokens is not None:
        length = min(length, tokens)
        sequences = max(1, tokens // length)
    given = {
        "dtype": dtype,
        "device": device,
        "revision": revision,
        "trust_remote_code": trust_remote_code or None,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    from sinkscope.reporting.gather import report as measure_report

    progress = False if quiet else None
    made = measure_report(model, None, text, sequences=sequences, length=length, progress=progress, **options)
    made.save(target, progress=progress)
    if not quiet:
        for line in (made.headline, *made.notes, f"Open {target / 'report.html'}"):
            typer.echo(line)


def main() -> None:
    """The program: a user's mistake is one line on stderr and exit code 2, an interrupt exit code 130."""
    warnings.showwarning = _one_line
    try:
        code = app(standalone_mode=False)
    except SinkscopeError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own: an unknown option or command
            raise
        _fail(f"{error.format_message()} (sinkscope --help tells what there is)")
    if code == INTERRUPTED:  # some versions of typer catch the interrupt and return this
        print("sinkscope: interrupted; nothing was written.", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sinkscope: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str) -> NoReturn:
    print(f"sinkscope: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
