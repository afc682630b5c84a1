"""The command line: its program, and one module for each group of commands."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from sinkscope.cli import examples
from sinkscope.cli.auditing import audit
from sinkscope.cli.experiments import ablate, cost, lab, perplexity
from sinkscope.cli.intervening import intervene
from sinkscope.cli.reporting import atlas, report
from sinkscope.cli.sessions import chat, explore, page
from sinkscope.cli.sweeping import runs, sweep
from sinkscope.errors import SinkscopeError
from sinkscope.interrupts import Terminated

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM

app = typer.Typer(
    name="sinkscope", epilog=examples.shown(examples.FIRST), add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None,
)  # fmt: skip


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


class _Interrupted(Exception):
    """What a command was interrupted by; typer would lose what it says."""


def _telling(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose interrupt is told to `main`."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as interrupt:
            raise _Interrupted(str(interrupt)) from interrupt

    return run


for command in (report, atlas, perplexity, ablate, cost, intervene, sweep, runs, chat, lab, explore, page, audit):
    app.command(epilog=examples.shown(examples.EXAMPLES[command.__name__]))(_telling(command))


def main() -> None:
    """The program: a user's mistake is one line on stderr and exit code 2, Ctrl-C exit code 130, SIGTERM 143."""
    with _terminated():
        _run()


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM as an exception, where this is the main thread, and the handler that was there put back."""

    def end(*_: Any) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run() -> NoReturn:
    warnings.showwarning = _one_line
    words = sys.argv[1:]
    command = typer.main.get_group(app).commands.get(words[0]) if words else None
    said = "interrupted; nothing was left half-written."
    several = [name for option in command.params if option.multiple for name in option.opts] if command else []
    several = [name for name in several if name != "--text"]  # behind which the model may stand
    try:
        code = app(spread(words, several), standalone_mode=False)
    except SinkscopeError as error:
        _fail(str(error))
    except (_Interrupted, KeyboardInterrupt, typer.Abort) as interrupt:
        code = TERMINATED if Terminated in map(type, (interrupt, interrupt.__cause__)) else INTERRUPTED
        said = str(interrupt) or said
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own: an unknown option or command
            raise
        _fail(f"{error.format_message()} (sinkscope --help tells what there is)")
    if code in (INTERRUPTED, TERMINATED):  # some versions of typer catch an interrupt and return this
        print(f"sinkscope: {said}", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


def spread(words: Sequence[str], several: Collection[str]) -> list[str]:
    """The words of a command line with `--sinks 0 1` written as `--sinks=0 --sinks=1`, as the parser wants it."""
    option, spread_words = "", []
    for word in words:
        if word.startswith("--"):
            option = word if word in several else ""
        if not option:
            spread_words.append(word)
        elif word != option:
            spread_words.append(f"{option}={word}")
    return spread_words


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sinkscope: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str) -> NoReturn:
    print(f"sinkscope: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
