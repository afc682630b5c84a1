"""`sinkscope lab` on a small text: what it writes, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import sinkscope
from sinkscope import lab
from tests.support.training_records import TEXT
from tests.test_cli import call

FORMATS = ("pdf", "svg", "png")


@pytest.fixture
def text(monkeypatch, tmp_path):
    """A text; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT * 8)
    return ["--text", "text.txt"]


@pytest.fixture
def small(monkeypatch):
    """Sizes that take no time, for what the command line leaves to the functions."""
    bigram, language = lab.bigram_backcopy, lab.language_model
    monkeypatch.setattr(
        lab, "bigram_backcopy", lambda **given: bigram(**given, width=8, length=8, batch=4, evaluated=8), raising=False
    )
    sizes = dict(heads=2, width=8, length=80, batch=2, evaluated=4)
    monkeypatch.setattr(lab, "language_model", lambda **given: language(**given, **sizes), raising=False)


def files(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in FORMATS}


@pytest.mark.slow
def test_bigram_writes_record_tables_and_figure_and_goes_on(monkeypatch, capsys, text, small):
    words = ["lab", *text, "--arms", "softmax", "learned sink", "--seeds", "0", "1", "2", "--steps", "2"]
    words += ["--out", "run"]
    code, out, _ = call(monkeypatch, capsys, *words)
    assert code == 0 and "95% t intervals over 3 seeds" in out and "Uniform BOS mass" in out and "Written to run" in out
    tables = {f"{name}.{kind}" for name in ("emergence", "emergence_summary") for kind in ("csv", "tex")}
    assert {path.name for path in Path("run").iterdir()} == {"runs", "emergence.nc"} | tables | files("emergence")
    record = sinkscope.open_record("run/emergence.nc")
    assert record.arm.values.tolist() == ["softmax", "learned sink"] and record.attrs["text"] == "text.txt"
    expected = lab.emergence_table(record)
    found = pd.read_csv("run/emergence.csv")
    pd.testing.assert_frame_equal(found[["mean", "low", "difference"]], expected[["mean", "low", "difference"]])
    before = {path: path.stat().st_mtime_ns for path in Path("run/runs").iterdir()}
    assert len(before) == 6
    assert call(monkeypatch, capsys, *words, "--quiet") == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in Path("run/runs").iterdir()} == before


@pytest.mark.slow
def test_several_layers_have_a_figure_each(monkeypatch, capsys, text, small):
    words = ["lab", *text, "--arms", "relu", "--seeds", "0", "--steps", "1", "--layers", "2", "--quiet", "--out", "run"]
    assert call(monkeypatch, capsys, *words) == (0, "", "")
    drawn = {path.name for path in Path("run").iterdir() if path.suffix[1:] in FORMATS}
    assert drawn == files("emergence_layer_0", "emergence_layer_1")


@pytest.mark.slow
def test_language_writes_its_verdict_beside_record_tables_and_figure(monkeypatch, capsys, text, small):
    words = ["lab", "--task", "language", *text, "--arms", "softmax", "sink token", "--steps", "1", "--layers", "1"]
    code, out, _ = call(monkeypatch, capsys, *words, "--out", "run")
    assert code == 0
    verdict = Path("run/verdict.txt").read_text().splitlines()[:-1]  # which proves the file
    assert verdict == lab.language_verdict(sinkscope.open_record("run/language.nc"))
    assert len(verdict) == 3 and all(sentence in out for sentence in verdict)
    tables = {f"{name}.{kind}" for name in ("language", "heads") for kind in ("csv", "tex")}
    assert {path.name for path in Path("run").iterdir()} == {"runs", "language.nc", "verdict.txt"} | tables | files(
        "language_emergence"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps=0 is not a whole number of 1 or more"),
        (["--seeds", "-1"], "seed=-1"),
        (["--arms", "hardmax"], "'hardmax' is no arm; give any of softmax, softmax1"),
        (["--layers", "4"], "layers=4"),
        (["--layers", "0"], "layers=0"),
        (["--task", "poetry"], "'poetry' is no task; give one of bigram, language"),
        (["--text", "empty.txt"], "There is no text in 'empty.txt'"),
        (["--text", "/no/such/file"], "/no/such/file"),
        (["--task", "language", "--arms", "learned sink"], "leave it out here"),
        (["--device", "nowhere"], "device='nowhere'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(monkeypatch, capsys, text, words, message):
    Path("empty.txt").write_text(" \n")
    text = [] if "--text" in words else text
    code, out, err = call(monkeypatch, capsys, "lab", *text, *words, "--out", "run")
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert not Path("run").exists()
