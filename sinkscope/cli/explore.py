"""`sinkscope explore`: JupyterLab on a notebook that is ready to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import options
from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    import nbformat

INTRODUCTION = """# The attention of {name}

Run the cell below (Shift+Enter). Pick a head, throw its sink out, and watch the loss climb; give it back and watch it
recover. `app.close()` ends the explorer, and so does running the cell again."""


@options.loads_model
def explore(
    model: options.Model = None,
    text: options.Text = None,
    length: Annotated[
        int | None, typer.Option("--length", min=2, max=2048, help="Tokens shown; 512 of the demo text if left out.")
    ] = None,
    notebook: Annotated[Path, typer.Option("--notebook", help="The notebook to write and open.")] = Path(
        "explore.ipynb"
    ),
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, or only start.")] = True,
    port: Annotated[int, typer.Option("--port", help="Where JupyterLab listens.")] = 8888,
    *,
    loading: options.Loading,
) -> None:
    """Open JupyterLab on a notebook with the explorer: evict sinks and window tokens live."""
    write_notebook(notebook, code(model, text, length, loading), model or "the demo model")
    command = [sys.executable, "-m", "jupyterlab", str(notebook), f"--ServerApp.port={port}"]
    raise typer.Exit(subprocess.call(command if browser else [*command, "--no-browser"]))


def code(model: str | None, text: str | None, length: int | None, loading: dict[str, Any]) -> str:
    """The cell that opens the explorer on this model and text."""
    arguments = [] if model is None else [repr(model)]
    reads_file = text is not None and not text.startswith("hf:")
    if text is not None:
        arguments.append(f"text=Path({text!r})" if reads_file else f"text={text!r}")
    arguments += [f"length={length}"] if length is not None else []
    arguments += [f"{name}={value!r}" for name, value in loading.items()]
    imports = "from pathlib import Path\n\nimport sinkscope\n" if reads_file else "import sinkscope\n"
    return f"{imports}\napp = sinkscope.explore({', '.join(arguments)})"


def write_notebook(path: Path, cell: str, name: str) -> None:
    """Write the notebook, or leave one as it is that holds this cell already.

    Raises:
        SinkscopeError: another notebook is there, or the folder cannot be written.
    """
    import nbformat

    from sinkscope.files import replacing

    if path.exists():
        if cell not in [each.source for each in _read(path).cells]:
            raise SinkscopeError(f"{path} is there already and opens something else; give --notebook another name.")
        return
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_markdown_cell(INTRODUCTION.format(name=name)), new.new_code_cell(cell)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with replacing(path, "the notebook") as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(nbformat.writes(notebook), encoding="utf-8")


def _read(path: Path) -> nbformat.NotebookNode:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as problem:  # what nbformat raises depends on how the file is broken
        raise SinkscopeError(f"{path} is there already and is no notebook; give --notebook another name.") from problem
