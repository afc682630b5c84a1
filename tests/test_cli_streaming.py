"""`sinkscope perplexity`, `ablate` and `cost` on a tiny model in a .gguf file: what they write, and how they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sinkscope
from sinkscope.cli import spread
from tests.data.conftest import write_tiny_gguf
from tests.test_cli import call

TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 4


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model, a text beside it and a cache folder of their own; the test runs there."""
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text(TEXT)
    return ["tiny.gguf", "--text", "text.txt", "--quiet"]


def read(path: str) -> pd.DataFrame:
    return pd.read_csv(path, comment="#")


def test_values_after_an_option_belong_to_it():
    words = ["ablate", "m", "--sinks", "0", "-1", "2", "--tokens", "9", "--cache=8", "--kinds", "line breaks"]
    assert spread(words, ["--sinks", "--cache", "--kinds"]) == [
        "ablate", "m", "--sinks=0", "--sinks=-1", "--sinks=2", "--tokens", "9", "--cache=8", "--kinds=line breaks",
    ]  # fmt: skip


@pytest.mark.slow
def test_perplexity_writes_record_table_and_figure_and_goes_on(monkeypatch, capsys, model):
    words = [
        "perplexity",
        *model,
        "--tokens",
        "90",
        "--policies",
        "dense",
        "window",
        "recompute",
        "sinks",
        "--cache",
        "24",
    ]
    assert call(monkeypatch, capsys, *words, "--out", "run") == (0, "", "")
    record = sinkscope.open_record("run/perplexity.nc")
    assert record.policy.values.tolist() == ["dense", "window 24", "recompute 24", "sinks 4+20"]
    loaded, tokenizer = sinkscope.load("tiny.gguf")
    ids = sinkscope.read_tokens(tokenizer, "text.txt", limit=90)
    again = sinkscope.perplexity(loaded, ids, [sinkscope.SinkWindow(4, 20)], progress=False)
    np.testing.assert_allclose(record.nll[3], again.nll[0], atol=1e-5)
    table = read("run/perplexity.csv")
    np.testing.assert_allclose(table.ppl, sinkscope.ppl(record), rtol=1e-6)
    assert {path.name for path in Path("run").iterdir()} == {
        "checkpoints", "perplexity.nc", "perplexity.csv", "perplexity.tex", "log_perplexity.pdf", "log_perplexity.svg",
        "log_perplexity.png",
    }  # fmt: skip
    shutil.rmtree("cache")  # all is in the checkpoints; the model is only loaded
    assert call(monkeypatch, capsys, *words, "--out", "run")[0] == 0
    np.testing.assert_array_equal(sinkscope.open_record("run/perplexity.nc").nll, record.nll)


@pytest.mark.slow
def test_segments_of_several_texts_are_read_as_texts_of_their_own(monkeypatch, capsys, model):
    Path("other.txt").write_text("And God said, Let there be light: and there was light. " * 9)
    words = ["perplexity", "--text", "text.txt", "--text", "other.txt", "tiny.gguf", "--quiet", "--policies", "sinks"]
    given = [*words, "--cache", "24", "--tokens", "40", "--segments", "2"]
    assert call(monkeypatch, capsys, *given, "--out", "run") == (0, "", "")
    record = sinkscope.open_record("run/perplexity.nc")
    loaded, tokenizer = sinkscope.load("tiny.gguf")
    ids = sinkscope.read_segments(tokenizer, ["text.txt", "other.txt"], 40, 2)
    again = sinkscope.perplexity(loaded, list(ids), [sinkscope.SinkWindow(4, 20)], progress=False)
    np.testing.assert_allclose(record.nll, again.nll, atol=1e-5)
    assert record.sizes["sequence"] == 4 and record.attrs["text"] == "text.txt, other.txt"
    code, _, said = call(monkeypatch, capsys, *given, "--start", "5")
    assert code == 2 and "--start goes with one part of a text, not with --segments" in said


@pytest.mark.slow
def test_ablate_writes_table_and_figure_and_keeps_its_cells(monkeypatch, capsys, model):
    words = ["ablate", *model, "--tokens", "90", "--sinks", "0", "1", "4", "--cache", "24", "32", "--out", "swept"]
    code, _, err = call(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    table = read("swept/ablation.csv")
    cells = sorted(map(tuple, table[["cache_size", "sinks"]].values.tolist()))
    assert cells == [(cache, sinks) for cache in (24, 32) for sinks in (0, 1, 4)]
    assert Path("swept/ablation.pdf").stat().st_size > 1000 and len(list(Path("swept/cells").iterdir())) == 6


@pytest.mark.slow
def test_cost_prints_the_table_of_the_ways(monkeypatch, capsys, model):
    code, said, _ = call(
        monkeypatch, capsys, "cost", "tiny.gguf", "--tokens", "1000", "--cache", "64", "--out", "costs"
    )
    assert code == 0 and "O(T²)" in said and "recompute 64" in said
    assert read("costs/cost.csv").policy.tolist() == ["dense", "window 64", "recompute 64", "sinks 4+60"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["perplexity", "--policies", "dense", "nonsense"], "'nonsense' is no policy"),
        (["perplexity", "--cache", "4", "--sinks", "4"], "leave no window"),
        (["perplexity", "--cache", "0", "--policies", "window"], "Window(size=0)"),
        (["perplexity", "/no/such/model"], "/no/such/model"),
        (["perplexity", "--samples", "-1"], "--samples"),
        (["ablate", "--sinks", "many"], "--sinks"),
        (["cost", "--tokens", "0"], "--tokens"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(monkeypatch, capsys, *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []
