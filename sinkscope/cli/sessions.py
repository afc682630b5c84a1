"""`chat` in the terminal, or with lines from a file; `explore` in JupyterLab, and `page`, the same as a file."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sinkscope
from sinkscope.cli import options as given
from sinkscope.errors import SinkscopeError
from sinkscope.files import write_text

if TYPE_CHECKING:
    from sinkscope.streaming.conversation import Conversation

PROMPT = "> "
QUIT, RESET = "/quit", "/reset"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model must not move the cursor

INTRODUCTION = """# The attention of {name}

Run the cell below (Shift+Enter). Pick a head, throw its sink out, and watch the loss climb; give it back and watch it
recover. `app.close()` ends the explorer, and so does running the cell again."""


@given.loads_model
def chat(
    model: given.Model = None,
    sinks: Annotated[int, typer.Option(help="First tokens that are never forgotten.")] = 4,
    window: Annotated[int, typer.Option(help="Last tokens that are remembered beside them.")] = 1020,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first turn.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; more draws more freely.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Talk with a model for as long as you like, in bounded memory. Ctrl-C ends an answer, Ctrl-D or /quit the talk."""
    _take_any_text()
    loaded, tokenizer = sinkscope.load(model, **loading)
    with sinkscope.Conversation(
        loaded, tokenizer, sinks=sinks, window=window, system=system, max_new_tokens=max_new_tokens,
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
    ) as conversation:  # fmt: skip
        if not quiet:
            _note(f"{conversation.status}; {RESET} starts over, {QUIT} leaves, Ctrl-C ends an answer")
            if not conversation.has_template:
                _note("this model has no chat template: it goes on with each turn as with plain text")
        for turn in _turns():
            if turn == RESET:
                conversation.reset()
                status = conversation.status
            else:
                status = _answer(conversation, turn)
            if not quiet:
                _note(status)


def _turns() -> Iterator[str]:
    """The lines a user types, or those of a file or pipe, until the end or /quit."""
    prompt = PROMPT if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            if prompt:
                typer.echo()
            return
        if line == QUIT:
            return
        if line:
            yield line


def _answer(conversation: Conversation, turn: str) -> str:
    """Print an answer as it comes; the status behind it, with the reason where the model did not end it."""
    piece, is_left = "", False
    try:
        with noted_interrupts() as is_interrupted:
            for piece in conversation.ask(turn):
                typer.echo(CONTROLS.sub("", piece), nl=False)
                if is_left := is_interrupted():
                    break
    except KeyboardInterrupt:  # the second, of someone who could not wait for the next token
        is_left = True
    if not piece.endswith("\n"):
        typer.echo()
    if is_left:
        return f"{conversation.status}, interrupted"
    if not conversation.answer.is_ended:
        return f"{conversation.status}, stopped by --max-new-tokens"
    return conversation.status


def _note(line: str) -> None:
    """A dim line beside the answers, which are all that stdout gets."""
    typer.echo(typer.style(line, dim=True), err=True)


def _take_any_text() -> None:
    """Characters that a terminal or a file cannot hold are replaced, rather than the end of a conversation."""
    streams: tuple[Any, ...] = (sys.stdin, sys.stdout)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  # lines can be edited and recalled


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], bool]]:
    """Inside the block a first Ctrl-C is only noted, a second one interrupts; gives a function that tells if it was."""
    noted = False

    def note(*_: Any) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


@given.loads_model
def explore(
    model: given.Model = None,
    text: given.Text = None,
    length: Annotated[
        int | None, typer.Option(min=2, max=2048, help="Tokens shown; 512 of the demo text if left out.")
    ] = None,
    notebook: Annotated[Path, typer.Option(help="The notebook to write and open.")] = Path("explore.ipynb"),
    browser: Annotated[bool, typer.Option(help="Open a browser, or only start.")] = True,
    port: Annotated[int, typer.Option(help="Where JupyterLab listens.")] = 8888,
    *,
    loading: given.Loading,
) -> None:
    """Open JupyterLab on a notebook with the explorer: evict sinks and window tokens live."""
    write_notebook(notebook, code(model, text, length, loading), model or "the demo model")
    command = [sys.executable, "-m", "jupyterlab", str(notebook), f"--ServerApp.port={port}"]
    raise typer.Exit(subprocess.call(command if browser else [*command, "--no-browser"]))


@given.loads_model
def page(
    model: given.Model = None,
    text: given.Text = None,
    length: Annotated[int, typer.Option(min=2, max=2048, help="Tokens of the text that are shown.")] = 256,
    windows: Annotated[
        list[int] | None, typer.Option(min=1, help="Last tokens kept; 1/2 to 1/16 of the length if left out.")
    ] = None,
    sinks: Annotated[list[int] | None, typer.Option(min=0, help="First tokens kept beside each window; 0 4.")] = None,
    megabytes: Annotated[float, typer.Option(help="What the file may have; maps are pooled until it fits.")] = 12.0,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("sinks.html"),
    *,
    loading: given.Loading,
) -> None:
    """Write one HTML file with the explorer in it, dense and under windows and sinks, for readers without a kernel."""
    from sinkscope.explorer.launch import named
    from sinkscope.explorer.page import page_settings, save_page
    from sinkscope.explorer.text_model import TextModel
    from sinkscope.hf.loading import tokenizer_of

    loaded, found = sinkscope.load(model, **loading)
    tokenizer = tokenizer_of(found)
    ids = sinkscope.read_tokens(tokenizer, text, limit=length)[0]
    settings = page_settings(len(ids), windows, sinks)
    typer.echo(save_page(TextModel(loaded, ids, tokenizer), named(tokenizer, ids), out, settings, megabytes))


def code(model: str | None, text: str | None, length: int | None, loading: dict[str, Any]) -> str:
    """The cell that opens the explorer on this model and text."""
    arguments = [] if model is None else [repr(model)]
    reads_file = text is not None and not text.startswith("hf:")
    if text is not None:
        arguments.append(f"text=Path({text!r})" if reads_file else f"text={text!r}")
    arguments += [f"{name}={value!r}" for name, value in {"length": length, **loading}.items() if value is not None]
    imports = "from pathlib import Path\n\nimport sinkscope\n" if reads_file else "import sinkscope\n"
    return f"{imports}\napp = sinkscope.explore({', '.join(arguments)})"


def write_notebook(path: Path, cell: str, name: str) -> None:
    """Write the notebook, or leave one as it is that holds this cell already."""
    import nbformat

    if path.exists():
        if not path.is_file():  # as a pipe, which never ends
            raise SinkscopeError(f"{path} is there already and is no file; give --notebook another name.")
        try:
            cells = nbformat.read(path, as_version=4).cells
        except Exception as problem:  # what nbformat raises depends on how the file is broken
            raise SinkscopeError(
                f"{path} is there already and is no notebook; give --notebook another name."
            ) from problem
        if cell not in [each.source for each in cells]:
            raise SinkscopeError(f"{path} is there already and opens something else; give --notebook another name.")
        return
    new = nbformat.v4
    notebook = new.new_notebook(
        cells=[new.new_markdown_cell(INTRODUCTION.format(name=_in_markdown(name))), new.new_code_cell(cell)]
    )
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    write_text(path, nbformat.writes(notebook), "the notebook")


def _in_markdown(name: str) -> str:
    """A name as a line of Markdown that shows it; nothing in it is markup, a link or a picture."""
    from sinkscope.figures.style import visible

    return re.sub(r"([\\`*\[\]<>$#!|&])", r"\\\1", visible(name, spaces=False))
