"""Attention under a policy against its definition, one query at a time in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import sinkscope
import sinkscope.attention.attend as attend_module
from sinkscope import (
    Dense,
    Recompute,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    Window,
    attached,
    attend,
)  # fmt: skip
from sinkscope.attention.masks import BandMask
from sinkscope.scope.interface import EVICTIONS
from tests.core.test_attend import plain, states
from tests.support import naive_eviction, naive_slots
from tests.support.zoo import build, inputs

POLICIES = [SinkWindow(4, 20), SinkWindow(1, 70), SinkWindow(3, 25, "original"), Window(30), Window(66)]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), past=st.integers(0, 40), window=st.integers(1, 50), triangles=st.booleans())
def test_a_band_equals_plain_softmax_over_the_window(rows, past, window, triangles):
    query, key, value = states(rows, rows + past)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend_module, "WIDE_BAND", 1 if triangles else 1 << 20)
        output, lse = attend(query, key, value, BandMask(past, window), scale=0.3)
    own = torch.arange(rows)[:, None] + past
    visible = (torch.arange(rows + past) <= own) & (torch.arange(rows + past) >= own - window)
    expected, expected_lse = plain(query, key, value, visible, 0.3)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("name", naive_eviction.FAMILIES)
def test_logits_and_probes_under_a_policy_equal_the_definition(name, policy):
    model, ids = build(name), inputs(name, tokens=90)["input_ids"]
    expected = naive_eviction.run(model, ids, *policy.kept, policy.coordinates["positions"])
    record = naive_slots.check(model, ids, expected, policy=policy)
    assert record.attrs["policy"] == repr(policy)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "bloom"])
def test_with_nothing_evicted_every_policy_is_dense(name):
    model, ids = build(name), inputs(name)["input_ids"]
    with torch.no_grad(), attached(model, policy=Dense()):
        dense = model(ids).logits
    if name == "bloom":  # outside the interface only the dense policy goes
        torch.testing.assert_close(dense, model(ids).logits)
        return
    for policy in (Window(39), SinkWindow(4, 35), SinkWindow(1, 38, "original")):
        with torch.no_grad(), attached(model, policy=policy):
            assert torch.equal(model(ids).logits, dense)


def test_a_policy_acts_on_the_full_layers_of_a_model_that_also_slides():
    model = build("gemma3")
    acting = [bool(evictions) for evictions in attached(model, policy=Window(20)).evictions]
    assert acting == [False] * 5 + [True]
    every = attached(build("mistral_sliding"), policy=Window(20)).evictions
    assert [eviction.window for (eviction,) in every] == [20, 20]


def test_positions_in_the_cache_and_in_the_text_differ():
    model, ids = build("llama"), inputs("llama", tokens=90)["input_ids"]
    with torch.no_grad():
        with attached(model, policy=SinkWindow(4, 20)):
            cache = model(ids).logits
        with attached(model, policy=SinkWindow(4, 20, positions="original")):
            original = model(ids).logits
    assert torch.equal(cache[:, :25], original[:, :25]) and not torch.allclose(
        cache[:, 40:], original[:, 40:], atol=0.1
    )


def test_the_model_is_left_as_it_was():
    model, given_ids = build("llama"), inputs("llama")
    with torch.no_grad():
        before = model(**given_ids).logits
        with pytest.raises(ZeroDivisionError), attached(model, policy=Window(4)):
            _ = 1 / 0
        assert torch.equal(model(**given_ids).logits, before)
    assert not EVICTIONS


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    [
        ("gpt2", Window(8), "learned absolute"),
        ("opt", SinkWindow(1, 8), "learned absolute"),
        ("bloom", Window(8), "does not use transformers' attention interface"),
        ("modernbert", Window(8), "no keys in a cache|not causal"),
        ("llama", Recompute(8), "sinkscope.perplexity"),
        ("llama", 8, "is not a policy"),
    ],
)
def test_what_a_policy_cannot_act_on_is_refused(name, policy, message):
    with pytest.raises(SinkscopeError, match=message):
        attached(build(name), policy=policy)


def test_padding_and_filled_caches_with_probes_are_refused():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad(), pytest.raises(SinkscopeError, match="without padding"), attached(model, policy=Window(8)):
        model(ids, attention_mask=mask)
    cache = DynamicCache()
    with (
        torch.no_grad(),
        pytest.raises(SinkscopeError, match="one forward pass"),
        attached(model, policy=Window(8), probes=[SinkMass()]),
    ):
        model(ids[:, :30], cache=cache)
        model(ids[:, 30:], cache=cache)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(0), lambda: Window(2.5), lambda: Recompute(0), lambda: SinkWindow(-1, 4),
        lambda: SinkWindow(4, 0), lambda: SinkWindow(True, 4), lambda: SinkWindow(4, 4, positions="text"),
    ],
)  # fmt: skip
def test_impossible_sizes_are_refused(make):
    with pytest.raises(SinkscopeError, match="give"):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("bias", [1e39, -1e39, 1e300, 3e38, 10**400, True])
def test_a_bias_beside_which_no_score_is_finite_is_refused(bias):
    for make in (lambda: sinkscope.SinkWindow(2, 8, bias=bias), lambda: sinkscope.Dose(bias, keys=(0,))):
        with pytest.raises(sinkscope.SinkscopeError, match=r"is no dose; give a number of at most 1e\+37"):
            make()
    ids = inputs("llama", batch=1)["input_ids"]
    for largest in (1e37, -1e37):
        for values in ("kept", "added", "zeroed"):
            policy = sinkscope.SinkWindow(2, 8, bias=largest, values=values)
            losses = sinkscope.perplexity(build("llama"), ids, [policy], progress=False).nll.values[0, 0, 1:]
            assert bool((losses < 100).all())
