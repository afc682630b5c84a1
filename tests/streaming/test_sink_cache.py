"""The sink cache against a slow one that reads one token at a time, on every family that can be streamed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from sinkscope import SinkCache, SinkscopeError
from tests.streaming.cached import run
from tests.streaming.one_token import by_formula, one_token_run
from tests.support.zoo import DECODERS, build, inputs

LEARNED = ("gpt2", "gpt_bigcode", "gpt_neo", "opt")
FAMILIES = [name for name in DECODERS if name not in (*LEARNED, "llama4")]
SINKS, WINDOW, NEW = 4, 28, 100
CLOSE = 1e-4  # logits are of the order of 5, of 25 in some families; float32 sums in another order


def generated(model, ids, cache, new, **options):
    """What `generate()` returns, and its logits [batch, token, vocabulary]."""
    mask = options.pop("attention_mask", torch.ones_like(ids))
    output = model.generate(
        ids,
        attention_mask=mask,
        cache=cache,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    return output.sequences, torch.stack(output.logits, 1)


def check_greedy(model, ids, new, expected=None, room=None):
    """Generation gives the logits and the ids expected, by default those of the one-token loop."""
    logits, tokens = one_token_run(model, ids, SINKS, WINDOW, new) if expected is None else expected
    with SinkCache(model, SINKS, WINDOW) as cache:
        cache._store.room = room or cache._store.room
        mine, scores = generated(model, ids, cache, new)
    assert torch.equal(mine, tokens)
    assert (scores - logits[:, ids.shape[1] - 1 :]).abs().max() < CLOSE


def check_pieces(model, ids, pieces, sinks, window):
    """Forward passes over pieces of the text return logits of the one-token loop."""
    logits, _ = one_token_run(model, ids, sinks, window)
    at = 0
    with SinkCache(model, sinks, window) as cache:
        for count in pieces:
            some = run(model, ids[:, at : at + count], cache)
            at += count
            assert (some - logits[:, at - some.shape[1] : at]).abs().max() < CLOSE
            assert cache.seen == at and cache.held == min(at, sinks + window)


def altered(family, **settings):
    """A model of a family with settings of its own."""
    kind, options = DECODERS[family]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(options | settings))).eval()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_the_one_token_loop(family):
    check_greedy(build(family), inputs(family, 2, 10)["input_ids"], NEW)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_longer_than_the_cache_are_read_exactly(family):
    check_greedy(build(family), inputs(family, 2, 75)["input_ids"], 10)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_generation_equals_the_rotary_formula(family):
    model = build(family)
    ids = inputs(family, 1, 10)["input_ids"]
    exact = by_formula(model, ids, SINKS, WINDOW, NEW)
    slow, _ = one_token_run(model, ids, SINKS, WINDOW, NEW)
    assert (slow - exact[0]).abs().max() < CLOSE
    check_greedy(model, ids, NEW, expected=exact)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "implementation"),
    [
        ("gpt_oss", "eager"),  # it has no sdpa
        *itertools.product(["llama", "gemma3", "mistral_sliding", "falcon_rotary"], ["eager", "sdpa"]),
    ],
)
def test_any_attention_implementation_gives_the_same(family, implementation):
    check_greedy(build(family, implementation), inputs(family, 2, 50)["input_ids"], 40)


@pytest.mark.slow
@given(sinks=st.integers(0, 7), window=st.integers(1, 20), pieces=st.lists(st.integers(1, 23), min_size=1, max_size=5))
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gemma2", "gptj", "bloom"])
def test_pieces_of_any_size_give_the_logits_of_single_tokens(family, sinks, window, pieces):
    check_pieces(build(family), inputs(family, 1, sum(pieces))["input_ids"], pieces, sinks, window)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [(65, 1, 1), (3, 40, 20, 1), (50, 70, 2)])
@pytest.mark.parametrize("family", ["gemma3", "gpt_oss", "cohere2"])
def test_native_windows_take_in_more_than_they_hold(family, pieces):
    check_pieces(build(family), inputs(family, 2, sum(pieces))["input_ids"], pieces, SINKS, 60)


def test_a_forward_pass_without_eviction_returns_all_its_tokens():
    model = build("llama")
    ids = inputs("llama", 2, 33)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache, torch.no_grad():
        mine = model(ids, cache=cache).logits
    assert mine.shape[1] == 33
    assert (mine - model(ids).logits).abs().max() < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "bloom", "mpt", "gemma3"])
@pytest.mark.parametrize("prompt", [10, 45])
def test_beams_score_what_the_one_token_loop_scores(family, prompt):
    model = build(family)
    ids = inputs(family, 2, prompt)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            cache=cache,
            max_new_tokens=50,
            num_beams=3,
            num_return_sequences=2,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    logits, _ = one_token_run(model, found.sequences, SINKS, WINDOW)
    chosen = logits[:, prompt - 1 : -1].log_softmax(-1).gather(-1, found.sequences[:, prompt:, None])
    assert (chosen.sum((1, 2)) / 50 - found.sequences_scores).abs().max() < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_sampled_sequences_have_the_logits_of_the_one_token_loop(family):
    model = build(family)
    ids = inputs(family, 2, 10)["input_ids"]
    torch.manual_seed(0)
    with SinkCache(model, SINKS, WINDOW) as cache:
        sampled, scores = generated(model, ids, cache, 60, do_sample=True, num_return_sequences=3)
    logits, _ = one_token_run(model, sampled, SINKS, WINDOW)
    assert sampled.shape == (6, 70) and len(sampled.unique(dim=0)) > 2
    assert (scores - logits[:, 9:-1]).abs().max() < CLOSE


@pytest.mark.slow
def test_three_thousand_tokens_leave_the_memory_as_it_was():
    model = build("llama")
    ids = inputs("llama", 1, 10)["input_ids"]
    with SinkCache(model, 4, 252) as cache:
        generated(model, ids, cache, 1)
        places = [states.data_ptr() for arena in cache._store.arenas for states in arena.held.values()]
        size = cache.nbytes
        sequence = model.generate(
            ids, attention_mask=torch.ones_like(ids), cache=(cache.reset(), cache)[1], max_new_tokens=3000
        )
        assert cache.nbytes == size > 0
        assert places == [states.data_ptr() for arena in cache._store.arenas for states in arena.held.values()]
        assert (cache.seen, cache.held) == (3009, 256)
    logits, tokens = one_token_run(model, sequence[:, :600], 4, 252)
    assert torch.equal(logits[:, 9:-1].argmax(-1), tokens[:, 10:])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_positions_stay_within_a_table(family):
    check_greedy(altered(family, n_positions=64), inputs(family, 1, 150)["input_ids"], 100)


@pytest.mark.slow
def test_a_table_may_be_shorter_than_the_cache():
    long, short = altered("gptj", n_positions=512), altered("gptj", n_positions=24)
    short.load_state_dict(long.state_dict(), strict=False)
    ids = inputs("gptj", 1, 90)["input_ids"]
    expected = one_token_run(long, ids, SINKS, WINDOW, 60)
    with pytest.warns(UserWarning, match="24 positions"):
        check_greedy(short, ids, 60, expected)


@pytest.mark.slow
def test_positions_stay_below_where_frequencies_change():
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 40}
    model = altered("llama", max_position_embeddings=40, rope_parameters=scaling)
    check_greedy(model, inputs("llama", 1, 90)["input_ids"], 100)


@pytest.mark.slow
def test_longrope_models_keep_their_cache():
    width = 8
    scaling = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 40,
        "short_factor": [1.0] * width, "long_factor": [2.0] * width,
    }  # fmt: skip
    model = altered("phi3", original_max_position_embeddings=40, rope_parameters=scaling)
    check_greedy(model, inputs("phi3", 1, 10)["input_ids"], 80)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "cohere2", "bloom"])
def test_a_million_tokens_later_the_logits_are_the_same(family):
    """Positions are counted from a base that moves along: only their distance to it is ever formed."""
    model = build(family)
    ids = inputs(family, 1, 120)["input_ids"]
    logits = []
    for skipped in (0, 1_000_000):
        with SinkCache(model, SINKS, WINDOW) as cache, torch.no_grad():
            model(ids[:, :60], cache=cache, use_cache=True)
            store = cache._store
            store.seen, store.base = store.seen + skipped, store.base + skipped
            for arena in store.arenas:
                arena.shift, arena.collected = arena.shift + skipped, arena.collected + skipped
            logits.append(
                torch.cat([model(ids[:, [t]], cache=cache, use_cache=True).logits for t in range(60, 120)], 1)
            )
    assert torch.equal(*logits)


@pytest.mark.slow
@pytest.mark.parametrize("room", [1, 5, 40])
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "glm4", "gemma3"])
def test_moving_the_base_changes_nothing(family, room):
    check_greedy(build(family), inputs(family, 2, 10)["input_ids"], 80, room=room)


@pytest.mark.slow
def test_bfloat16_keys_do_not_drift():
    """Against float32 on the same rounded weights, late tokens are no worse than early ones, or than the slow loop."""
    model, wide = build("llama", dtype=torch.bfloat16), build("llama", dtype=torch.bfloat16).float()
    wide.base_model.rotary_emb.inv_freq = model.base_model.rotary_emb.inv_freq.float()
    ids = inputs("llama", 1, 900)["input_ids"]
    exact, _ = one_token_run(wide, ids, SINKS, WINDOW)
    with SinkCache(model, SINKS, WINDOW) as cache, torch.no_grad():
        cache._store.room = 100
        steps = [model(ids[:, [t]], cache=cache).logits for t in range(900)]
    off = (torch.cat(steps, 1).float() - exact).abs().mean((0, 2))
    assert off[-300:].mean() < 1.2 * off[50:350].mean()
    assert off.mean() < 0.05  # eight bits of logits of the order of 5


@pytest.mark.parametrize("family", [*LEARNED, "llama4"])
def test_families_that_cannot_be_streamed_are_refused(family):
    with pytest.raises(SinkscopeError, match=r"absolute positions|attends in chunks"):
        SinkCache(build(family))
