"""What cannot be streamed or talked with is refused in one sentence, and the model left alone."""

from __future__ import annotations

import pytest

from sinkscope import Conversation, SinkscopeError, stream
from tests.support.talking import tokenizer
from tests.support.zoo import build

WINDOW = 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(temperature=-1.0), "temperature=-1.0"),
        (dict(top_k=0), "top_k=0"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(top_p=1.5), "top_p=1.5"),
        (dict(seed=-1), "seed=-1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    model, words = build("llama"), tokenizer()
    with pytest.raises(SinkscopeError, match=message):
        stream(model, words, "the cat", **options)
    with pytest.raises(SinkscopeError, match=message):
        Conversation(model, words, window=WINDOW, **options)
    assert not model.model._forward_pre_hooks


def test_what_cannot_be_streamed_is_refused_at_once():
    model, words = build("llama"), tokenizer()
    with pytest.raises(SinkscopeError, match="no tokens"):
        stream(model, words, "")
    for call in (lambda: stream(model, None, "the"), lambda: Conversation(model, None, window=WINDOW)):
        with pytest.raises(SinkscopeError, match="needs a tokenizer, got None"):
            call()
    with pytest.raises(SinkscopeError, match="no language head"):
        stream(model.model, words, "the")
    with pytest.raises(SinkscopeError, match="expected a loaded model"):
        stream("some/model", words, "the")
    with pytest.raises(SinkscopeError, match="learned absolute positions"):
        Conversation(build("gpt2"), words, window=WINDOW)
    with pytest.raises(SinkscopeError, match="give a SinkCache"):
        stream(model, words, "the", cache=object())
    with pytest.raises(SinkscopeError, match="training mode"):
        stream(model.train(), words, "the")
    with Conversation(model.eval(), words, window=WINDOW) as conversation:
        for blank in ("", " \n"):
            with pytest.raises(SinkscopeError, match="has no text"):
                conversation.ask(blank)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", "leaves out earlier answers"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused_at_once(template, message):
    model = build("llama")
    with pytest.raises(SinkscopeError, match=message):
        Conversation(model, tokenizer(template), system="Be brief", window=WINDOW)
    assert not model.model._forward_pre_hooks


def test_a_tokenizer_of_another_model_is_refused():
    model = build("llama")
    words = tokenizer()
    words.add_tokens([f"new{number}" for number in range(40)])
    with Conversation(model, words, window=WINDOW) as conversation:
        with pytest.raises(SinkscopeError, match="outside the vocabulary"):
            list(conversation.ask("new39"))
        assert conversation.cache.seen == 0
