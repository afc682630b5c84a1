"""The bottom floor: checks of arguments, files that are never torn, and progress bars."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import sinkscope
from sinkscope.arguments import check_places, finite_number, one_of, one_or_several, open_unit, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.files import check_writable, clear_partials, partial_beside, replacing, writable_folder, write_text
from sinkscope.progress import PATIENCE, progress_bar

FLOOR = ("errors", "arguments", "definition", "seals", "files", "settings_file", "interrupts", "progress")


@pytest.mark.parametrize("name", FLOOR)
def test_the_bottom_floor_stands_on_nothing_but_errors(name):
    tree = ast.parse((Path(sinkscope.__file__).parent / f"{name}.py").read_text())
    modules = {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    modules |= {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
    assert {each for each in modules if each.startswith("sinkscope")} <= {"sinkscope.errors", "sinkscope.seals"}


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


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for name, target in (("old", tmp_path / "there" / "a.txt"), ("new", tmp_path / "there" / "b.txt")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "there" / "a.txt").write_text("before")
    for name in ("old", "new"):
        write_text(tmp_path / name, "after", "the text")
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "after"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["a.txt", "b.txt"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SinkscopeError, match=r"cannot write the text to .*loop: it is a link that leads to itself"):
        write_text(tmp_path / "loop", "after", "the text")
    assert (tmp_path / "loop").is_symlink()


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


# --- what killed processes leave -----------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from sinkscope.files import partial_beside
for name in ("a", "b"):
    partial_beside(Path(sys.argv[1]) / name).write_text("half")
partial_beside(Path(sys.argv[1]) / "folder").mkdir()
print("written", flush=True)
sys.stdin.read() if len(sys.argv) > 2 else os.kill(os.getpid(), 9)
"""


def writer(folder, *more):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "written\n"
    return process


def test_what_a_killed_process_left_is_cleared_away_by_the_next_and_what_one_is_writing_stays(tmp_path):
    killed, alive = writer(tmp_path), writer(tmp_path, "stays")
    killed.wait()
    own, there = (
        partial_beside(tmp_path / "own"),
        {each.name for each in tmp_path.iterdir() if str(alive.pid) in each.name},
    )
    own.write_text("this process is at it")
    assert len(there) == 3 and len(list(tmp_path.iterdir())) == 7
    write_text(tmp_path / "file", "whole", "the file")
    assert {each.name for each in tmp_path.iterdir()} == there | {own.name, "file"}
    alive.kill()
    alive.wait()
    own.unlink()
    check_writable(tmp_path, "anything")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_another_machine_is_writing_stays_for_a_day(tmp_path):
    machine = partial_beside(tmp_path / "x").name.split("-")[1]
    there = tmp_path / partial_beside(tmp_path / "x").name.replace(machine, "0" * 12)
    there.write_text("half")
    clear_partials(tmp_path)
    assert there.exists()
    os.utime(there, (time.time() - 90_000,) * 2)
    clear_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_does_not_keep_what_was_left(tmp_path):
    left = partial_beside(tmp_path / "x")
    started = left.name.split("-")[3]
    tmp_path.joinpath(left.name.replace(f"-{started}-", f"-{int(started) - 1}-")).write_text("half")
    clear_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_links_are_taken_away_and_not_followed(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("mine")
    left = partial_beside(tmp_path / "x")
    started = left.name.split("-")[3]
    tmp_path.joinpath(left.name.replace(f"-{started}-", f"-{int(started) - 1}-")).symlink_to(tmp_path / "own")
    clear_partials(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["own"] and (tmp_path / "own" / "file").exists()
