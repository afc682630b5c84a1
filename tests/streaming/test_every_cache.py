"""Models that cache more than keys, share keys, or read on in their own way, against what they do by themselves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sinkscope import (
    TOVA,
    Dense,
    HeavyHitters,
    PerHead,
    ScoredCache,
    SinkCache,
    SinkscopeError,
    SinkWindow,
    Window,
    attached,
    perplexity,
)
from sinkscope.experiments.audit import audit_type
from sinkscope.hf.tiny import tiny_model
from sinkscope.models.cached import find_reading
from sinkscope.models.facts import find_anatomy
from sinkscope.models.rotary import find_rotations, scales_queries
from sinkscope.scope.binding import limit_notes, native_windows
from sinkscope.streaming.readers import BlockReader
from sinkscope.streaming.reading_cache import RollingCache
from tests.support.zoo import build

IDS = torch.randint(3, 100, (2, 40), generator=torch.Generator().manual_seed(0))
SINKS = SinkWindow(2, 14)


def losses_of(model, policy, **options):
    return perplexity(model, list(IDS), [policy], progress=False, **options).nll[0, :, 1:].values


@torch.no_grad()
def plain_losses(model, **options):
    logits = model(IDS, **options).logits[:, :-1]
    return F.cross_entropy(logits.mT, IDS[:, 1:], reduction="none")


# --- what is streamed -------------------------------------------------------------------------------------------------

KINDS = {
    "qwen3_next": "recurrent states in some layers",
    "falcon_h1": "recurrent states beside the keys",
    "jamba": "recurrent states that are right one token at a time only",
    "gemma3n_text": "layers that read the keys of others",
    "hrm_text": "layers that run several times",
    "mllama": "cross-attention that does not run",
    "doge": "a mask of the model's own",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cache_gives_what_the_model_gives_one_token_at_a_time(kind):
    found = {finding.check: finding for finding in audit_type(kind)}
    for check in ("perplexity", "streaming", "cache"):
        assert found[check].verdict == "right", found[check]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1", "jamba", "gemma3n_text", "llama4_text"])
def test_losses_do_not_depend_on_the_block(kind):
    model = tiny_model(kind)
    whole = losses_of(model, SINKS, block=40)
    for block in (1, 7):
        np.testing.assert_allclose(losses_of(model, SINKS, block=block), whole, atol=5e-5)


@pytest.mark.slow
def test_a_record_says_on_which_layers_a_policy_acts():
    record = perplexity(tiny_model("qwen3_next"), list(IDS), [SINKS], progress=False)
    assert record.attrs["policy_layers"] == "1, 3"
    assert perplexity(build("gemma3"), IDS[:1], [Window(8)], progress=False).attrs["policy_layers"] == "5"


@pytest.mark.slow
def test_a_checkpoint_keeps_the_recurrent_states():
    model = tiny_model("qwen3_next")
    first = BlockReader(model, IDS, SINKS, 7)
    steps = first.steps()
    next(steps), next(steps)
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    assert any("recurrent" in name for name in state)
    rest = list(steps)
    resumed = BlockReader(model, IDS, SINKS, 7)
    resumed.resume(14, state)
    for ours, other in zip(resumed.steps(), rest, strict=True):
        assert torch.equal(ours.losses, other.losses)


# --- a sink cache with recurrent states -------------------------------------------------------------------------------


@torch.no_grad()
def read_on(model, cache, ids=IDS):
    """Logits of the tokens of `ids`, one at a time."""
    return torch.stack([model(ids[:, at : at + 1], cache=cache).logits[:, 0] for at in range(ids.shape[1])], 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1", "lfm2_moe", "jamba"])
def test_a_long_prompt_and_a_second_one_give_what_single_tokens_give(kind):
    model = tiny_model(kind)
    with SinkCache(model, 2, 14) as cache:
        expected = read_on(model, cache)
    with SinkCache(model, 2, 14) as cache, torch.no_grad():
        first = model(IDS[:, :30], cache=cache).logits[:, -1]
        second = model(IDS[:, 30:], cache=cache).logits[:, -1]
    for ours, place in ((first, 29), (second, 39)):
        torch.testing.assert_close(ours, expected[:, place], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1"])
def test_a_cache_that_was_saved_copied_repeated_or_reset_goes_on_as_before(kind, tmp_path):
    model = tiny_model(kind)
    with SinkCache(model, 2, 14) as cache:
        read_on(model, cache, IDS[:, :30])
        cache.save(tmp_path / "cache")
        twin = copy.deepcopy(cache)
        doubled = copy.deepcopy(cache)
        doubled.batch_repeat_interleave(2)
        rest = read_on(model, cache, IDS[:, 30:])
        assert torch.equal(read_on(model, twin, IDS[:, 30:]), rest)
        repeated = read_on(model, doubled, IDS[:, 30:].repeat_interleave(2, 0))
        torch.testing.assert_close(repeated[::2], rest, atol=1e-4, rtol=0)
        with SinkCache.load(tmp_path / "cache", model) as loaded:
            assert torch.equal(read_on(model, loaded, IDS[:, 30:]), rest)
        cache.reset()
        again = read_on(model, cache)
        torch.testing.assert_close(again[:, 30:], rest, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1"])
def test_beams_take_their_recurrent_states_along(kind):
    model, settings = tiny_model(kind), dict(max_new_tokens=10, num_beams=3, do_sample=False)
    expected = model.generate(IDS[:1, :8], **settings)
    with SinkCache(model, 2, 60) as cache:
        assert torch.equal(model.generate(IDS[:1, :8], cache=cache, **settings), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1", "lfm2_moe", "zamba2"])
def test_padding_on_the_left_is_hidden_from_recurrent_states(kind):
    model = tiny_model(kind)
    mask = torch.ones_like(IDS[:, :12])
    mask[0, :5] = 0
    settings = dict(max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with SinkCache(model, 2, 14) as cache:
        both = model.generate(IDS[:, :12], attention_mask=mask, cache=cache, **settings)
    with SinkCache(model, 2, 14) as cache:
        alone = model.generate(IDS[:1, 5:12], cache=cache, **settings)
    for ours, expected in zip(both.logits, alone.logits, strict=True):
        torch.testing.assert_close(ours[:1], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_padding_that_cannot_be_hidden_from_recurrent_states_is_refused():
    model = tiny_model("qwen3_next")
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    with SinkCache(model, 2, 14) as cache, torch.no_grad():
        with pytest.raises(SinkscopeError, match="hides padding from them only when it reads it in one pass"):
            model(IDS, attention_mask=mask, cache=cache)
        model(IDS, cache=cache)  # nothing was read


@pytest.mark.slow
def test_an_interrupted_pass_leaves_no_recurrent_state_that_is_used():
    model = tiny_model("qwen3_next")

    def fail(*_):
        raise KeyboardInterrupt

    with SinkCache(model, 2, 14) as cache, torch.no_grad():
        expected = model(IDS[:, :5], cache=cache).logits
        hook = model.model.layers[2].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(IDS[:, 5:6], cache=cache)
        hook.remove()
        with pytest.raises(SinkscopeError, match="interrupted while it read"):
            model(IDS[:, 5:6], cache=cache)
        cache.reset()
        torch.testing.assert_close(model(IDS[:, :5], cache=cache).logits, expected)


@pytest.mark.parametrize("begun", [0, 5])
def test_a_pass_that_is_interrupted_behind_the_last_layer_with_keys_is_noticed_by_a_scored_cache(begun):
    model = tiny_model("lfm2")

    def fail(*_):
        raise KeyboardInterrupt

    with ScoredCache(model, TOVA(6)) as cache, torch.no_grad():
        if begun:
            model(IDS[:, :begun], cache=cache)
        hook = model.model.layers[-1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(IDS[:, begun : begun + 2], cache=cache)
        hook.remove()
        with pytest.raises(SinkscopeError, match="interrupted"):
            model(IDS[:, begun : begun + 2], cache=cache)


def test_losses_of_a_text_longer_than_its_positions_are_given_by_a_model_with_a_cache_of_its_own():
    ids = torch.randint(3, 90, (1, 600), generator=torch.Generator().manual_seed(0))
    record = perplexity(tiny_model("minimax"), ids, [Dense()], progress=False)
    assert bool(record.nll[0, 0, 1:].notnull().all())


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["roberta", "camembert", "moshi", "llama4_text", "bart", "whisper", "openai-gpt", "bamba"]
)
def test_dense_losses_are_those_of_a_plain_forward_pass(kind):
    model = tiny_model(kind)
    np.testing.assert_allclose(losses_of(model, Dense(), block=7), plain_losses(model), atol=5e-5)


@pytest.mark.slow
def test_queries_that_grow_with_their_position_are_read_at_their_place_in_the_text():
    model = tiny_model("ministral3")
    model.config.rope_parameters.update(llama_4_scaling_beta=2.0, original_max_position_embeddings=8)
    assert scales_queries(model) and not scales_queries(build("llama"))
    far = torch.arange(40)[:, None] - torch.arange(40)
    banded = torch.zeros(1, 1, 40, 40).masked_fill((far < 0) | (far > 14), torch.finfo(torch.float32).min)
    expected = plain_losses(model, attention_mask=banded)
    for block in (1, 7, 40):
        np.testing.assert_allclose(losses_of(model, Window(14), block=block), expected, atol=5e-5)
    with SinkCache(model, 1, 13) as cache, torch.no_grad():
        stepped = read_on(model, cache)
        whole = F.cross_entropy(stepped[:, :-1].mT, IDS[:, 1:], reduction="none")
    np.testing.assert_allclose(losses_of(model, SinkWindow(1, 13), block=7), whole, atol=5e-5)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("roformer", "counts the positions of its tokens by itself"),
        ("ctrl", "otherwise than by a rotation"),
        ("bamba", "gives other numbers for a text that it reads in parts"),
        ("deepseek_v4", "holds more than keys, values and recurrent states in its cache"),
        ("minimax", "MiniMax uses cache of its own"),
        ("cpmant", "not causal"),
    ],
)
def test_what_cannot_be_streamed_says_its_true_reason(kind, sentence):
    model = tiny_model(kind)
    for call in (lambda: SinkCache(model, 2, 14), lambda: losses_of(model, Window(8))):
        with pytest.raises(SinkscopeError, match=sentence):
            call()


def test_a_scored_cache_is_refused_where_prompts_cannot_be_read_on():
    with pytest.raises(SinkscopeError, match="otherwise than one by one"):
        ScoredCache(tiny_model("jamba"), HeavyHitters(8, 4))


def test_a_cache_that_cannot_be_told_is_taken_no_place_of():
    with pytest.raises(SinkscopeError, match="no other can take its place"):
        RollingCache(tiny_model("axk2"), Dense())


def test_heads_of_a_model_whose_cache_cannot_be_told_get_no_policy_of_their_own():
    model = tiny_model("minimax")
    policy = PerHead({(find_anatomy(model).numbers[0], 0): SinkWindow(2, 6)}, default=Dense())
    for call in (lambda: attached(model, policy=policy), lambda: losses_of(model, policy)):
        with pytest.raises(SinkscopeError, match=r"MiniMax uses cache of its own.*read densely, but not streamed"):
            call()


@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
def test_scores_are_not_remembered_by_layers_that_share_keys():
    model = tiny_model("gemma3n_text")
    with pytest.raises(SinkscopeError, match="share keys or run several times"):
        attached(model, policy=HeavyHitters(8, 4))
    with pytest.raises(SinkscopeError, match="share keys or run several times"):
        losses_of(model, HeavyHitters(8, 4))


@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
def test_a_policy_on_layers_that_all_slide_is_not_said_to_be_dense():
    model = build("mistral_sliding")
    note = limit_notes(model, SinkWindow(4, 60), 40)[-1]
    assert "takes the place of the window of 16 tokens" in note and "dense ones" not in note
    assert np.abs(losses_of(model, SinkWindow(4, 60)) - losses_of(model, Dense())).max() > 0.01
    assert "dense ones" in limit_notes(model, SinkWindow(4, 60), 16)[-1]


def test_a_window_is_what_the_mask_says_and_not_what_the_cache_says():
    assert set(native_windows(tiny_model("moshi")).values()) == {None}


@pytest.mark.slow
def test_each_attention_layer_knows_the_rotation_of_the_keys_it_reads():
    rotations = find_rotations(tiny_model("gemma3n_text"))
    assert rotations[2] is rotations[0] and rotations[3] is rotations[1] and rotations[0] is not rotations[1]
    assert find_rotations(tiny_model("kimi_linear"))[0] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_that_reads_parts_wrongly_is_found_out_in_any_precision(dtype):
    model = tiny_model("jamba").eval().to(dtype)
    assert find_reading(model) == "tokens"
    assert find_reading(tiny_model("falcon_h1").eval().to(dtype)) == "blocks"
    text = torch.randint(3, 90, (33,), generator=torch.Generator().manual_seed(8))
    losses = [perplexity(model, [text], [Dense()], block=block)["nll"].values[0, 0, 1:] for block in (1, 5, 16)]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])
