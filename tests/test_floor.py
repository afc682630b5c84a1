"""The bottom floor: checks of arguments, files that are never torn, and progress bars."""

from __future__ import annotations

import ast
import io
import time
from pathlib import Path

import numpy as np
import pytest

import sinkscope
from sinkscope.arguments import check_places, finite_number, one_of, one_or_several, open_unit, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.files import replacing, writable_folder, write_text
from sinkscope.progress import PATIENCE, progress_bar

FLOOR = ("errors", "arguments", "definition", "files", "progress")


@pytest.mark.parametrize("name", FLOOR)
def test_the_bottom_floor_stands_on_nothing_but_errors(name):
    tree = ast.parse((Path(sinkscope.__file__).parent / f"{name}.py").read_text())
    modules = {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    modules |= {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
    assert {each for each in modules if each.startswith("sinkscope")} <= {"sinkscope.errors"}


def test_what_is_right_comes_back_as_what_is_needed():
    assert whole_number(np.int64(3), "n", 3) == 3 and type(whole_number(np.int64(3), "n", 3)) is int
    assert open_unit(0.5, "p") == 0.5 and finite_number(0, "x", 0, inclusive=True) == 0.0
    assert one_of("b", "letter", ("a", "b")) == "b"
    assert one_or_several(3, "n", int) == [3] and one_or_several([3, 1, 3], "n", int) == [3, 1]
    assert one_or_several("word", "w", str) == ["word"]
    check_places(None, "layers")
    check_places([0, 5], "layers")


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: whole_number(True, "n", 0), "n=True is not a whole number of 0 or more"),
        (lambda: whole_number(2.0, "n", 0), "n=2.0 is not a whole number"),
        (lambda: open_unit(1.0, "p"), "p=1.0 is not a number above 0 and below 1"),
        (lambda: open_unit("half", "p"), "p='half' is not a number above 0 and below 1"),
        (lambda: finite_number(float("inf"), "x", 0), "x=inf is not a finite number above 0"),
        (lambda: finite_number(None, "x", 1, inclusive=True), "x=None is not a finite number of 1 or more"),
        (lambda: one_of("c", "letter", ("a", "b")), "letter='c' is unknown; give one of a, b"),
        (lambda: one_of(["a"], "letter", ("a", "b")), r"letter=\['a'\] is unknown"),
        (lambda: one_or_several([], "n", int), r"n=\[\] is empty"),
        (lambda: check_places([1, 1], "layers"), r"layers=\[1, 1\] says not which"),
        (lambda: check_places(3, "layers"), "layers=3 says not which"),
        (lambda: check_places([-1], "heads"), r"heads=\[-1\] says not which"),
    ],
)
def test_what_is_wrong_is_refused_by_name_in_a_sentence(check, words):
    with pytest.raises(SinkscopeError, match=words) as refused:
        check()
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_whole_never_takes_the_place_of_another(tmp_path):
    path = tmp_path / "a" / "file.txt"
    write_text(path, "whole", "the file")
    with pytest.raises(RuntimeError), replacing(path, "the file") as partial:
        partial.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "whole" and [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_is_made_and_tried_before_anything_is_to_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert writable_folder("new/er", "cells") == tmp_path / "new" / "er"
    assert list((tmp_path / "new" / "er").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkscopeError, match="file/new' cannot be made"):
        writable_folder(tmp_path / "file" / "new", "cells")
    monkeypatch.setattr(Path, "touch", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SinkscopeError, match=r"cannot write cells to .*No space left"):
        writable_folder(tmp_path / "new", "cells")


def drawn(shown: bool | None, seconds: float) -> str:
    """What a bar that takes so long writes."""
    out = io.StringIO()
    with progress_bar(2, "token", shown, file=out, mininterval=0) as bar:
        bar.update()
        time.sleep(seconds)
        bar.update()
    return out.getvalue()


@pytest.mark.slow
def test_a_bar_shows_after_two_seconds_at_once_or_never():
    assert drawn(None, 0.0) == "" and drawn(False, 0.0) == ""
    assert "2/2" in drawn(True, 0.0)
    assert "2/2" in drawn(None, PATIENCE + 0.1)
