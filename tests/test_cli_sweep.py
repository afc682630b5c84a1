"""`sinkscope sweep` and `sinkscope runs` on a tiny model in a .gguf file: what they write, and how they refuse."""

from __future__ import annotations

import pandas as pd
import pytest

import sinkscope
from tests.data.conftest import write_tiny_gguf
from tests.test_cli import call
from tests.test_cli_streaming import TEXT

GRID = """
models: [tiny.gguf]
texts: [{source: text.txt, tokens: 60, start: [0, 100]}]
experiments: {perplexity: {}, measure: {probes: [Entropy]}}
policies: [dense, sinks]
sinks: [1, 4]
cache_sizes: 16
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path


@pytest.mark.slow
def test_a_sweep_is_run_listed_verified_exported_and_compared(monkeypatch, capsys, here):
    code, out, err = call(monkeypatch, capsys, "sweep", "grid.yaml", "--out", "run")
    assert code == 0 and "sinkscope:" not in err  # a bar, on a slow machine
    assert out.endswith("Written to run\n") and "sinks 4+12" in out
    table = pd.read_csv("run/sweep.csv", comment="#")
    assert table["cell"].nunique() == 2 * 2 * 3 == len(list((here / "run" / "cells").iterdir()))
    model, tokenizer = sinkscope.load("tiny.gguf")
    ids = sinkscope.read_tokens(tokenizer, "text.txt", 60, start=100)
    expected = sinkscope.ppl(sinkscope.perplexity(model, ids, [sinkscope.SinkWindow(4, 12)], progress=False))
    row = table[(table.text == "text.txt [100:160]") & (table.policy == "sinks 4+12") & (table.quantity == "ppl")]
    assert row["value"].item() == pytest.approx(float(expected[0]), rel=1e-6)

    assert call(monkeypatch, capsys, "sweep", "grid.yaml", "--out", "run", "--quiet") == (0, "", "")
    assert call(monkeypatch, capsys, "runs", "run")[1].count("perplexity") == 6
    code, out, err = call(monkeypatch, capsys, "runs", "verify", "run")
    assert (code, err) == (0, "") and out.startswith("12 cells, all as they were written")
    for name, read in (("t.csv", pd.read_csv), ("t.parquet", pd.read_parquet)):
        assert call(monkeypatch, capsys, "runs", "run", "export", name)[0] == 0
        assert len(read(name)) == len(table)
    assert call(monkeypatch, capsys, "sweep", "grid.yaml", "--out", "again", "--quiet")[0] == 0
    code, out, _ = call(monkeypatch, capsys, "runs", "run", "compare", "again")
    assert code == 0 and out == "12 pairs of cells: 12 equal to the bit, 0 not; 0 in one folder alone.\n"

    (here / "t.csv").write_text("mine")
    code, _, err = call(monkeypatch, capsys, "runs", "run", "export", "t.csv")
    assert code == 2 and "what is there already is another" in err and (here / "t.csv").read_text() == "mine"
    with (here / "run" / "sweep.csv").open("a") as file:
        file.write("edited by hand")
    code, _, err = call(monkeypatch, capsys, "sweep", "grid.yaml", "--out", "run", "--quiet")
    assert code == 2 and "sweep.csv: the file that is there was changed, or is not of sinkscope" in err
    assert (here / "run" / "sweep.csv").read_text().endswith("edited by hand")
    (here / "run" / "sweep.csv").unlink()

    next((here / "run" / "cells").glob("*/record.nc")).write_bytes(b"")
    code, out, err = call(monkeypatch, capsys, "runs", "run", "verify")
    assert code == 2 and err.startswith("sinkscope: 1 of 12 cells cannot be relied on: the record of the cell")
    assert err.count("\n") == 1
    code, _, err = call(monkeypatch, capsys, "sweep", "grid.yaml", "--out", "run")
    assert code == 2 and "delete it" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep"], "grid"),
        (["sweep", "none.yaml"], "cannot be read"),
        (["sweep", "grid.yaml", "--jobs", "0"], "n_jobs=0 runs nothing"),
        (["runs", "none"], "there is no folder"),
        (["runs", "none", "veryfy"], "'veryfy' is nothing to do with a run folder"),
        (["runs", "none", "compare"], "needs a second folder"),
        (["runs", "none", "verify", "other"], "takes one folder alone"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(monkeypatch, capsys, here, words, message):
    before = sorted(here.iterdir())
    code, out, err = call(monkeypatch, capsys, *words)
    assert code == 2 and out == "" and err.startswith("sinkscope: ") and err.count("\n") == 1 and message in err
    assert sorted(here.iterdir()) == before


RUNS = {
    "sweep": (["sweep", "grid.yaml"], "sweep.csv"),
    "perplexity": (["perplexity", "tiny.gguf", "--text", "text.txt", "--tokens", "60"], "perplexity.tex"),
    "ablate": (["ablate", "tiny.gguf", "--text", "text.txt", "--tokens", "60", "--cache", "16"], "ablation.pdf"),
    "intervene": (["intervene", "tiny.gguf", "--text", "text.txt", "--tokens", "60"], "interventions.nc"),
    "lab": (["lab", "--steps", "10"], "emergence_summary.csv"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_file_of_somebodys_own_is_told_before_anything_runs(monkeypatch, capsys, here, name):
    words, file = RUNS[name]
    (here / "out").mkdir()
    (here / "out" / file).write_text("mine,yours\n1,2\n")
    for module in ("sinkscope.load", "sinkscope.sweep", "sinkscope.lab.bigram_backcopy"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("something ran"))
    code, _, err = call(monkeypatch, capsys, *words, "--out", "out", "--quiet")
    assert code == 2 and f"{file}: the file that is there was changed, or is not of sinkscope" in err
    assert [each.name for each in (here / "out").iterdir()] == [file]
