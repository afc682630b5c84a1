"""Scored policies and their cache, against naive loops in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import TOVA, ScoredCache, SinkscopeError, attached, perplexity
from sinkscope.hf.tiny import tiny_model
from sinkscope.models.facts import find_anatomy
from tests.core.own import FAMILIES, losses_of
from tests.support import naive_scored, naive_slots
from tests.support.zoo import build, inputs

# --- scored policies --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("rule", ["h2o", "tova"])
def test_scored_policies_give_what_the_naive_loop_gives(name, rule, chunk):
    model, ids = build(name), inputs(name, tokens=40)["input_ids"]
    recent = 4 if rule == "h2o" else 0
    policy = sinkscope.HeavyHitters(10, 4, chunk=chunk) if rule == "h2o" else sinkscope.TOVA(10, chunk=chunk)
    logits, maps, _ = naive_scored.run(model, ids, rule, 10, recent, chunk)
    naive_slots.check(model, ids, (logits, maps), policy=policy)
    for block in (40, 7, 1):
        record = perplexity(model, ids, [policy], block=block)
        np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(logits, ids), atol=1e-4)


@pytest.mark.parametrize("normaliser", [None, sinkscope.Softmax1(), sinkscope.Sigmoid(), sinkscope.Sparsemax()])
@pytest.mark.parametrize("policy", [sinkscope.TOVA(6, chunk=3), sinkscope.HeavyHitters(6, 2)], ids=["tova", "h2o"])
def test_gradients_are_the_slopes_of_the_loss_with_the_choice_of_keys_held(policy, normaliser):
    model, ids = build("llama", dtype=torch.float64), inputs("llama", 1, 16)["input_ids"]
    weights = model.model.layers[0].self_attn.k_proj.weight
    step = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-5

    def loss():
        with attached(model, policy=policy, normaliser=normaliser):
            return torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])

    loss().backward()
    along = float((weights.grad * step).sum())
    with torch.no_grad():
        weights += step
        ahead = float(loss())
        weights -= 2 * step
        behind = float(loss())
    assert along == pytest.approx((ahead - behind) / 2, rel=5e-2)  # norms run in float32, so the slope is coarse


@pytest.mark.parametrize("rule", ["h2o", "tova"])
def test_generation_with_a_scored_cache_follows_the_naive_loop(rule):
    model, ids = build("llama"), inputs("llama", 1, 20)["input_ids"]
    policy = sinkscope.HeavyHitters(10, 4) if rule == "h2o" else sinkscope.TOVA(10)
    with sinkscope.ScoredCache(model, policy) as cache:
        name = sinkscope.hf.caches.argument_name(model.forward)
        written = model.generate(ids, **{name: cache}, max_new_tokens=15, do_sample=False)
        places = [layer.memory.places[0].tolist() for layer in cache.kept_layers]
        assert cache.nbytes == sum(2 * 10 * layer.keys.shape[1] * layer.keys.shape[3] * 4 for layer in cache.layers)
    logits, _, ends = naive_scored.run(model, written[:, :-1], rule, 10, 4 if rule == "h2o" else 0)
    assert torch.equal(logits[0, 19:].argmax(-1), written[0, 20:])
    assert places == [each[0] for each in ends]
    plain = model.generate(ids, max_new_tokens=3, do_sample=False)  # the model is as it was
    assert plain.shape == (1, 23)


def test_a_scored_policy_of_ones_own_keeps_what_it_scores_highest():
    @dataclass(frozen=True)
    class Oldest(sinkscope.ScoredPolicy):
        def score(self, held):
            return -held.places.float()

    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    with torch.no_grad(), attached(model, policy=Oldest(8, 3), probes=[sinkscope.Maps(resolution=None)]) as scope:
        model(ids)
    maps = scope.record.attention_map.values
    seen = (maps > 0).any((0, 1, 2))  # a weight can underflow in one head
    at = np.arange(30)
    expected = (at[None] <= at[:, None]) & ((at[None] < 5) | (at[:, None] - at[None] <= 3) | (at[:, None] < 9))
    assert (seen == expected).all()


@pytest.mark.slow
def test_scored_policies_resume_from_a_checkpoint_to_the_bit(tmp_path, monkeypatch):
    model, ids = build("llama"), inputs("llama", tokens=60)["input_ids"]
    policies = [sinkscope.HeavyHitters(10, 4, chunk=3), sinkscope.PerHead({(0, 1): sinkscope.TOVA(8)})]
    whole = perplexity(model, ids, policies, block=7)
    monkeypatch.setattr("sinkscope.streaming.checkpoint.SECONDS", 0.0)
    steps = 0

    def interrupted(*args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = sinkscope.streaming.readers.scored
    for policy in policies:
        steps = 0
        monkeypatch.setattr("sinkscope.streaming.readers.scored", interrupted)
        with pytest.raises(KeyboardInterrupt):
            perplexity(model, ids, [policy], block=7, checkpoint=tmp_path)
        monkeypatch.setattr("sinkscope.streaming.readers.scored", original)
    again = perplexity(model, ids, policies, block=7, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.nll, whole.nll)


def run_with(cache, model, ids):
    with torch.no_grad():
        return model(ids, **{sinkscope.hf.caches.argument_name(model.forward): cache}).logits


@pytest.mark.parametrize("read_before", [False, True])
def test_an_interrupted_scored_cache_is_refused_until_it_is_reset(read_before):
    model, ids = build("llama"), inputs("llama", 1, 20)["input_ids"]
    with sinkscope.ScoredCache(model, sinkscope.TOVA(6)) as cache:
        if read_before:
            run_with(cache, model, ids[:, :8])

        def interrupt(*_):
            raise KeyboardInterrupt

        hook = find_anatomy(model).parts[1].attention.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_with(cache, model, ids[:, 8:])
        hook.remove()
        with pytest.raises(SinkscopeError, match="interrupted"):
            run_with(cache, model, ids[:, 8:])
        cache.reset()
        again = run_with(cache, model, ids)
    expected, *_ = naive_scored.run(model, ids, "tova", 6, 0)
    torch.testing.assert_close(again.double(), expected, atol=1e-4, rtol=1e-4)


def test_a_scored_cache_goes_with_its_own_policy_alone():
    model, ids = build("llama"), inputs("llama", 1, 20)["input_ids"]
    with sinkscope.ScoredCache(model, sinkscope.TOVA(6)) as cache:
        run_with(cache, model, ids[:, :10])
    with pytest.raises(SinkscopeError, match="no longer on the model"):
        run_with(cache, model, ids[:, 10:])
    other = attached(model, policy=sinkscope.HeavyHitters(6, 2))
    with other, pytest.raises(SinkscopeError, match=r"one of TOVA\(budget=6.* carries HeavyHitters"):
        run_with(cache, model, ids[:, 10:])


@pytest.mark.slow
def test_scored_policies_read_latent_attention_and_keep_its_whole_cache():
    model, ids = build("deepseek_v3"), inputs("deepseek_v3", 1, 20)["input_ids"]
    policy = sinkscope.TOVA(6)
    with torch.no_grad(), attached(model, policy=policy):
        logits = model(ids).logits
    for block in (20, 6, 1):
        nll = perplexity(model, ids, [policy], block=block).nll[0, :, 1:]
        np.testing.assert_allclose(nll, losses_of(logits, ids), atol=1e-4)
    with pytest.raises(SinkscopeError, match="caches other states than the keys of its heads"):
        sinkscope.ScoredCache(model, policy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sinkscope.HeavyHitters(4, 8), "cannot hold the last 8"),
        (lambda: sinkscope.TOVA(0), "give a whole budget >= 1"),
        (lambda: sinkscope.TOVA(4, chunk=0), "give a whole chunk >= 1"),
        (lambda: sinkscope.ScoredCache(build("llama"), sinkscope.Window(4)), "policy with scores"),
        (lambda: sinkscope.ScoredCache(build("bloom"), sinkscope.TOVA(4)), "attention interface"),
    ],
)
def test_scored_policies_that_cannot_be_kept_are_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda held: held.previous[:, :, :2], "expected scores"),
        (lambda held: held.previous * torch.nan, "gave NaN"),
        (lambda held: 1.0, "a float"),
    ],
)
def test_scores_that_choose_nothing_are_refused(score, message):
    class Own(sinkscope.ScoredPolicy):
        def score(self, held):
            return score(held)

    with pytest.raises(SinkscopeError, match=message):
        perplexity(build("llama"), inputs("llama", tokens=12)["input_ids"], [Own(4)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jetmoe", "kimi_linear"])
def test_blocks_do_not_matter_where_the_cache_holds_other_states_than_keys(kind):
    model, ids = tiny_model(kind), torch.randint(3, 120, (1, 24), generator=torch.Generator().manual_seed(0))
    whole, parts = (perplexity(model, ids, [TOVA(6)], block=block, progress=False).nll for block in (24, 5))
    np.testing.assert_allclose(whole, parts, atol=1e-4)
    with pytest.raises(SinkscopeError, match="caches other states than the keys of its heads"):
        ScoredCache(model, TOVA(6))


def test_a_layer_that_attends_twice_is_refused():
    with pytest.raises(SinkscopeError, match="attends several times in one forward pass"):
        perplexity(tiny_model("diffllama"), torch.arange(3, 27)[None], [TOVA(6)], progress=False)
