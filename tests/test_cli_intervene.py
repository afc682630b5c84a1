"""`sinkscope intervene` on a tiny model in a .gguf file: what it writes and says, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sinkscope
from sinkscope.cli.experiments import sequences_of
from sinkscope.cli.intervening import beside
from tests.data.conftest import write_tiny_gguf
from tests.test_cli import call

TEXT = "In the day, and night; God said: Let it be! And it was. So, on. " * 8
SIZES = ["--tokens", "80", "--sequences", "2", "--start", "40"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model, a text beside it and a cache folder of their own; the test runs there."""
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sinkscope.progress.PATIENCE", 600.0)  # however slow the machine is, no bar
    monkeypatch.chdir(tmp_path)
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text(TEXT)
    return ["intervene", "tiny.gguf", "--text", "text.txt", *SIZES]


def read(path: str) -> pd.DataFrame:
    return pd.read_csv(path, comment="#")


def texts():
    """What the command reads of the text: neighbouring sequences, each with the BOS token in front."""
    loaded, tokenizer = sinkscope.load("tiny.gguf")
    stream = sinkscope.read_tokens(tokenizer, "text.txt", limit=160, bos=False)
    front = tokenizer("a")["input_ids"][0]
    return loaded, sinkscope.sequences(stream, 80, 2, bos=front if front == tokenizer.bos_token_id else None)


@pytest.mark.slow
def test_sinks_beside_random_keys_is_one_line_of_each_and_a_table_of_both(monkeypatch, capsys, model):
    code, said, err = call(monkeypatch, capsys, *model, "--evict", "sinks", "--evict", "random", "--out", "run")
    assert (code, err) == (0, "")
    lines = said.splitlines()
    assert lines[0].startswith("2 sequences of 80 tokens; keys go, and losses are scored, from query 40 on.")
    assert lines[1].split()[:3] == ["intervention", "ppl", "ratio"] and lines[2].split()[0] == "nothing"
    assert "evict sinks" in lines[3] and "evict random" in lines[3]  # the control on the same line
    assert lines[4].startswith("Intervals of losses: 95% t intervals over 8 batches of ")
    assert lines[5].startswith("20 draws of each random control in each of 2 texts; intervals over draws: 95% t within")
    assert lines[6:] == ["Written to run"]
    table = read("run/interventions.csv")
    assert list(zip(table.intervention, table.role, strict=True)) == [
        ("nothing", "baseline"),
        ("evict sinks", "effect"),
        ("evict random", "control"),
    ]
    loaded, ids = texts()
    expected = sinkscope.intervene(loaded, ids, [sinkscope.EvictKeys("sinks")], start=40, progress=False)
    for column in ("ppl", "ratio_low", "over_control_high", "sink_mass", "mass_low"):
        np.testing.assert_allclose(table[column], expected[column], rtol=1e-5)
    record = sinkscope.open_record("run/interventions.nc")
    assert record.attrs["text"] == "text.txt" and record.sizes["sequence"] == 2
    np.testing.assert_allclose(sinkscope.intervention_table(record)["ratio"], table["ratio"], rtol=1e-6)
    assert {path.name for path in Path("run").iterdir()} == {
        "interventions.nc", "interventions.csv", "interventions.tex", "effects.pdf", "effects.svg", "effects.png",
    }  # fmt: skip


@pytest.mark.slow
def test_every_option_names_its_intervention(monkeypatch, capsys, model):
    words = [
        "--evict", "recent", "delimiters", "--replace", "line breaks", "random", "--shift", "5", "--repeat",
        "--count", "2", "--layers", "1", "--heads", "0", "3", "--sinks", "3", "--seed", "7", "--out", "run", "--quiet",
    ]  # fmt: skip
    assert call(monkeypatch, capsys, *model, *words) == (0, "", "")
    record = sinkscope.open_record("run/interventions.nc")
    where = ", layer 1, heads 0 3"
    assert record.policy.values.tolist()[:7] == [
        "nothing", f"evict 2 recent{where}", f"evict 2 delimiters{where}", "first 2 tokens to line breaks",
        "first 2 tokens to random ones", "start 5 later", "repeat one token",
    ]  # fmt: skip
    assert {name: int(record.attrs[name]) for name in ("start", "sinks", "seed")} == {
        "start": 40,
        "sinks": 3,
        "seed": 7,
    }


@pytest.mark.slow
def test_without_names_the_usual_ones_run(monkeypatch, capsys, model):
    code, said, _ = call(monkeypatch, capsys, *model, "--out", "run")
    assert code == 0
    loaded, ids = texts()
    _, tokenizer = sinkscope.load("tiny.gguf")
    usual = sinkscope.intervene(loaded, ids, tokenizer=tokenizer, start=40, progress=False)
    assert read("run/interventions.csv").intervention.tolist() == usual.intervention.tolist()
    for name in ("evict delimiters", "first tokens to line breaks", "shuffle all tokens"):
        assert name in said


@pytest.mark.slow
def test_doses_are_a_table_and_a_record_of_their_own(monkeypatch, capsys, model):
    words = ["--dose", "-inf", "-2", "0", "1.5", "--count", "1", "--layers", "0", "--out", "run"]
    code, said, err = call(monkeypatch, capsys, *model, *words)
    assert (code, err) == (0, "") and "A bias on the logits of the first keys (1), and of as many others" in said
    loaded, ids = texts()
    expected = sinkscope.dose_response(loaded, ids, [-np.inf, -2, 0, 1.5], layers=[0], start=40, progress=False)
    record, table = sinkscope.open_record("run/dose.nc"), read("run/dose.csv")
    np.testing.assert_allclose(record.nll, expected.nll, rtol=1e-5)
    np.testing.assert_allclose(table["output"], sinkscope.dose_table(expected)["output"], rtol=1e-5)
    assert record.attrs["text"] == "text.txt"
    assert {path.name for path in Path("run").iterdir()} == {
        "dose.nc", "dose.csv", "dose.tex", "dose.pdf", "dose.svg", "dose.png",
    }  # fmt: skip


@pytest.mark.slow
def test_doses_act_on_as_many_keys_as_there_are_sinks(monkeypatch, capsys, model):
    assert call(monkeypatch, capsys, *model, "--dose", "-1", "--sinks", "3", "--quiet", "--out", "run") == (0, "", "")
    assert int(sinkscope.open_record("run/dose.nc").attrs["count"]) == 3


class WithFront:
    """A tokenizer of characters that puts token 1 in front of every text by itself."""

    bos_token_id, all_special_ids = 1, [1]

    def __call__(self, text, add_special_tokens=True, **_):
        return {"input_ids": [1] * add_special_tokens + [ord(character) for character in text]}


def test_every_sequence_has_the_token_in_front_and_none_of_the_text_is_lost(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefghij")
    ids = sequences_of(WithFront(), str(tmp_path / "text.txt"), tokens=4, count=3)
    assert ids.tolist() == [[1, *map(ord, letters)] for letters in ("abc", "def", "ghi")]


def row(name: str, role: str, **values: float):
    columns = ("ppl", "ratio", "ratio_low", "ratio_high", "over_control", "over_control_low", "over_control_high",
               "sink_mass", "mass_low", "mass_high")  # fmt: skip
    return {"intervention": name, "role": role, "verdict": ""} | dict.fromkeys(columns, np.nan) | values


def test_a_reader_sees_the_control_on_the_line_of_its_effect_and_no_interval_where_there_is_none():
    effect = dict(ppl=1234.56, ratio=3.06666, ratio_low=2.5, ratio_high=3.4, over_control=3, over_control_low=2.7,
                  over_control_high=3.3, sink_mass=0.25, verdict="higher", over_draws_low=2.9, over_draws_high=3.1,
                  removed_mass=0.39, per_mass=2.81, per_mass_low=2.3, per_mass_high=3.2)  # fmt: skip
    found = beside(
        pd.DataFrame(
            [
                row("nothing", "baseline", ppl=4.9, ratio=1, ratio_low=1, ratio_high=1),
                row("evict sinks", "effect", **effect),
                row("evict random", "control", ppl=5, ratio=1.006, ratio_low=1.001, ratio_high=1.01, sink_mass=0.3,
                    mass_low=0.29, mass_high=0.31),
                row("alone", "effect", ppl=5, ratio=1.5),
            ]
        )
    )  # fmt: skip
    assert found.to_numpy().tolist() == [
        ["nothing", "4.900", "1.000", "", "", "", "", "", "", "", "", ""],
        ["evict sinks", "1235.", "3.067 [2.500, 3.400]", "0.2500", "evict random", "1.006 [1.001, 1.010]",
         "0.3000 [0.2900, 0.3100]", "3.000 [2.700, 3.300]", "higher", "[2.900, 3.100]", "0.3900",
         "2.810 [2.300, 3.200]"],
        ["alone", "5.000", "1.500", "", "", "", "", "", "", "", "", ""],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--evict", "first"],
            "which='first' is unknown; give one of sinks, random, recent, near-recent, next, attended",
        ),
        (["--replace", "spaces"], "by='spaces' is unknown"),
        (["--massive", "half"], "mode='half' is unknown"),
        (["--shift", "0"], "--shift"),
        (["--count", "0"], "--count"),
        (["--draws", "1"], "--draws"),
        (["--dose", "much"], "--dose"),
        (["--dose", "inf"], "give different numbers"),
        (["--evict", "sinks", "--dose", "1", "1"], "give different numbers"),
        (["--layers", "1"], "--layers is for"),
        (["--heads", "1", "--massive", "zero"], "--heads is for"),
        (["--count", "3", "--shift", "4"], "--count is for"),
        (["--evict", "sinks", "--heads", "-1"], "heads=[-1]"),
        (["/no/such/model"], "/no/such/model"),
    ],
)
def test_a_mistake_in_words_is_one_line_before_a_model_is_loaded(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    if words[0] != "/no/such/model":
        monkeypatch.setattr(sinkscope, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    code, out, err = call(monkeypatch, capsys, "intervene", *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--massive", "zero"], "no activation above 100 and 1000 times the median in this model"),
        (["--evict", "sinks", "--layers", "2"], "layer 2 of `evict sinks, layer 2` is out of range"),
        (["--evict", "sinks", "--start", "79"], "leaves nothing to score from query 79 on"),
        (["--shift", "4", "--dose", "1", "--layers", "9"], "layer 9 of `dose"),
        (["--tokens", "400"], "read more text"),
        (["--evict", "sinks", "--count", "20"], "20 of the 40 tokens"),
        (["--evict", "sinks", "--count", "1", "--draws", "50"], "drawn in 36 ways; give draws=36 or fewer"),
    ],
)
def test_what_this_model_or_text_cannot_do_is_one_line_and_leaves_nothing(
    monkeypatch, capsys, tmp_path, model, words, message
):
    code, out, err = call(monkeypatch, capsys, *model, *words, "--out", "run")
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert not Path("run").exists()
