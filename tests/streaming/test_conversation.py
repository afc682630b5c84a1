"""A conversation is one text of its turns, as its template renders them."""

from __future__ import annotations

import copy

import pytest
import torch

from sinkscope import Conversation, SinkCache, SinkscopeError, stream
from tests.support.talking import BOS, END, EOS, reading, talker, tokenizer, wanting, without_eos
from tests.support.zoo import build

SINKS, WINDOW = 4, 60


@pytest.mark.parametrize("eos", [END, [EOS, END], None])
def test_an_answer_ends_where_the_model_ends_it(eos):
    model, words = talker(eos), tokenizer()
    wanting(model, 52, 60, END)
    with Conversation(model, words, sinks=SINKS, window=WINDOW) as conversation:
        assert list(conversation.ask("hi")) == ["the", " cat"]
        assert (conversation.answer.tokens, conversation.answer.is_ended) == (2, True)
        assert conversation.answer.rate > 0


@pytest.mark.parametrize("system", [None, "Be a cat"])
def test_the_model_reads_the_conversation_as_its_template_renders_it(system):
    model, words = talker(), tokenizer()
    ids = reading(model)
    messages = [] if system is None else [{"role": "system", "content": system}]
    with Conversation(model, words, sinks=SINKS, window=400, system=system, max_new_tokens=2) as conversation:
        for question, wanted in (("the cat", [52, 60]), ("ran", [60, END]), ("away", [END])):
            hook = wanting(model, *wanted)
            answer = "".join(conversation.ask(question))
            hook.remove()
            messages += [{"role": "user", "content": question}]
            text = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert words.decode(ids) == text + answer
            assert conversation.cache.seen == len(ids)
            messages += [{"role": "assistant", "content": answer}]
    assert answer == "" and ids.count(BOS) == 0


@pytest.mark.slow
def test_turns_are_answered_as_in_one_text():
    model, words = talker(), tokenizer()
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=400, max_new_tokens=12) as conversation:
        spans = []
        for question in ("the cat", "ran away", "and then?"):
            list(conversation.ask(question))
            spans.append((len(ids) - conversation.answer.tokens, len(ids)))
    best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    for start, stop in spans:
        assert ids[start:stop] == best[start - 1 : stop - 1]


@pytest.mark.slow
def test_fifty_turns_pass_through_a_bounded_cache():
    model, words = talker(), tokenizer()
    with Conversation(model, words, sinks=SINKS, window=WINDOW, max_new_tokens=8) as conversation:
        sizes = set()
        for number in range(50):
            list(conversation.ask("the cat ran away " * (1 + 20 * (number == 30))))
            sizes.add(conversation.cache.nbytes)
        cache = conversation.cache
        assert len(sizes) == 1 and cache.held == cache.size == SINKS + WINDOW and cache.seen > 1000
        assert f"cache 64 / 64 tokens, 0.1 MB, {cache.seen:,} seen, " in conversation.status
        assert conversation.status in repr(conversation)


@pytest.mark.slow
def test_a_reset_conversation_starts_over():
    model, words = talker(), tokenizer()
    with Conversation(model, words, sinks=SINKS, window=WINDOW, max_new_tokens=20) as conversation:
        first = list(conversation.ask("the cat"))
        pieces = conversation.ask("ran")
        next(pieces)
        conversation.reset()
        assert (conversation.cache.seen, conversation.answer.tokens, list(pieces)) == (0, 0, [])
        assert list(conversation.ask("the cat")) == first


def test_without_a_template_turns_are_lines_of_plain_text():
    model, words = talker(), tokenizer(None)
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=WINDOW, system="Be brief", max_new_tokens=1) as conversation:
        assert not conversation.has_template
        for turn in ("the cat", "ran"):
            hook = wanting(model, 52)
            assert list(conversation.ask(turn)) == ["the"]
            hook.remove()
    assert words.decode(ids) == "<s>Be brief\nthe catthe\nranthe"


def test_the_model_is_left_as_it_was():
    model, words = build("llama"), without_eos()
    state = copy.copy(vars(model))
    with Conversation(model, words, sinks=SINKS, window=WINDOW) as conversation:
        next(conversation.ask("the cat"))
    pieces = conversation.ask("and?")
    with pytest.raises(SinkscopeError, match="closed"):
        next(pieces)
    with pytest.warns(UserWarning, match="512 positions"):
        pieces = stream(model, words, "the cat", max_new_tokens=5)
    next(pieces)
    pieces.close()
    with pytest.warns(UserWarning, match="512 positions"):
        del pieces
        stream(model, words, "never started")
    assert vars(model) == state and not model.model._forward_pre_hooks
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_a_conversation_that_was_saved_goes_on_as_if_it_had_not_stopped(tmp_path):
    words, told = tokenizer(), []
    with Conversation(talker(), words, sinks=SINKS, window=WINDOW, max_new_tokens=12) as conversation:
        for number, question in enumerate(("the cat", "ran away", "and then?", "why")):
            told.append("".join(conversation.ask(question)))
            if number == 1:
                conversation.cache.save(tmp_path / "cache.safetensors")
    model = talker()
    cache = SinkCache.load(tmp_path / "cache.safetensors", model)
    with Conversation(model, words, cache=cache, max_new_tokens=12) as conversation:
        assert ["".join(conversation.ask(question)) for question in ("and then?", "why")] == told[2:]
    assert cache.is_closed
