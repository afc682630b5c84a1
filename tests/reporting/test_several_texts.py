"""Reports of segments from all over a text, and of several texts side by side."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.reporting import first_token
from tests.reporting.byte_tokens import byte_tokenizer

LENGTH, SHORT = 72, {"streaming": False, "softmax": False, "progress": False}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=400, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def written(folder: Path, name: str, letters: str, size: int = 4000) -> Path:
    path = folder / name
    path.write_text("".join(random.Random(name).choices(letters, k=size)))
    return path


@pytest.fixture
def texts(tmp_path) -> list[Path]:
    return [
        written(tmp_path, "one.txt", "abcd "),
        written(tmp_path, "two.txt", "wxyz\n"),
        written(tmp_path, "3.txt", "aw"),
    ]


def tokens_of(path: Path) -> np.ndarray:
    return np.array(byte_tokenizer(False)(path.read_text())["input_ids"])


def measured(model, **options):
    return sinkscope.report(model, byte_tokenizer(False), **SHORT | {"length": LENGTH} | options)


@pytest.mark.slow
def test_a_report_reads_eight_segments_from_all_over_a_text_unless_asked_otherwise(llama, texts):
    made = measured(llama, text=texts[0])
    stream = tokens_of(texts[0])
    ids = made.records["text"]["token_id"].values
    np.testing.assert_array_equal(ids, [stream[start : start + LENGTH] for start in range(0, 4000, 500)])
    short = made.records["short"]["token_id"].values
    assert len(short) == 4000 // 64 and (short[31] == stream[31 * 4000 // 62 :][:64]).all()
    assert made.records["text"].attrs["read"] == "8 segments spaced over the text"
    assert "(95%, over 8 segments spaced over the text)" in made.headline
    opening = measured(llama, text=texts[0], sequences=3)
    assert (opening.records["text"]["token_id"].values.ravel() == stream[: 3 * LENGTH]).all()
    assert "over 3 consecutive sequences from the start of the text" in opening.headline


@pytest.mark.slow
def test_random_segments_follow_from_the_seed(llama, texts):
    one, same, other = (measured(llama, text=texts[0], starts="random", seed=seed) for seed in (1, 1, 2))
    ids = [made.records["text"]["token_id"].values for made in (one, same, other)]
    assert (ids[0] == ids[1]).all() and (ids[0] != ids[2]).any()
    assert "8 random segments of the text" in one.headline


@pytest.mark.slow
def test_every_third_of_the_short_texts_is_measured_with_the_other_bos(llama, texts):
    made = sinkscope.report(llama, byte_tokenizer(True), texts[0], length=LENGTH, **SHORT)
    short, other = made.records["short"], made.records["other_bos"]
    assert other["sequence"].values.tolist() == list(range(0, short.sizes["sequence"], 3))
    paired = short["token_id"].sel(sequence=other["sequence"].values).values
    assert (paired[:, 1:] == other["token_id"].values).all()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_headlines_of_several_texts_stand_side_by_side_and_over_texts(llama, texts, count):
    made = measured(llama, texts=texts[:count], segments=4)
    record, table = made.records["text"], made.tables["texts"]
    assert (
        record.sizes["sequence"] == 4 * count and f"over 4 segments spaced over each of {count} texts" in made.headline
    )
    names = ["one.txt", "two.txt", "3.txt"][:count]
    assert list(table["text"]) == [*names, "mean over texts"]
    each = record["sink_mass"].isel(sink=0).isel(query=slice(1, None)).mean(["query", "layer", "head"]).values
    by_text = each.reshape(count, 4).astype(float)
    for name, own in zip(names, by_text, strict=True):
        row = table.set_index("text").loc[name]
        assert row["mass"] == pytest.approx(own.mean(), rel=1e-5)
        bounds = stats.t.interval(0.95, 3, own.mean(), stats.sem(own))
        np.testing.assert_allclose([row["mass_low"], row["mass_high"]], bounds, rtol=1e-3)
    last, means = table.iloc[-1], by_text.mean(1)
    assert last["mass"] == pytest.approx(means.mean(), rel=1e-5) and last["sequences"] == 4 * count
    if count == 2:
        assert np.isnan(last["mass_low"])
    else:
        bounds = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
        np.testing.assert_allclose([last["mass_low"], last["mass_high"]], bounds, rtol=1e-3)


@pytest.mark.slow
def test_one_text_has_no_table_of_texts(llama, texts):
    made = measured(llama, text=texts[0])
    assert "texts" not in made.tables and not made.notes


@pytest.mark.slow
def test_a_text_under_two_names_does_not_narrow_an_interval(llama, texts, tmp_path):
    again = tmp_path / "again.txt"
    again.write_bytes(texts[0].read_bytes())
    one, both = measured(llama, texts=[texts[0]], segments=4), measured(llama, texts=[texts[0], again], segments=4)
    ends = [first_token.masses(made.records["text"])[0] for made in (one, both)]
    for name in ("value", "lower", "upper"):
        assert ends[1][name] == pytest.approx(ends[0][name], rel=1e-4)
    assert "(95%, over 4 sequences)" in both.headline


@pytest.mark.slow
def test_losses_of_several_texts_are_of_segments_of_each_and_of_each_text_apart(llama, texts):
    made = sinkscope.report(
        llama, byte_tokenizer(False), texts=texts[:2], segments=4, length=LENGTH, softmax=False, progress=False
    )
    curve, table = made.records["perplexity"], made.tables["texts"].set_index("text")
    assert curve["source"].values.tolist() == ["one.txt"] * 8 + ["two.txt"] * 8
    for name, path in zip(("one.txt", "two.txt"), texts, strict=False):
        ids = torch.as_tensor(tokens_of(path))
        own = sinkscope.perplexity(llama, sinkscope.segments(ids, 384, 8), [sinkscope.Dense()], progress=False)
        assert table.loc[name, "ppl_dense"] == pytest.approx(float(sinkscope.ppl(own).squeeze()), rel=1e-4)
        assert table.loc[name, "ppl_dense_low"] < table.loc[name, "ppl_dense"] < table.loc[name, "ppl_dense_high"]
    collapse = made.tables["sensitivity"].query("headline == 'collapse'")
    pair = curve.sel(policy=["window 128", "sinks 4+124"])["nll"].values[..., 130:]
    for end, value in zip(collapse["level"][:3], collapse["value"], strict=False):
        means = pair[..., : int(end) - 130].mean((1, 2))
        assert value == pytest.approx(np.exp(means[0] - means[1]), rel=1e-5)
    assert collapse["level"].tolist() == ["195", "260", "384", "without, T = 384", "with, T = 384"]


@pytest.mark.slow
@pytest.mark.parametrize("bos", [False, True])
def test_the_collapse_with_the_other_choice_of_bos_is_that_of_the_texts_with_it(llama, texts, bos):
    """Against a run of our own: a window and sinks over every second segment with a token in front, or without."""
    made = sinkscope.report(
        llama, byte_tokenizer(bos), texts[0], segments=2, length=LENGTH, softmax=False, progress=False
    )
    ids = torch.as_tensor(made.records["perplexity"]["token_id"].values)[::2]
    assert len(ids) == 4 and made.records["other_bos_losses"].sequence.values.tolist() == [0, 2, 4, 6]
    other = ids[:, 1:] if bos else torch.cat([torch.zeros(len(ids), 1, dtype=ids.dtype), ids[:, :-1]], 1)
    run = sinkscope.perplexity(llama, other, [sinkscope.SinkWindow(4, 124), sinkscope.Window(128)], progress=False)
    late = run["nll"].values[..., 130:].astype(np.float64).mean((1, 2))
    table = made.tables["sensitivity"].query("headline == 'collapse' and varied == 'BOS'").set_index("level")
    level = f"{'without' if bos else 'with'}, T = {other.shape[1]}"
    assert len(table) == 2 and table.loc[level, "value"] == pytest.approx(np.exp(late[1] - late[0]), rel=1e-5)
    assert table.loc[level, "low"] < table.loc[level, "value"] < table.loc[level, "high"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"texts": ["a.txt"], "text": "b.txt"}, "Both text and texts were given"),
        ({"texts": []}, "texts=.* is empty"),
        ({"texts": ["demo", "demo"]}, "'demo' is given twice"),
        ({"texts": ["demo", "/no/such/text"]}, "is not a file"),
        ({"segments": 0}, "segments=0"),
        ({"segments": 2, "sequences": 2}, "two ways to read a text"),
        ({"starts": "here"}, "starts='here' is unknown"),
        ({"sequences": 2, "starts": "random"}, "starts='random' are of segments"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_texts_and_segments_of_no_kind_are_refused_before_a_model_is_loaded(wrong, words):
    with pytest.raises(SinkscopeError, match=words):
        sinkscope.report("/no/such/model", **wrong)


@pytest.mark.slow
def test_a_short_text_among_several_gives_fewer_segments_of_each_and_a_note(llama, texts, tmp_path):
    short = written(tmp_path, "short.txt", "abc", 3 * LENGTH)
    made = measured(llama, texts=[texts[0], short], segments=5)
    assert made.records["text"].sizes["sequence"] == 6
    assert made.notes[0].startswith("The shortest text has only 216 tokens: 3 of 5 sequences")
