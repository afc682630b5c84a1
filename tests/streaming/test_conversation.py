"""Streaming gives what `generate()` gives; a conversation is one text of its turns, whatever ends an answer."""

from __future__ import annotations

import copy

import pytest
import torch

from sinkscope import Conversation, SinkCache, SinkscopeError, stream
from sinkscope.streaming.talk.text_pieces import TextPieces
from tests.streaming.cached import greedy, run
from tests.streaming.talking import BOS, END, EOS, interrupted, reading, talker, tokenizer, wanting
from tests.zoo import build

SINKS, WINDOW = 4, 60


def decoded(words, ids):
    return words.decode(ids, skip_special_tokens=True)


def without_eos():
    """A tokenizer that ends no text, so that a model without an end token writes to the limit."""
    words = tokenizer(None)
    words.eos_token = None
    return words


@pytest.mark.parametrize("family", ["llama", "gptj", "bloom", "gemma3"])
@pytest.mark.parametrize("repeats", [1, 30])
def test_streamed_text_is_what_generate_gives(family, repeats):
    model, words = build(family), without_eos()
    prompt = "the cat sat on the mat. " * repeats
    ids = words(prompt, return_tensors="pt").input_ids
    with SinkCache(model, SINKS, WINDOW) as cache:
        expected = greedy(model, ids, cache, 60)[0, ids.shape[1] :]
    with SinkCache(model, SINKS, WINDOW) as cache:
        pieces = list(stream(model, words, prompt, cache=cache, max_new_tokens=60))
        assert cache.seen == ids.shape[1] + 60
    text = decoded(words, expected)
    assert "".join(pieces).rstrip("\ufffd") == text.rstrip("\ufffd") and len(pieces) > 5


@pytest.mark.parametrize("options", [dict(temperature=0.7), dict(temperature=1.5, top_k=20, top_p=0.8)])
def test_draws_are_those_of_generate_with_the_same_seed(options):
    model, words = build("llama"), without_eos()
    ids = words("the cat", return_tensors="pt").input_ids
    with SinkCache(model, SINKS, WINDOW) as cache, torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=50, do_sample=True,
            **{"top_k": 0} | options,
        )[0, ids.shape[1] :]  # fmt: skip
    texts = []
    for seed in (3, 3, 4):
        with SinkCache(model, SINKS, WINDOW) as cache:
            texts.append("".join(stream(model, words, "the cat", cache=cache, max_new_tokens=50, seed=seed, **options)))
    assert texts[0] == texts[1] == decoded(words, drawn).rstrip("\ufffd") != texts[2]


def test_a_stream_goes_on_from_a_cache():
    model, words = build("llama"), without_eos()
    ids, spans = reading(model), []
    with SinkCache(model, SINKS, WINDOW) as cache:
        for prompt in ("the cat", " sat on", " the mat"):
            new = words(prompt, add_special_tokens=not ids).input_ids
            start = len(ids) + len(new)
            list(stream(model, words, prompt, cache=cache, max_new_tokens=5))
            assert ids[start - len(new) : start] == new and cache.seen == len(ids) == start + 5
            spans.append((start, start + 5))
    best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    for start, stop in spans:
        assert ids[start:stop] == best[start - 1 : stop - 1]


def test_characters_come_whole():
    model, words = talker(), tokenizer(None)
    ids = words("a🙂ü語 the", add_special_tokens=False).input_ids
    assert len(ids) > len("a🙂ü語") + 1  # they are in pieces
    for limit, expected in ((len(ids), ["a", "🙂", "ü", "語", " the"]), (3, ["a"]), (4, ["a"])):
        hook = wanting(model, *ids)
        with SinkCache(model, SINKS, WINDOW) as cache:
            assert list(stream(model, words, "the", cache=cache, max_new_tokens=limit)) == expected
            assert cache.seen == 2 + limit
        hook.remove()


def test_pieces_of_bytes_that_are_no_character_join_to_the_decoded_text():
    words = tokenizer()
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, len(words), (40,), generator=generator).tolist()
        text = TextPieces(words)
        assert "".join(map(text.add, ids)).rstrip("\ufffd") == decoded(words, ids).rstrip("\ufffd")


