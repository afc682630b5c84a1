"""`sinkscope explore`: the notebook it writes, and JupyterLab on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import sinkscope
from tests.test_cli import call


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The commands that would have been run; the test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or 0)
    return commands


def cell_of(path: str) -> str:
    (cell,) = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return cell.source


@pytest.mark.slow
def test_jupyterlab_opens_a_notebook_whose_cell_explores_the_demo_model(monkeypatch, capsys, started):
    assert call(monkeypatch, capsys, "explore")[0] == 0
    assert started == [[sys.executable, "-m", "jupyterlab", "explore.ipynb", "--ServerApp.port=8888"]]
    nbformat.validate(nbformat.read("explore.ipynb", as_version=4))
    asked = []
    monkeypatch.setattr(sinkscope, "explore", lambda *given, **named: asked.append((given, named)), raising=False)
    exec(cell_of("explore.ipynb"), {})
    assert asked == [((), {})]


def test_what_is_given_reaches_explore(monkeypatch, capsys, started):
    words = ["my model/", "--text", "it's.txt", "--length", "64", "--dtype", "bfloat16", "--notebook", "a/b.ipynb"]
    assert call(monkeypatch, capsys, "explore", *words, "--no-browser", "--port", "9000")[0] == 0
    assert started[0][3:] == ["a/b.ipynb", "--ServerApp.port=9000", "--no-browser"]
    asked = []
    monkeypatch.setattr(sinkscope, "explore", lambda *given, **named: asked.append((given, named)), raising=False)
    exec(cell_of("a/b.ipynb"), {})
    assert asked == [(("my model/",), {"text": Path("it's.txt"), "length": 64, "dtype": "bfloat16"})]


@pytest.mark.slow
def test_a_notebook_of_ones_own_is_kept(monkeypatch, capsys, started):
    call(monkeypatch, capsys, "explore")
    kept = nbformat.read("explore.ipynb", as_version=4)
    kept.cells.append(nbformat.v4.new_markdown_cell("my notes"))
    nbformat.write(kept, "explore.ipynb")
    assert call(monkeypatch, capsys, "explore")[0] == 0 and len(started) == 2
    assert nbformat.read("explore.ipynb", as_version=4).cells[-1].source == "my notes"
    code, _, err = call(monkeypatch, capsys, "explore", "--length", "9")
    assert code == 2 and "opens something else; give --notebook another name" in err
    Path("explore.ipynb").write_text("torn")
    code, _, err = call(monkeypatch, capsys, "explore")
    assert code == 2 and "is no notebook" in err and len(started) == 2
    assert Path("explore.ipynb").read_text() == "torn"


def test_a_name_is_a_line_of_the_notebook_and_no_markup(monkeypatch, capsys, started):
    name = "a\n# b\u2028![x](http://a.b/c)<script>$x$"
    assert call(monkeypatch, capsys, "explore", name)[0] == 0
    told = nbformat.read("explore.ipynb", as_version=4).cells[0].source
    first, *rest = told.splitlines()
    assert first == r"# The attention of a\\n\# b\\u2028\!\[x\](http://a.b/c)\<script\>\$x\$" and "script" not in str(
        rest
    )
