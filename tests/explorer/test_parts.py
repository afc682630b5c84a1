"""Spans of the text as bands and as a table, and words in the place of tokens: against SpanMass, by_span and numpy."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch

import sinkscope
from sinkscope import SinkscopeError, SpanMass, Spans
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.launch import explore
from sinkscope.explorer.results import SavedMaps
from sinkscope.explorer.saving import code_of, view_record
from sinkscope.explorer.tables import table_csv
from sinkscope.explorer.text_model import TextModel
from sinkscope.explorer.writing import chat_ids, cut
from sinkscope.figures.style import share
from sinkscope.tokens import TokenTexts
from tests.explorer.fakes import LENGTH, TEXTS, WAIT, as_at_first, begun, random_maps
from tests.explorer.hostile import ESCAPED, HOSTILE, is_harmless
from tests.support.talking import talker, tokenizer

MESSAGES = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "the cat ran away. where to?"},
    {"role": "assistant", "content": "the dog came and the cat sat on the mat"},
]
UNIT = 5


@pytest.fixture(scope="module")
def chat():
    words = tokenizer()
    ids, spans = chat_ids(words, MESSAGES)
    made = Controller(TextModel(talker(), ids, words), TokenTexts(words)(ids.tolist()))
    made.parts.given = {"chat": spans, "own": Spans([HOSTILE, "rest"], [(0, 4), (4, len(ids))])}
    with begun(made):
        yield made


@pytest.fixture(autouse=True)
def as_before(request):
    if "chat" in request.fixturenames:
        as_at_first(request.getfixturevalue("chat"), UNIT)


def measured(controller, spans, policy=None):
    ids = controller.model.ids[None]
    record = sinkscope.measure(talker(), ids, [SpanMass(spans)], policy=policy)
    return record["span_mass"].values[0].reshape(-1, len(spans), len(spans))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chat", "sentences", "special", "words", "own"])
@pytest.mark.parametrize("setting", [{}, {"policy": "window", "window": 12}])
def test_the_table_of_spans_is_what_span_mass_measures_to_the_last_digit_shown(chat, kind, setting):
    chat.reset()
    chat.change(**setting)
    assert chat.wait(WAIT)
    chat.show(spans=kind)
    assert chat.map_options.spans == kind and chat.problem == ""
    spans = chat.parts.of(kind)
    policy = sinkscope.Window(12) if setting else None
    expected = measured(chat, spans, policy)[UNIT]
    table = pd.read_csv(io.StringIO(table_csv(chat, "spans")))
    np.testing.assert_allclose(table["mass"], expected.ravel(), atol=2e-6)
    if kind in ("chat", "own"):
        shown = [share(mass) for mass in chat.parts.table()["mass"]]
        close = [float(share(each).replace("×", "e")) if "e" not in share(each) else None for each in expected.ravel()]
        for text, exact in zip(shown, close, strict=True):
            assert exact is None or "−" in text or float(text) == pytest.approx(exact, rel=6e-3)
        assert all(f">{text}</td>" in chat.parts.html() for text in shown)
    chat.reset()
    assert chat.wait(WAIT)


@pytest.mark.slow
def test_the_null_is_even_attention_over_all_tokens_up_to_the_query(chat):
    chat.show(spans="chat")
    record = sinkscope.measure(talker(), chat.model.ids[None], [SpanMass(chat.parts.of("chat"))])
    null = sinkscope.span_mass(record)["null"].values
    np.testing.assert_allclose(chat.parts.table()["null"], null.ravel(), atol=1e-6)


def test_over_heads_the_table_is_the_mean_of_theirs(chat):
    chat.show(spans="chat", over="layer-mean")
    expected = measured(chat, chat.parts.of("chat"))[4:8].mean(0)
    np.testing.assert_allclose(chat.parts.table()["mass"], expected.ravel(), atol=2e-6)
    assert set(chat.parts.table()["shown"]) == {"mean of the 4 heads of layer 1 · dense"}


def test_bands_are_the_ranges_of_the_spans(chat):
    assert chat.parts.bands == {}
    chat.show(spans="chat")
    spans = chat.parts.of("chat")
    assert set(spans.names) == {"system", "user", "assistant", "template"}
    labels = [""] * len(chat.tokens)
    for number, start, stop in chat.parts.bands["ranges"]:
        labels[start:stop] = [chat.parts.bands["names"][number]] * (stop - start)
    assert labels == spans.labels(len(labels))


def test_cells_of_words_are_summed_over_keys_and_averaged_over_queries(chat):
    chat.show(cells="words", scale="linear")
    words = Spans.words(chat.model.tokenizer, chat.model.ids)
    numbers = words.numbers(len(chat.tokens))
    assert len(words) < len(chat.tokens) and chat.maps.cells == len(words)
    whole = slice(0, len(chat.tokens))
    weights = np.nan_to_num(chat.head_maps.probabilities(UNIT, whole, whole)).astype(float)
    expected = np.array([[weights[numbers == q][:, numbers == k].sum(1).mean() for k in range(len(words))]
                         for q in range(len(words))])  # fmt: skip
    cells = slice(0, len(words))
    np.testing.assert_allclose(np.nan_to_num(chat.maps.probabilities(UNIT, cells, cells)), expected, atol=1e-6)
    tile = chat.tile()  # in which a word is as wide as its tokens
    assert tile.pixels.shape == (len(chat.tokens),) * 2 and tile.query == (0, len(chat.tokens))
    spread = expected[numbers][:, numbers]
    seen = tile.pixels > 0
    np.testing.assert_allclose(((tile.pixels - 1.0) / 254)[seen], spread[seen], atol=0.51 / 254)
    row, _ = chat.row()
    np.testing.assert_allclose(row, spread[-1], atol=1e-6)
    query, key = len(chat.tokens) - 3, 7
    assert chat.numbers(query, key) == (pytest.approx(spread[query, key], abs=1e-6), None)
    table = pd.read_csv(io.StringIO(table_csv(chat, "row")))
    np.testing.assert_allclose(table["probability"], expected[-1], atol=1e-6)
    assert chat.caption == "layer 1, head 1, words · dense" and "summed over the tokens" in chat.comparison.said


@pytest.mark.slow
def test_words_are_zoomed_compared_and_hidden_as_tokens_are(chat):
    chat.change(policy="window", window=12)
    assert chat.wait(WAIT)
    chat.show(cells="words", compare="difference", scale="linear", region=(10, 30, 5, 25))
    tile = chat.tile()
    assert tile.query[0] <= 10 and tile.query[1] >= 30 and tile.pixels.shape[0] == tile.query[1] - tile.query[0]
    (_, scale, values, queries, keys), *_ = chat.comparison.values()
    assert scale == "difference" and values.shape == (queries.stop - queries.start, keys.stop - keys.start)
    chat.show(compare="nothing", region=None, hiding="renormalised", hidden=1)
    assert 0 < chat.tile().left < 1
    weights = chat.maps.probabilities(UNIT, slice(0, chat.maps.cells), slice(0, chat.maps.cells))
    row, _ = chat.row()
    sizes = np.diff(chat.maps.starts, append=chat.maps.length)
    expected = (weights[-1, 1:] / np.nansum(weights[-1, 1:])).repeat(sizes[1:])
    np.testing.assert_allclose(np.nan_to_num(row[sizes[0] :]), np.nan_to_num(expected), atol=1e-6)
    chat.reset()
    assert chat.wait(WAIT)


@pytest.mark.slow
def test_state_record_and_code_hold_the_spans_and_the_words(chat, monkeypatch):
    chat.show(spans="chat", cells="words")
    again = Controller(TextModel(talker(), chat.model.ids, chat.model.tokenizer), chat.tokens)
    with pytest.raises(SinkscopeError, match="the state cannot be shown: no such spans of this text are known"):
        again.restore(chat.state)
    again.parts.given = dict(chat.parts.given)
    again.restore(chat.state)
    assert again.wait(WAIT) and again.map_options == chat.map_options
    again.close()
    monkeypatch.setattr(sinkscope, "load", lambda: (talker(), None))
    fresh: dict = {}
    exec(code_of(chat), fresh)
    np.testing.assert_allclose(fresh["mass"].ravel(), chat.parts.table()["mass"], atol=2e-6)
    record = view_record(chat)
    assert record.sizes["map_query"] == len(chat.tokens)  # of tokens; what was shown stands beside it
    assert record["shown_map_0"].shape == (len(chat.tokens),) * 2
    assert SavedMaps(record).name(0) == "layer 1, head 1"


def test_a_hostile_name_of_a_span_stays_text(chat):
    chat.show(spans="own")
    assert ESCAPED in chat.parts.html() and HOSTILE not in chat.parts.html() and is_harmless(chat.parts.html())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"spans": "images"}, "no token of the text stands for an image"),
        ({"cells": "words", "scale": "logit"}, "logits of several heads or tokens"),
    ],
)
def test_what_a_text_has_not_is_a_sentence_and_what_is_shown_stays(chat, asked, reason):
    before = chat.map_options
    chat.show(**asked)
    assert reason in chat.problem and chat.map_options == before


def test_without_a_tokenizer_a_model_or_what_was_given_a_sentence_says_so(controller):
    for asked, reason in (
        ({"spans": "words"}, "are found with a tokenizer"),
        ({"cells": "words"}, "are found with a tokenizer"),
        ({"spans": "chat"}, "give explore"),
        ({"spans": "own"}, "give explore"),
    ):
        controller.show(**asked)
        assert reason in controller.problem and controller.map_options.spans == "none"
    saved = Controller(None, TEXTS, saved=random_maps(LENGTH))
    saved.show(spans="words")
    assert "a saved record is opened without" in saved.problem
    with pytest.raises(SinkscopeError, match="no spans are chosen"):
        table_csv(controller, "spans")
    saved.parts.given = {"own": Spans(["a"], [(0, 99)])}
    saved.show(spans="own")
    assert "reaches to token 98" in saved.problem
    part = Controller(None, TEXTS, saved=random_maps(8, first=4))
    part.parts.given = {"own": Spans(["a"], [(0, 9)])}
    part.show(spans="own")
    assert "does not hold every token" in part.parts.html()


def test_many_spans_have_no_table_on_the_screen_but_one_to_save():
    saved = Controller(None, [""] * 30, saved=random_maps(30))
    saved.parts.given = {"own": Spans([f"s{n}" for n in range(30)], [(n, n + 1) for n in range(30)])}
    saved.show(spans="own")
    assert "30 spans are too many" in saved.parts.html()
    np.testing.assert_allclose(saved.parts.table()["mass"], np.nan_to_num(saved.saved.weights).ravel(), atol=1e-7)


@pytest.mark.slow
def test_explore_takes_a_chat_and_spans_and_shortens_the_turns_with_the_text():
    words = tokenizer()
    app = explore(talker(), words, MESSAGES, length=20)
    assert app.wait()
    app.controller.show(spans="chat")
    assert "user" in app.controller.parts.of("chat").names and "<table" in app.spans.value
    app.close()
    ids, spans = chat_ids(words, MESSAGES)
    assert ids.tolist() == words.apply_chat_template(MESSAGES, return_dict=False)
    assert cut(spans, 20).labels(20) == spans.labels(len(ids))[:20] and cut(Spans(["a"], [(5, 9)]), 4) is None
    for wrong, reason in ((Spans(["a"], [(0, 99)]), "reaches to token 98"), (["a"], "are none; give")):
        with pytest.raises(SinkscopeError, match=reason):
            explore(talker(), words, torch.arange(10) + 5, spans=wrong)
    for chat, reason in (
        ([], "the chat is empty"),
        ([{"role": "user"}], "."),
        (MESSAGES, "no chat template"),
        ([{}], "is no message"),
    ):
        with pytest.raises(SinkscopeError, match=reason):
            explore(talker(), tokenizer(None) if chat is MESSAGES else words, chat)


def test_a_record_of_generated_text_opens_with_its_turns():
    record = sinkscope.generate_record(
        talker(),
        tokenizer(),
        MESSAGES[:2],
        6,
        probes=[sinkscope.Maps(resolution=None), SpanMass(Spans(["a"], [(0, 9)]))],
    )
    app = explore(record)
    app.controller.show(spans="chat")
    assert {"user", "answer"} <= set(app.controller.parts.bands["names"]) and "answer" in app.spans.value
    app.close()
