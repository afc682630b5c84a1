"""The same numbers on a GPU: capture, policies, normalisers, perplexity and caches against the CPU, on tiny models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import ScoredCache, SinkCache, attached, capture
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.text_model import TextModel
from sinkscope.hf.caches import argument_name
from tests.support.zoo import build, inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
FAMILIES = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "falcon_rotary", "gpt2"]
POLICIES = [
    sinkscope.Window(9),
    sinkscope.SinkWindow(2, 9),
    sinkscope.SinkWindow(2, 9, values="mean", heads=[0, 2]),
    sinkscope.Evict([0, 3]),
    sinkscope.Dose(-1.0, [0], layers=[1]),
    sinkscope.EveryNth(7, 5),
    sinkscope.HeavyHitters(10, 4),
    sinkscope.TOVA(10, chunk=3),
    sinkscope.PerHead({(0, 1): sinkscope.Dense(), (1, 0): sinkscope.TOVA(8)}, default=sinkscope.SinkWindow(2, 9)),
]
NORMALISERS = [
    sinkscope.Softmax1(), sinkscope.LearnedSink(0.5, heads=[1]), sinkscope.ClippedSoftmax(), sinkscope.Sigmoid(),
    sinkscope.ReLU(), sinkscope.Sparsemax(heads=[0, 2]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def full_precision():
    """float32 products are float32 products."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_both(name):
    model = build(name)
    return model, copy.deepcopy(model).cuda()


def check(here, there, atol=2e-4):
    for variable in here.data_vars:
        np.testing.assert_allclose(there[variable], here[variable], atol=atol, rtol=1e-3, err_msg=variable)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_probe_measures_the_same(name):
    model, there = on_both(name)
    ids = inputs(name)["input_ids"]
    records = []
    for each, tokens in ((model, ids), (there, ids.cuda())):
        with torch.no_grad(), capture(each, sinkscope.ALL) as scope:
            each(tokens)
        records.append(scope.record.drop_vars("activation_dimension", errors="ignore"))
    check(*records)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_policies_give_the_same_losses_and_maps(policy):
    model, there = on_both("llama")
    ids = inputs("llama", tokens=50)["input_ids"]
    here, far = (sinkscope.perplexity(each, ids, [policy], block=17) for each in (model, there))
    np.testing.assert_allclose(far.nll, here.nll, atol=5e-4)
    records = []
    for each, tokens in ((model, ids), (there, ids.cuda())):
        with torch.no_grad(), attached(each, policy=policy, probes=[sinkscope.Maps(resolution=None)]) as scope:
            each(tokens)
        records.append(scope.record)
    check(*records)


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=repr)
def test_normalisers_give_the_same_losses(normaliser):
    model, there = on_both("llama")
    ids = inputs("llama", tokens=50)["input_ids"]
    policies = [sinkscope.Dense(), sinkscope.SinkWindow(2, 9)]
    here, far = (sinkscope.perplexity(each, ids, policies, normaliser=normaliser) for each in (model, there))
    np.testing.assert_allclose(far.nll, here.nll, atol=5e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon_rotary"])
def test_a_sink_cache_writes_the_same(name):
    model, there = on_both(name)
    ids, written = inputs(name, 1, 30)["input_ids"], []
    for each, tokens in ((model, ids), (there, ids.cuda())):
        with SinkCache(each, 2, 14) as cache:
            given = {argument_name(each.forward): cache}
            written.append(each.generate(tokens, **given, max_new_tokens=20, do_sample=False).cpu())
    assert torch.equal(*written)


def test_a_scored_cache_writes_the_same():
    model, there = on_both("llama")
    ids, written = inputs("llama", 1, 30)["input_ids"], []
    for each, tokens in ((model, ids), (there, ids.cuda())):
        with ScoredCache(each, sinkscope.HeavyHitters(12, 6)) as cache:
            given = {argument_name(each.forward): cache}
            written.append(each.generate(tokens, **given, max_new_tokens=20, do_sample=False).cpu())
    assert torch.equal(*written)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(dtype):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    half = copy.deepcopy(model).to("cuda", dtype)
    exact = copy.deepcopy(half).float()  # the same rounded weights
    masses = []
    for each in (half, exact):
        with torch.no_grad(), capture(each, [sinkscope.SinkMass()]) as scope:
            each(ids.cuda())
        masses.append(scope.record.sink_mass.values)
    np.testing.assert_allclose(masses[0], masses[1], atol=0.05 if dtype == torch.bfloat16 else 0.01)


def test_a_gradient_is_that_of_the_cpu():
    model, there = on_both("llama")
    ids, gradients = inputs("llama", 1, 20)["input_ids"], []
    for each, tokens in ((model, ids), (there, ids.cuda())):
        with attached(each, normaliser=sinkscope.Softmax1()):
            each(tokens, labels=tokens).loss.backward()
        gradients.append(each.model.layers[0].self_attn.q_proj.weight.grad.cpu())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_losses_in_blocks_of_half_precision_are_near_those_of_float32():
    model, ids = build("llama"), inputs("llama", 1, 60)["input_ids"]
    half = copy.deepcopy(model).to("cuda", torch.bfloat16)
    exact = copy.deepcopy(half).float()
    policies = [sinkscope.Dense(), sinkscope.SinkWindow(2, 9)]
    near, losses = (sinkscope.perplexity(each, ids, policies, block=17).nll.values for each in (half, exact))
    np.testing.assert_allclose(near, losses, atol=0.1)  # nats


def test_the_explorer_shows_the_same_losses():
    model, there = on_both("llama")
    ids, losses = inputs("llama", 1, 40)["input_ids"][0], []
    for each in (model, there):
        controller = Controller(TextModel(each, ids), [""] * len(ids))
        try:
            controller.change(kind="sinks", sinks=2, window=9)
            controller.wait()
            assert controller.problem == ""
            losses.append((controller.loss.dense, controller.loss.changed))  # perplexities
        finally:
            controller.close()
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
