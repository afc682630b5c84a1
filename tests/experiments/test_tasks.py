"""Needles, keys and values, questions along a stream: texts, answers, chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binomtest

import sinkscope
from sinkscope import (
    TOVA,
    Dense,
    HeavyHitters,
    PerHead,
    Recompute,
    SinkscopeError,
    SinkWindow,
    Window,
    accuracy_table,
    figures,
    key_value_recall,
    needle_recall,
    stream_recall,
)
from sinkscope.analysis.tasks import share_interval
from sinkscope.experiments.questions import Lines, Wording, needles
from tests.support import talking
from tests.support.copying import FIRST_VALUE, VALUES, WORDS, copier, words

HAY = torch.full((200,), WORDS.index("hay"))
SHORT = {"fact": "\n{key} {value}", "question": "\nwhat of {key}?", "trials": 3, "progress": False}


@pytest.fixture(scope="module")
def found():
    policies = [Dense(), Window(12), SinkWindow(2, 12), Recompute(12)]
    return needle_recall(
        copier(), words(), HAY, policies, lengths=[40, 80], depths=[0, 0.5, 1], trials=60, progress=False
    )


@pytest.mark.slow
def test_a_model_that_copies_what_it_sees_is_right_and_a_policy_that_cannot_see_it_is_at_chance(found):
    table = accuracy_table(found).set_index(["policy", "length", "depth"]).sort_index()
    assert (table.loc["dense", "accuracy"] == 1).all() and (table.loc["dense", "said"] == 1).all()
    for policy in ("window 12", "sinks 2+12", "recompute 12"):
        assert table.loc[(policy, 80, 1.0), "distance"] == 12
        assert table.loc[(policy, 80, 1.0), "accuracy"] == 1  # within the window
        blind = accuracy_table(found.sel(policy=[policy], depth=[0, 0.5]))
        assert (blind["low"] < 1 / len(VALUES)).all() and (blind["high"] > 1 / len(VALUES)).all()
        assert blind["accuracy"].mean() == pytest.approx(1 / len(VALUES), abs=0.06)  # of 240 texts, sd 0.02
    assert set(table["chance"]) == {1 / len(VALUES)} and set(table["trials"]) == {60}


def test_the_needle_stands_where_the_record_says():
    wording, random = Wording(words(), "\nThe secret word is {value}.\n", "\nWhat is the secret word?"), np.random
    asked = needles(wording, HAY.numpy(), 40, 0.25, 5, random.default_rng(0))
    assert asked.texts.shape == (5, 41) and asked.places == [39]
    for text, (answer,) in zip(asked.texts, asked.answers, strict=True):
        (first, last) = np.flatnonzero(text >= FIRST_VALUE)
        assert last - first == asked.distances[0] and text[first] == text[last] == FIRST_VALUE + answer
        said = [WORDS[token] for token in text]
        assert said[0] == "<s>" and said[first - 4 : first] == ["The", "secret", "word", "is"]
        assert said[-10:-1] == ["What", "is", "the", "secret", "word", "?", "The", "secret", "word", "is"][1:]


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_each_question_of_a_stream_asks_about_the_line_so_many_lines_back(chat):
    tokenizer = talking.tokenizer()
    lines = Lines(Wording(tokenizer, "\n{key} {value}", "\nwhat of {key}?", None, chat))
    asked = lines.stream(20, 5, 7, 3, np.random.default_rng(1))
    for text, answers in zip(asked.texts, asked.answers, strict=True):
        assert len(asked.places) == 3 and len(answers) == 3  # behind 10, 15 and 20 lines
        for place, answer, away in zip(asked.places, answers, asked.distances, strict=True):
            assert text[place + 1] == text[place + 1 - away] == lines.tokens[answer]
            key = talking.decoded(tokenizer, text[place - lines.value + 1 : place + 1]).strip()
            there = place + 1 - away
            assert talking.decoded(tokenizer, text[there - lines.value : there]).strip() == key
        if chat:
            assert (text == talking.START).sum() == 2 * len(asked.places) + 1  # the template's own system turn


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        Dense(),
        Window(9),
        Recompute(9),
        SinkWindow(2, 7),
        HeavyHitters(9, 5),
        TOVA(9),
        PerHead({(0, 1): Dense()}, default=SinkWindow(1, 8)),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_answers_are_scored_where_perplexity_scores_them(policy):
    model, tokenizer = talking.talker(), talking.tokenizer()
    record = stream_recall(model, tokenizer, [policy], lines=6, every=3, back=1, **SHORT)
    lines = Lines(Wording(tokenizer, SHORT["fact"], SHORT["question"]))
    asked = lines.stream(6, 3, 1, 3, np.random.default_rng(0))
    texts = torch.from_numpy(asked.texts)
    losses = sinkscope.perplexity(model, texts, [policy], samples=None, progress=False).nll.values[0]
    for question, place in enumerate(asked.places):
        np.testing.assert_allclose(record.nll[0, 0, :, question], losses[:, place + 1], atol=1e-5)
    if isinstance(policy, Dense):
        with torch.no_grad():
            logits = model(texts).logits[:, asked.places]
        picked = logits[..., lines.tokens].argmax(-1).numpy()
        np.testing.assert_array_equal(record.correct[0, 0], picked == asked.answers)
        right = np.array(lines.tokens)[asked.answers]
        np.testing.assert_array_equal(record.said[0, 0], logits.argmax(-1).numpy() == right)


@pytest.mark.slow
def test_a_model_is_afterwards_as_it_was_and_a_seed_repeats_everything():
    model, tokenizer = talking.talker(), talking.tokenizer()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    one, two = (key_value_recall(model, tokenizer, [TOVA(9)], pairs=4, depths=[0, 1], **SHORT) for _ in range(2))
    xr.testing.assert_equal(one, two)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert model.config._attn_implementation == "sdpa" and not model.model.layers[0].self_attn._forward_hooks
    assert one.distance.values[0, 0] > one.distance.values[0, 1]


@pytest.mark.slow
def test_a_record_is_saved_and_drawn(found, tmp_path):
    again = sinkscope.open_record(sinkscope.save_record(found, tmp_path / "needles.nc"))
    assert accuracy_table(again).equals(accuracy_table(found))
    left, right = figures.accuracy(again).axes
    lines = {line.get_gid(): line for line in (*left.lines, *right.lines)}
    by_depth = accuracy_table(found, "depth").set_index("policy")
    np.testing.assert_allclose(lines["depth-window 12"].get_ydata(), by_depth.loc["window 12", "accuracy"])
    assert by_depth.loc["window 12", "trials"].tolist() == [120] * 3


def test_bounds_of_a_share_are_exact_for_texts_with_one_question_and_wider_where_answers_hang_together():
    for hits, texts in ((0, 8), (3, 8), (8, 8), (1, 1)):
        exact = binomtest(hits, texts).proportion_ci(0.95, "exact")
        right = [[1.0]] * hits + [[0.0]] * (texts - hits)
        assert share_interval(right) == pytest.approx((hits / texts, exact.low, exact.high))
    apart = np.tile([1.0, 0, 1, 0], (10, 1))
    together = np.repeat([[1.0], [0.0]], 5, axis=0) @ np.ones((1, 4))
    (_, low, high), (_, wide_low, wide_high) = share_interval(apart), share_interval(together)
    assert wide_low < low < 0.5 < high < wide_high
    assert np.isnan(share_interval([[1, 0], [0, 1]])[1])  # two texts say nothing of a third


WANTED = {
    "lengths": ({"lengths": 12}, r"a needle of 6 tokens, its question of \d+ and 1 in front of all do not fit"),
    "hay": ({"lengths": 400}, "needs 3.. of `ids`, and 200 were given"),
    "depth": ({"depths": 1.5}, "depths=1.5 is beyond the end"),
    "values": ({"values": ["apple", "applepie"]}, "'applepie' is no single token|two at least"),
    "one value": ({"values": ["apple"]}, "two at least"),
    "no value": ({"needle": "The secret word."}, "has to have \\{value\\} in it"),
    "chat": ({"chat": True}, "has no chat template"),
    "no tokenizer": ({"tokenizer": None}, "text needs a tokenizer, got None"),
    "no policy": ({"policies": []}, "no policy was given"),
    "trials": ({"trials": 0}, "trials=0 is not a whole number of 1 or more"),
    "ids": ({"ids": torch.zeros(2, 50, dtype=torch.long)}, "needles are put into one text, and 2 were given"),
}


@pytest.mark.parametrize(("changes", "said"), WANTED.values(), ids=WANTED)
def test_what_cannot_be_asked_is_refused_in_a_sentence(changes, said):
    given = {"model": copier(), "tokenizer": words(), "ids": HAY, "policies": [Dense()], "lengths": 60, "trials": 2}
    with pytest.raises(SinkscopeError, match=said):
        needle_recall(**given | changes, progress=False)


@pytest.mark.slow
def test_a_line_never_asked_about_more_pairs_than_keys_and_another_record_are_refused():
    model, tokenizer = talking.talker(), talking.tokenizer()
    with pytest.raises(SinkscopeError, match="nothing can be asked about the line 12 lines back"):
        stream_recall(model, tokenizer, [Dense()], lines=12, every=3, back=12, **SHORT)
    with pytest.raises(SinkscopeError, match="5000 facts need as many names"):
        key_value_recall(model, tokenizer, [Dense()], pairs=5000, **SHORT)
    with pytest.raises(SinkscopeError, match=r"have \{key\} in them"):
        key_value_recall(model, tokenizer, [Dense()], **SHORT | {"fact": "it is {value}"})
    with pytest.raises(SinkscopeError, match="holds no answers"):
        accuracy_table(xr.Dataset({"nll": ("policy", [1.0])}))
