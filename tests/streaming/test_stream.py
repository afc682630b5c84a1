"""Streaming gives what `generate()` gives, in whole characters."""

from __future__ import annotations

import pytest
import torch

from sinkscope import SinkCache, stream
from sinkscope.streaming.conversation import pieces_of
from tests.streaming.cached import greedy, run
from tests.support.talking import EOS, decoded, reading, talker, tokenizer, wanting, without_eos
from tests.support.zoo import build

SINKS, WINDOW = 4, 60


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(temperature=0.7), dict(temperature=1.5, top_k=20, top_p=0.8)])
def test_draws_are_those_of_generate_with_the_same_seed(options):
    model, words = build("llama"), without_eos()
    ids = words("the cat", return_tensors="pt").input_ids
    with SinkCache(model, SINKS, WINDOW) as cache, torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = model.generate(
            ids, attention_mask=torch.ones_like(ids), cache=cache, max_new_tokens=50, do_sample=True,
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
        assert "".join(pieces_of(words, ids)).rstrip("\ufffd") == decoded(words, ids).rstrip("\ufffd")


def test_a_stream_ends_at_any_of_several_end_tokens():
    model, words = talker([EOS, 60]), tokenizer(None)
    for end in (EOS, 60):
        hook = wanting(model, 52, end)
        with SinkCache(model, SINKS, WINDOW) as cache:
            assert list(stream(model, words, "the", cache=cache)) == ["the"]
        hook.remove()


def test_gradients_stay_on_between_pieces():
    model, words = build("llama"), without_eos()
    with SinkCache(model, SINKS, WINDOW) as cache:
        for _ in stream(model, words, "the cat", cache=cache, max_new_tokens=3):
            assert torch.is_grad_enabled()
        assert run(model, torch.tensor([[60]]), cache).shape[1] == 1
