"""What is said of language models: as much as the intervals support, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope.analysis.perplexity import ppl_table
from sinkscope.errors import SinkscopeError
from sinkscope.lab import head_masses, language_table, language_verdict
from tests.support.training_records import emergence_record, language_record


def said(mass: float, ratio: float, **options: float) -> str:
    """Of one model with one head of this mass, whose perplexity under window attention is so many times as high."""
    first, _ = language_verdict(language_record({"softmax": mass}, {"softmax": ratio}, **options))
    return first


def test_rows_are_perplexities_of_tokens_from_which_every_cache_has_evicted_some():
    record = language_record({"softmax": 0.5, "sink token": 0.6}, {"softmax": 3.0, "sink token": 1.0}, seeds=2)
    table = language_table(record)
    assert table[["arm", "seed", "policy"]].drop_duplicates().shape == (16, 3) and len(table) == 16
    nll = record["nll"].values[:, :, :, :, 10:].astype(float)  # cache of 8: the first token without one is 10
    np.testing.assert_allclose(table["ppl"], np.exp(nll.mean((-2, -1))).ravel(), rtol=1e-6)
    by_name = table.set_index(["arm", "seed", "policy"])
    assert (by_name.xs("sinks 4+4", level="policy")["ratio"] == 1).all()
    for arm, ratio in (("softmax", 3.0), ("sink token", 1.0)):
        row = by_name.loc[(arm, 1, "window 8")]
        assert row["ratio"] == pytest.approx(ratio, rel=0.01)  # noise of 0.02 in each of 528 losses
        assert row["ratio_low"] < row["ratio"] < row["ratio_high"]


def test_a_table_of_one_model_is_the_table_of_its_losses():
    record = language_record({"softmax": 0.5}, {"softmax": 2.0})
    alone = record.isel(arm=0, seed=0, drop=True)[["nll"]]
    alone["nll"] = alone["nll"].where(alone["token"] >= 10)
    expected = ppl_table(alone, "sinks 4+4")
    found = language_table(record)
    for column in ("ppl", "low", "high", "ratio", "ratio_low", "ratio_high"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-12)


def test_a_head_is_a_sink_when_its_interval_lies_above_three_tenths():
    heads = head_masses(language_record({"one": 0.5, "none": 0.2}, {"one": 1.0, "none": 1.0}))
    assert heads.loc[heads["is_sink"], ["arm", "layer", "head"]].values.tolist() == [["one", 1, 0]]
    record = language_record({"one": 0.5}, {"one": 1.0})
    own = heads[(heads["arm"] == "one") & (heads["layer"] == 1) & (heads["head"] == 0)].iloc[0]
    assert own["mass"] == pytest.approx(float(record["sink_mass"].isel(arm=0, seed=0).mean("sequence")[1, 0]), abs=1e-3)
    assert own["low"] < own["mass"] < own["high"] and own["null"] == 0.1


def test_intervals_of_heads_are_wider_than_those_of_one_alone():
    record = language_record({"one": 0.5}, {"one": 1.0})
    values = record["sink_mass"].isel(arm=0, seed=0, layer=1, head=0).values
    own = head_masses(record).query("layer == 1 and head == 0").iloc[0]
    error = values.std(ddof=1) / len(values) ** 0.5
    half = (own["high"] - own["low"]) / 2
    assert half == pytest.approx(2.498 * error, rel=0.1)  # 1 - 0.05 / 4 of a normal, against 1.96 for one head


@pytest.mark.parametrize(
    ("mass", "sinks"),
    [
        (0.5, "sinks appeared: 1 of 4 heads spend more than 0.3 of their attention on the first token, up to 0.500 ("),
        (
            0.2,
            "no sinks were found: no head is shown to spend more than 0.3 of its attention on the first token, though",
        ),
        (0.05, "no sinks were found: no head is shown to spend more than the 0.100 of uniform attention"),
    ],
)
def test_whether_sinks_appeared_is_said_as_the_intervals_have_it(mass, sinks):
    assert sinks in said(mass, 1.0)


@pytest.mark.parametrize(
    ("ratio", "noise", "collapse"),
    [
        (3.0, 0.02, "window attention collapsed: its perplexity of"),
        (1.2, 0.02, "window attention is worse but did not collapse (by a factor of 1.5)"),
        (1.6, 0.5, "window attention is worse, and whether it collapsed (by a factor of 1.5) is open"),
        (1.0, 0.02, "no collapse of window attention is shown"),
        (1.2, 3.0, "no collapse of window attention is shown"),
        (0.8, 0.02, "window attention did not collapse, it is better"),
    ],
)
def test_whether_window_attention_collapsed_is_said_as_the_paired_interval_has_it(ratio, noise, collapse):
    record = language_record({"softmax": 0.5}, {"softmax": ratio}, noise=noise)
    sentence = language_verdict(record)[0]
    assert collapse in sentence
    row = language_table(record).set_index("policy").loc["window 8"]
    assert f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f}) times that of sinks 4+4" in sentence


def test_a_null_result_is_told_as_one():
    sentence = said(0.05, 1.0)
    assert "no sinks were found" in sentence and "no collapse of window attention is shown" in sentence


def test_each_model_has_its_sentence_and_the_last_says_what_intervals_do_not_cover():
    masses = {"softmax": 0.5, "sink token": 0.7}
    record = language_record(masses, dict.fromkeys(masses, 1.0), seeds=2)
    sentences = language_verdict(record)
    assert [sentence.split(":")[0] for sentence in sentences[:-1]] == [
        "softmax, seed 0", "softmax, seed 1", "sink token, seed 0", "sink token, seed 1",
    ]  # fmt: skip
    assert "on the sink token" in sentences[2] and "on the first token" in sentences[0]
    assert "2 models were trained per arm, for 100 steps" in sentences[-1]
    alone = language_verdict(language_record({"softmax": 0.5}, {"softmax": 1.0}))
    assert "1 model was trained per arm" in alone[-1] and "or of other seeds" in alone[-1]


def test_one_text_says_nothing_of_sinks():
    assert "cannot be said from one text" in said(0.5, 1.0, sequences=1)


@pytest.mark.parametrize("read", [language_table, head_masses, language_verdict])
def test_another_record_is_refused(read):
    with pytest.raises(SinkscopeError, match="not a record of language models"):
        read(emergence_record())


def test_a_sink_token_is_one_whatever_its_arm_is_called():
    record = language_record({"sink token": 0.5, "softmax": 0.5}, {"sink token": 1.0, "softmax": 1.0})
    first, second, _ = language_verdict(record.assign_coords(arm=["softmax", "sink token"]))
    assert "of their attention on the sink token" in first and "of their attention on the first token" in second


def test_a_record_that_does_not_say_what_its_arms_are_is_refused():
    older = language_record({"softmax": 0.5}, {"softmax": 1.0}).drop_vars("has_sink_token")
    for read in (language_table, head_masses, language_verdict):
        with pytest.raises(SinkscopeError, match="has_sink_token is missing, as in records of older versions"):
            read(older)
