"""Another text in the place of the one shown: typed, or written by the model under the policy."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import TOVA, SinkscopeError, Window, generate_record
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.launch import explore
from sinkscope.explorer.writing import GROWTH, MOST, messages_of, typed, written
from sinkscope.tokens import encode
from tests.explorer.hostile import HOSTILE, is_harmless, pages
from tests.explorer.references import never, text
from tests.support.talking import TEMPLATE, talker, tokenizer
from tests.support.zoo import build

CAT = "the cat sat on the mat and then the dog came and the cat ran away"
CHAT = "system: be kind\nuser: the cat ran away. where to?"
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat ran away. where to?"}]


@pytest.fixture
def app():
    made = explore(talker(), tokenizer(), CAT, length=20)
    assert made.wait()
    yield made
    made.close()


def ids_of(app):
    return app.controller.model.ids.tolist()


@pytest.mark.slow
def test_a_text_that_is_typed_takes_the_place_of_the_other_under_the_same_setting_and_head(app):
    app.controller.change(policy="window", window=6)
    app.controller.choose(5)
    app.controller.show(over="layer-mean", region=(0, 5, 0, 5))
    assert app.wait()
    before, old = app.controller, app.pictures.map
    app.read("the dog ran away and the cat sat", 8)
    assert app.wait()
    expected = encode(tokenizer(), "the dog ran away and the cat sat", True)
    assert ids_of(app) == expected[:8] and app.pictures.map.tokens == app.controller.tokens
    assert "these are its first 8 tokens" in app.problem.value
    assert (app.controller.name, app.controller.unit, app.controller.map_options.over) == ("window 6", 5, "layer-mean")
    assert app.controller.map_options.region is None and app.controls.fields["window"].max == 8
    losses = sinkscope.perplexity(talker(), torch.tensor([expected[:8]]), policies=[Window(6)], progress=False)
    np.testing.assert_allclose(app.controller.now.reading.losses[1:], losses.nll.values[0, 0, 1:], atol=2e-5)
    assert before.is_closed and before.model is None and old.comm is None
    assert app.writing.words.value and app.pictures.map.comm is not None


@pytest.mark.slow
def test_the_buttons_read_and_write_what_was_typed(app):
    bar = app.writing
    bar.words.value, bar.kind.value, bar.length.value = CHAT, True, 60
    bar.read.click()
    assert app.wait()
    assert ids_of(app) == tokenizer().apply_chat_template(MESSAGES, return_dict=False)[:60]
    app.controller.show(spans="chat")
    assert {"system", "user"} <= set(app.controller.parts.bands["names"])
    assert app.writing is not bar and app.writing.words.value == CHAT and app.writing.kind.value is True
    app.writing.count.value = 3
    app.writing.generate.click()
    assert app.wait() and "3 tokens were written" in app.writing.status.value
    assert "answer" in app.controller.parts.of("chat").names
    app.writing.words.value = ""
    app.writing.read.click()
    assert "the chat is empty" in app.writing.status.value and "role='alert'" in app.writing.status.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "policy"),
    [({}, None), ({"policy": "window", "window": 8}, Window(8)), ({"policy": "tova", "window": 12}, TOVA(12))],
)
@pytest.mark.parametrize("prompt", [CAT, MESSAGES])
def test_the_tokens_are_those_of_generate_record_and_the_spans_too(app, asked, policy, prompt):
    app.controller.change(**asked)
    app.generate(prompt, 11)
    assert app.wait()
    record = generate_record(talker(), tokenizer(), prompt, 11, policy=policy)
    assert ids_of(app) == record.token_id.values[0].tolist() and app.controller.problem == ""
    labels = app.controller.parts.of("chat").labels(len(ids_of(app)))
    assert labels == record["span"].values[0].tolist()


@pytest.mark.slow
def test_rows_are_shown_while_the_text_grows(app, monkeypatch):
    seen = []
    grow = type(app.pictures).grow
    monkeypatch.setattr(
        type(app.pictures), "grow", lambda self, maps, tokens, said: (grow(self, maps, tokens, said), seen.append(
            (maps.length, len(tokens), self.map.frame["length"], self.map.frame["rows"])))
    )  # fmt: skip
    app.generate(CAT, 2 * GROWTH + 1)
    assert app.wait()
    prompt = len(encode(tokenizer(), CAT, True))
    assert seen == [(prompt + n,) * 4 for n in (GROWTH, 2 * GROWTH)]
    assert app.pictures.map.frame["length"] == prompt + 2 * GROWTH + 1


@pytest.mark.slow
def test_writing_that_is_stopped_leaves_the_text_as_it_was_and_no_thread(app):
    before, controller = ids_of(app), app.controller
    gate, going = threading.Event(), threading.Event()
    hook = talker_hook(controller, gate, going)
    app.generate(CAT, 40)
    assert going.wait(30)
    app.rewriting.stop()
    gate.set()
    assert app.wait() and ids_of(app) == before and app.controller is controller
    assert app.writing.stop.disabled and not app.writing.generate.disabled and "stopped" in app.writing.status.value
    hook.remove()
    app.generate(CAT, 2)
    assert app.wait() and len(ids_of(app)) == len(encode(tokenizer(), CAT, True)) + 2
    app.close()
    assert not [each for each in threading.enumerate() if "sinkscope" in each.name]


def talker_hook(controller, gate, going):
    """The model that is copied for writing waits at its second forward pass."""
    passes = []

    def wait(*_):
        passes.append(None)
        if len(passes) == 2:
            going.set()
            gate.wait(30)

    return controller.model.original.register_forward_pre_hook(wait)


def test_a_chat_is_typed_by_roles_at_the_start_of_lines():
    assert messages_of(CHAT) == MESSAGES
    assert messages_of("hello: there\nassistant: hi\nmore") == [
        {"role": "user", "content": "hello: there"}, {"role": "assistant", "content": "hi\nmore"}
    ]  # fmt: skip
    assert messages_of(" \n") == messages_of("user: ") == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("", None, False), "the text is empty"),
        ((" \n", None, False), "the text is empty"),
        (("", None, True), "the chat is empty"),
        ((CAT, 1, False), "length is 1; give 2 to 4,096"),
        ((CAT, MOST + 1, False), "give 2 to 4,096"),
    ],
)
def test_a_text_that_cannot_be_shown_is_one_sentence(given, reason):
    with pytest.raises(SinkscopeError, match=reason) as refused:
        typed(tokenizer(), *given)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_text_of_one_token_a_missing_template_or_tokenizer_are_one_sentence(app):
    alone = tokenizer()
    alone.backend_tokenizer.post_processor = None
    shouts = tokenizer(TEMPLATE.replace("m['content']", "m['content'] | upper"))
    for words, given, reason in (
        (alone, ("a", None, False), "one token"),
        (None, (CAT, None, False), "there is none; give explore"),
        (tokenizer(None), (CHAT, None, True), "no chat template"),
        (shouts, (CHAT, None, True), "changes what is said"),
    ):
        with pytest.raises(SinkscopeError, match=reason):
            typed(words, *given)
    for words, prompt, reason in (
        (tokenizer(None), MESSAGES, "no chat template"),
        (tokenizer(), [], "the chat is empty"),
        (tokenizer(), "", "has no tokens|one token"),
        (tokenizer(), CAT * 400, "give a shorter prompt, or fewer new tokens"),
    ):
        with pytest.raises(SinkscopeError, match=reason):
            list(written(talker(), words, prompt, 5, Configuration(), never))
    with pytest.raises(SinkscopeError, match="512 positions, and a prompt of 510 tokens with 5 new ones needs 515"):
        list(written(build("gpt2"), tokenizer(), "a" * 509, 5, Configuration(), never))
    before = ids_of(app)
    app.generate([], 4)
    assert app.wait() and "the chat is empty" in app.writing.status.value and ids_of(app) == before


@pytest.mark.slow
def test_a_model_that_ends_at_once_says_so_and_the_text_stays(app):
    before = ids_of(app)
    app.controller.model.original.generation_config.eos_token_id = list(range(128))
    app.generate(CAT, 4)
    assert app.wait() and "ends its answer" in app.writing.status.value and ids_of(app) == before


@pytest.mark.slow
def test_without_a_model_or_a_tokenizer_nothing_can_be_typed():
    alone = explore(build("llama"), text=text())
    assert alone.wait() and alone.writing.read.disabled and alone.writing.generate.disabled
    with pytest.raises(SinkscopeError, match="there is none; give explore"):
        alone.read(CAT)
    alone.close()
    with pytest.raises(SinkscopeError, match="is closed"):
        alone.read(CAT)
    with pytest.raises(SinkscopeError, match="max_new_tokens"):
        alone.generate(CAT, 0)


@pytest.mark.slow
def test_hostile_words_stay_text(app):
    app.generate(HOSTILE, GROWTH)
    assert app.wait()
    app.read(HOSTILE + " the cat")
    assert app.wait() and all(is_harmless(page) for page in pages(app))
