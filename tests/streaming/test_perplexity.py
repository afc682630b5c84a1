"""Losses under each policy against their definition."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope import (
    Dense,
    Recompute,
    SinkscopeError,
    SinkWindow,
    Window,
    attached,
    open_record,
    perplexity,
    save_record,
)
from sinkscope.streaming.readers import BlockReader
from tests.core.test_rotary import SCALINGS, scaled_model
from tests.support import naive_eviction
from tests.support.zoo import build, inputs

INTERFACE = (
    "llama", "qwen3", "gemma", "gemma2", "gemma3", "phi", "gpt_neox", "stablelm", "olmo3", "cohere2", "smollm3",
    "mixtral", "gpt_oss", "deepseek_v3", "glm4",
)  # fmt: skip
POLICIES = [Dense(), Window(30), SinkWindow(4, 26), SinkWindow(2, 50), SinkWindow(3, 27, "original")]


def losses_of(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Loss of every token but the first, [sequence, token - 1]."""
    losses = F.cross_entropy(logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).numpy()


def nll(record, policy) -> np.ndarray:
    return record.nll.sel(policy=policy.name).values[:, 1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", naive_eviction.FAMILIES)
def test_losses_equal_the_definition_in_float64(name):
    model, ids = build(name), inputs(name, tokens=110)["input_ids"]
    record = perplexity(model, ids, POLICIES[1:], block=32)
    for policy in POLICIES[1:]:
        logits, _ = naive_eviction.run(model, ids, *policy.kept, policy.coordinates["positions"])
        np.testing.assert_allclose(nll(record, policy), losses_of(logits, ids), atol=1e-4)
    assert record.nll.isnull().sum("token").values.tolist() == [[1, 1]] * 4  # the first token of each text only


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_frequencies_stream_exactly(kind):
    model, ids, policy = scaled_model(kind), inputs("llama", tokens=120)["input_ids"], SinkWindow(4, 40)
    logits, _ = naive_eviction.run(model, ids, 4, 40, "cache")
    np.testing.assert_allclose(
        nll(perplexity(model, ids, [policy], block=50), policy), losses_of(logits, ids), atol=1e-4
    )


def test_a_rotation_that_changes_with_length_is_not_led_beyond_it():
    model, ids = scaled_model("longrope"), inputs("llama", 1, 700)["input_ids"]
    with pytest.raises(SinkscopeError, match="changes its rotary frequencies beyond 512 tokens"):
        perplexity(model, ids, [Dense()])
    bounded = perplexity(model, ids, [SinkWindow(4, 400)], block=1000).nll
    np.testing.assert_allclose(bounded, perplexity(model, ids, [SinkWindow(4, 400)], block=64).nll, atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERFACE)
def test_any_block_gives_the_losses_of_one_token_at_a_time(name):
    model, ids = build(name), inputs(name, tokens=80)["input_ids"]
    alone = perplexity(model, ids, POLICIES, block=1)
    for block in (7, 33, 200):
        np.testing.assert_allclose(perplexity(model, ids, POLICIES, block=block).nll, alone.nll, atol=3e-4)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    block=st.integers(1, 70), sinks=st.integers(0, 6), window=st.integers(1, 60), tokens=st.integers(2, 100),
    positions=st.sampled_from(["cache", "original"]),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
def test_blocks_equal_one_forward_over_the_whole_text(block, sinks, window, tokens, positions):
    model, ids = build("llama"), inputs("llama", tokens=tokens)["input_ids"]
    policy = SinkWindow(sinks, window, positions)
    with torch.no_grad(), attached(model, policy=policy):
        whole = losses_of(model(ids).logits, ids)
    np.testing.assert_allclose(nll(perplexity(model, ids, [policy], block=block), policy), whole, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gptj", "mpt", "falcon_rotary"])
def test_dense_and_recomputed_losses_equal_plain_forwards(name):
    model, ids = build(name), inputs(name, tokens=60)["input_ids"]
    record = perplexity(model, ids, [Dense(), Recompute(20)], block=16, samples=None)
    with torch.no_grad():
        np.testing.assert_allclose(nll(record, Dense()), losses_of(model(ids).logits, ids), atol=1e-4)
        for token in (1, 19, 20, 21, 40, 59):
            window = ids[:, max(0, token - 20) : token]
            expected = F.cross_entropy(model(window).logits[:, -1], ids[:, token], reduction="none")
            np.testing.assert_allclose(record.nll.sel(policy="recompute 20", token=token), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_with_nothing_evicted_all_policies_give_the_dense_losses(name):
    model, ids = build(name), inputs(name, tokens=40)["input_ids"]
    record = perplexity(model, ids, [Dense(), Window(39), SinkWindow(4, 36), Recompute(39)], block=40)
    for policy in record.policy.values:
        np.testing.assert_allclose(record.nll.sel(policy=policy), record.nll.sel(policy="dense"), atol=1e-5)


def test_a_sample_of_recomputed_tokens_is_seeded_and_part_of_the_whole():
    model, ids = build("llama"), inputs("llama", tokens=100)["input_ids"]
    whole = perplexity(model, ids, [Recompute(20)], samples=None)
    sample = perplexity(model, ids, [Recompute(20)], samples=15, seed=3)
    assert sample.nll.notnull().sum("token").values.tolist() == [[20 + 15, 20 + 15]]
    scored = sample.nll.notnull()
    np.testing.assert_allclose(sample.nll.where(scored), whole.nll.where(scored), atol=1e-5)
    again, other = (perplexity(model, ids, [Recompute(20)], samples=15, seed=seed).nll for seed in (3, 4))
    np.testing.assert_array_equal(again, sample.nll)
    assert (other.notnull() != sample.nll.notnull()).any()
    assert sample.attrs["samples"] == 15 and sample.scored.values.tolist() == [70]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
def test_texts_of_a_batch_start_with_empty_caches():
    model = build("llama")
    texts = [inputs("llama", 1, length, seed)["input_ids"][0] for seed, length in enumerate((70, 70, 45))]
    together = perplexity(model, texts, POLICIES)
    for line, text in enumerate(texts):
        alone = perplexity(model, text, POLICIES)
        np.testing.assert_allclose(together.nll[:, line, : len(text)], alone.nll[:, 0], atol=1e-5)
    assert together.nll[:, 2, 45:].isnull().all() and together.length.values.tolist() == [70, 70, 45]


def test_a_million_tokens_into_the_text_nothing_has_changed():
    model, ids = build("llama"), inputs("llama", tokens=160)["input_ids"]

    def second_half(shift):
        first = BlockReader(model, ids[:, :81], SinkWindow(4, 26), 40)
        list(first.steps())
        reader = BlockReader(model, ids, SinkWindow(4, 26), 40)
        reader.resume(80, first.state() | {"base": first.state()["base"] + shift})
        reader.cache.load_tensors(reader.cache.tensors(), 80 + shift, ids.device)
        return torch.cat([step.losses for step in reader.steps()], 1)

    torch.testing.assert_close(second_half(1_000_000), second_half(0), atol=2e-5, rtol=0)


@pytest.mark.slow
def test_bfloat16_keys_do_not_drift_however_often_they_are_moved():
    exact, ids = build("llama"), inputs("llama", tokens=200)["input_ids"]
    half = copy.deepcopy(exact)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    policy = SinkWindow(4, 60)
    reference = perplexity(exact, ids, [policy]).nll
    errors = [float(abs(perplexity(half, ids, [policy], block=block).nll - reference).mean()) for block in (200, 1)]
    assert errors[1] < 1.3 * errors[0]


# --- limits and bad input ---------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_refused_in_one_sentence():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    for arguments, options, message in (
        ((ids, []), {}, "no policy was given"),
        ((ids, [Window(8), Window(8)]), {}, "two of the policies are named"),
        ((ids, ["window"]), {}, "is not a policy"),
        ((ids[:, :1], [Window(8)]), {}, "nothing to predict"),
        ((torch.full((1, 9), 999), [Window(4)]), {}, "outside the vocabulary"),
        ((ids, [Window(8)]), {"block": 0}, "block=0 is not a whole number"),
        ((ids, [Recompute(8)]), {"samples": 0}, "samples=0 is not a whole number"),
    ):
        with pytest.raises(SinkscopeError, match=message):
            perplexity(model, *arguments, **options)
    with pytest.raises(SinkscopeError, match="training mode"):
        perplexity(build("llama").train(), ids, [Dense()])


@pytest.mark.parametrize("name", ["gpt2", "opt", "gptj", "mpt"])
def test_dense_reading_ends_with_the_table_of_positions(name):
    model = build(name)
    long = inputs(name, 1, 520)["input_ids"]
    with pytest.raises(SinkscopeError, match="a table of 512 positions"):
        perplexity(model, long, [Dense()])
    assert np.isfinite(nll(perplexity(model, long[:, :512], [Dense()]), Dense())).all()


def test_positions_of_the_text_need_the_attention_interface():
    with pytest.raises(SinkscopeError, match="by their place"):
        perplexity(build("falcon_rotary"), inputs("falcon_rotary")["input_ids"], [SinkWindow(4, 8, "original")])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_positions_are_not_streamed(name):
    with pytest.raises(SinkscopeError, match="learned absolute positions"):
        perplexity(build(name), inputs(name)["input_ids"], [Window(8)])


def test_a_cache_longer_than_the_model_knows_or_the_text_is_said():
    model, ids = build("llama"), inputs("llama", 1, 600)["input_ids"]
    with pytest.warns(UserWarning, match="longer than the 512 positions"):
        perplexity(model, ids, [Window(550)])
    with pytest.warns(UserWarning, match="nothing is evicted"):
        perplexity(model, ids[:, :40], [Window(40)])


@pytest.mark.slow
def test_the_record_can_be_saved_and_says_how_it_was_made(tmp_path):
    model, ids = build("gemma2"), inputs("gemma2", tokens=60)["input_ids"]
    record = perplexity(model, ids, [Dense(), SinkWindow(4, 20)], text="random tokens")
    again = open_record(save_record(record, tmp_path / "record.nc"))
    np.testing.assert_array_equal(again.nll, record.nll)
    assert again.policy.values.tolist() == ["dense", "sinks 4+20"]
    assert again.attrs["native_sliding_layers"] == "0" and again.attrs["text"] == "random tokens"
    assert again.cache_size.values.tolist() == [-1, 24] and again.attrs["kind"] == "perplexity"