@pytest.mark.parametrize("eos", [END, [EOS, END], None])
def test_an_answer_ends_where_the_model_ends_it(eos):
    model, words = talker(eos), tokenizer()
    wanting(model, 52, 60, END)
    with Conversation(model, words, sinks=SINKS, window=WINDOW) as conversation:
        assert list(conversation.ask("hi")) == ["the", " cat"]
        assert (conversation.answer.tokens, conversation.answer.is_ended) == (2, True)
        assert conversation.answer.rate > 0


def test_a_stream_ends_at_any_of_several_end_tokens():
    model, words = talker([EOS, 60]), tokenizer(None)
    for end in (EOS, 60):
        hook = wanting(model, 52, end)
        with SinkCache(model, SINKS, WINDOW) as cache:
            assert list(stream(model, words, "the", cache=cache)) == ["the"]
        hook.remove()


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


def follows(conversation, model, words, ids, before):
    """Whether the next turn comes behind `before`, the text that was shown, and the end of an answer."""
    del ids[:]
    hook = wanting(model, 52, END)
    assert list(conversation.ask("and?")) == ["the"]
    hook.remove()
    behind = "<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nthe"
    return words.decode(ids) == behind and conversation.cache.seen == before + len(ids)


@pytest.mark.parametrize("after", [1, 2, 6])
@pytest.mark.parametrize("window", [WINDOW, 12])
def test_an_interrupt_keeps_what_was_shown(after, window):
    model, words = talker(), tokenizer()
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=window, max_new_tokens=30) as conversation:
        list(conversation.ask("the cat"))
        for _ in range(3):
            read, shown = len(ids), []
            hook = interrupted(model, after * (1 if window == WINDOW else 2))
            with pytest.raises(KeyboardInterrupt):
                for piece in conversation.ask("the"):
                    shown.append(piece)
            hook.remove()
            written = ids[len(ids) - conversation.answer.tokens :] if conversation.answer.tokens else []
            assert conversation.cache.seen >= len(ids) > 0 and not conversation.answer.is_ended
            assert "".join(shown).rstrip("\ufffd") == decoded(words, written).rstrip("\ufffd")
            if len(ids) > read:
                assert follows(conversation, model, words, ids, conversation.cache.seen)


def test_leaving_an_answer_keeps_what_was_shown():
    model, words = talker(), tokenizer()
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=WINDOW) as conversation:
        hook = wanting(model, 52, 60, 52, 60)
        pieces = conversation.ask("the cat")
        assert [next(pieces), next(pieces)] == ["the", " cat"]
        hook.remove()
        assert words.decode(ids).endswith("<|im_start|>assistant\nthe cat") and conversation.cache.seen == len(ids)
        assert follows(conversation, model, words, ids, conversation.cache.seen)
        assert list(pieces) == []  # the answer that was left is over
        other = conversation.ask("never started")
        assert follows(conversation, model, words, ids, conversation.cache.seen)
        assert list(other) == []


def test_an_interrupted_question_was_not_asked():
    model, words = talker(), tokenizer()
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=WINDOW, max_new_tokens=3) as conversation:
        for turn in range(2):
            seen = conversation.cache.seen
            hook = interrupted(model, 0)
            with pytest.raises(KeyboardInterrupt):
                list(conversation.ask("lost"))
            hook.remove()
            assert conversation.cache.seen == seen
            list(conversation.ask("the cat"))
            assert words.decode(ids).count("<|im_start|>user") == turn + 1 and "lost" not in words.decode(ids)


def test_a_question_interrupted_half_way_is_read_to_its_end():
    model, words = talker(), tokenizer()
    with Conversation(model, words, sinks=SINKS, window=WINDOW, max_new_tokens=3) as conversation:
        list(conversation.ask("hi"))
        question = "the cat sat on the mat. " * 20
        turn, question_ids = conversation._turns.later("hi"), conversation._turns.later(question)
        before = conversation.cache.seen
        hook = interrupted(model, 1)  # behind the first block
        with pytest.raises(KeyboardInterrupt):
            list(conversation.ask(question))
        hook.remove()
        asked = question_ids if conversation.cache.seen > before else []
        list(conversation.ask("hi"))
        assert conversation.cache.seen == before + len(asked) + len(turn) + 3


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


def test_gradients_stay_on_between_pieces():
    model, words = build("llama"), without_eos()
    with SinkCache(model, SINKS, WINDOW) as cache:
        for _ in stream(model, words, "the cat", cache=cache, max_new_tokens=3):
            assert torch.is_grad_enabled()
        assert run(model, torch.tensor([[60]]), cache).shape[1] == 1


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
