"""The command line: one module for each group of commands, and what they share."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer

from sinkscope.cli.chat import chat
from sinkscope.cli.experiments import ablate, cost, lab, perplexity, report
from sinkscope.cli.explore import explore
from sinkscope.cli.intervene import intervene
from sinkscope.cli.options import spread
from sinkscope.errors import SinkscopeError

SEVERAL = {  # options that take several values at once
    "perplexity": ("--policies",),
    "ablate": ("--sinks", "--cache", "--positions", "--kinds"),
    "cost": ("--policies",),
    "intervene": ("--evict", "--replace", "--massive", "--dose", "--layers", "--heads"),
    "lab": ("--arms", "--seeds"),
}
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


for command in (report, perplexity, ablate, cost, intervene, chat, lab, explore):
    app.command()(command)


def main() -> None:
    """The program: a user's mistake is one line on stderr and exit code 2, an interrupt exit code 130."""
    warnings.showwarning = _one_line
    words = sys.argv[1:]
    try:
        code = app(spread(words, SEVERAL.get(words[0] if words else "", ())), standalone_mode=False)
    except SinkscopeError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own: an unknown option or command
            raise
        _fail(f"{error.format_message()} (sinkscope --help tells what there is)")
    if code == INTERRUPTED:  # some versions of typer catch the interrupt and return this
        print("sinkscope: interrupted; nothing was left half-written.", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sinkscope: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str) -> NoReturn:
    print(f"sinkscope: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
