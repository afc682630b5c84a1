"""Directories of a report: nothing of a stranger's goes, and a kill at any line leaves the old one or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sinkscope import SinkscopeError, directories
from sinkscope.directories import Manifest, check_directory, restore, whole_directory, write_manifest, write_synced


def save(path: Path, words: str) -> Path:
    """A small report: what stands in its files is not looked at here."""
    with whole_directory(path) as folder:
        (folder / "tables").mkdir()
        for name in ("report.html", "tables/summary.csv", "tables/summary.tex"):
            write_synced(folder / name, f"{name}: {words}".encode())
        write_manifest(folder, ["report.html", "tables/summary.csv", "tables/summary.tex"], {"headline": words})
    return path


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_untouched(path: Path, words: str) -> None:
    """Neither checked before measuring nor saved to, and everything is as it was."""
    before = contents(path.parent)
    for attempt in (lambda: check_directory(path), lambda: save(path, "new")):
        with pytest.raises(SinkscopeError, match=words):
            attempt()
    assert contents(path.parent) == before and [each.name for each in path.parent.iterdir()] == [path.name]


def forged(path: Path, names: dict[str, str], **changes) -> None:
    """A manifest made by hand, with right hashes and without what only `write_manifest` knows, unless given."""
    files = {}
    for name, text in names.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
        files[name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    said = {"format": "sinkscope report", "version": 2, "files": files} | changes
    (path / "manifest.json").write_text(json.dumps(said))


def test_a_manifest_made_by_hand_gives_nothing_away(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for changes in ({}, {"version": 1}, {"sha256": "0" * 64}, {"files": 3}, {"files": {"thesis.tex": 1}}):
        forged(out, {"thesis.tex": "years of work"}, **changes)
        check_untouched(out, r"manifest\.json, which does not prove")


@pytest.mark.parametrize("name", ["thesis.tex", "../thesis.tex", "tables/../../thesis.tex", "tables/a/b.tex", "tables"])
def test_a_manifest_names_only_what_a_report_holds(tmp_path, name):
    out = save(tmp_path / "out", "old")
    (tmp_path / "thesis.tex").write_text("years of work")
    held = json.loads((out / "manifest.json").read_text())
    held["files"][name] = held["files"]["report.html"]
    held["sha256"] = directories._own_hash(held)
    (out / "manifest.json").write_text(json.dumps(held))
    with pytest.raises(SinkscopeError, match="was changed since the report was saved, or is damaged"):
        Manifest(out)
    with pytest.raises(SinkscopeError, match="does not prove"):
        save(out, "new")
    assert (tmp_path / "thesis.tex").read_text() == "years of work" and (out / "report.html").exists()


def test_a_file_edited_by_hand_is_named_and_stays(tmp_path):
    out = save(tmp_path / "out", "old")
    (out / "tables/summary.tex").write_text("my own caption")
    check_untouched(out, r"tables/summary\.tex, which was changed since .*\(move it away to keep it\)")
    (out / "tables/summary.tex").rename(tmp_path / "mine.tex")
    assert contents(save(out, "new"))["report.html"] == "report.html: new"


def test_links_and_pipes_are_not_ours(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for number, name in enumerate(("tables/summary.csv", "tables")):
        out = save(tmp_path / str(number) / "out", "old")
        kept = mine / str(number)
        (out / name).rename(kept)
        (out / name).symlink_to(kept)
        check_untouched(out, "tables")
        assert kept.exists()
    out = save(tmp_path / "pipe" / "out", "old")
    (out / "report.html").unlink()
    os.mkfifo(out / "report.html")
    with pytest.raises(SinkscopeError, match=r"report\.html, which was changed"):
        save(out, "new")


def test_a_file_put_there_at_the_last_moment_stays(tmp_path, monkeypatch):
    out, rename = save(tmp_path / "out", "old"), os.rename

    def late(source, target):
        if Path(source) == out:
            (out / "thesis.tex").write_text("years of work")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(SinkscopeError, match=r"thesis\.tex, which is not part of an earlier report"):
        save(out, "new")
    assert (out / "thesis.tex").read_text() == "years of work" and (out / "report.html").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_a_read_finds_what_is_not_as_it_was_saved(tmp_path):
    saved = Manifest(save(tmp_path / "out", "old"))
    assert saved.read("report.html") == b"report.html: old" and saved.changed == []
    for changed in ("report.html: odd", "report.html: older"):
        (tmp_path / "out/report.html").write_text(changed)
        assert saved.changed == ["report.html"]
        with pytest.raises(SinkscopeError, match=r"report\.html was changed since"):
            saved.read("report.html")
    (tmp_path / "out/report.html").unlink()
    with pytest.raises(SinkscopeError, match=r"cannot read .*report\.html"):
        saved.read("report.html")


def test_a_leftover_is_swept_by_the_next_save_and_a_save_that_goes_on_is_not(tmp_path):
    out = tmp_path / "out"
    dead = tmp_path / f".out.partial-{'0' * 32}"
    (dead / "tables").mkdir(parents=True)
    (dead / "tables/summary.csv").write_text("half")
    strange = tmp_path / f".out.partial-{'1' * 32}"
    (strange / "tables").mkdir(parents=True)
    (strange / "tables/thesis.txt").write_text("years of work")
    (tmp_path / ".out.partial-mine").mkdir()
    with whole_directory(out) as folder:
        write_synced(folder / "report.html", b"first")
        save(out, "second")
        assert not dead.exists()
        write_manifest(folder, ["report.html"], {})
    assert contents(out)["report.html"] == "first"
    assert {each.name for each in tmp_path.iterdir()} == {"out", strange.name, ".out.partial-mine"}
    assert (strange / "tables/thesis.txt").exists()


def test_names_that_begin_alike_are_not_taken_for_each_other(tmp_path):
    names = ["a" * 210, "a" * 211, "report", "report.partial-x", "é" * 120]
    for name in names:
        save(tmp_path / name, name)
    os.rename(tmp_path / names[0], directories._beside(tmp_path / names[0], "old"))
    os.rename(tmp_path / names[1], tmp_path / "elsewhere")
    restore(tmp_path / names[1])
    assert not (tmp_path / names[1]).exists()
    with pytest.warns(UserWarning, match="cut off; it was undone"):
        restore(tmp_path / names[0])
    assert contents(tmp_path / names[0])["report.html"] == f"report.html: {names[0]}"


def test_places_that_are_none(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop", "a" * 5000, "a\0b", "loop/below"):
        with pytest.raises(SinkscopeError, match=r"cannot write the report|cannot be a directory") as refused:
            check_directory(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(SinkscopeError, match="home"):
        check_directory("~nobody-of-that-name/report")


def test_a_full_disk_says_so_and_leaves_the_old_report(tmp_path, monkeypatch):
    out = save(tmp_path / "out", "old")
    before = contents(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SinkscopeError, match="No space left on device; what was there before is untouched"):
        save(out, "new")
    assert contents(tmp_path) == before


KILLED = """
import os, sys, warnings
from pathlib import Path
from sinkscope import directories
from tests.test_directories import contents, save
warnings.simplefilter("ignore")
place = Path(sys.argv[1])
at, tally = 0, {"old": 0, "new": 0, "none": 0}
while True:
    at += 1
    path = place / str(at) / "out"
    path.parent.mkdir()
    if sys.argv[2] == "over":
        save(path, "old")
    child = os.fork()
    if not child:
        left = at
        def trace(frame, event, _):
            global left
            if frame.f_code.co_filename != directories.__file__:
                return None
            left -= event == "line"
            if not left:
                os._exit(9)
            return trace
        sys.settrace(trace)
        save(path, "new")
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    directories.restore(path)
    found = "none"
    if path.exists():
        saved = directories.Manifest(path)
        assert not saved.changed, (at, saved.changed)
        found = contents(path)["report.html"].split()[-1]
    assert found in (("old", "new") if sys.argv[2] == "over" else ("none", "new")), (at, found)
    tally[found] += 1
    save(path, "newer")
    assert contents(path)["report.html"].endswith(": newer"), at
    assert os.listdir(path.parent) == ["out"], (at, os.listdir(path.parent))
    if status == 0:
        break
print(at, tally["old"], tally["new"], tally["none"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["over", "fresh"])
def test_a_kill_at_any_line_leaves_a_report_that_is_found_and_nothing_after_the_next_save(tmp_path, where):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, where], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines, old, new, none = map(int, done.stdout.split())
    assert lines > 100 and new > 5 and (old, none)[where == "fresh"] > 50
