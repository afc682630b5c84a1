"""What a release of transformers could break: capture, policies, perplexity, generation and the explorer, on three
families. `make test-versions` runs this against the oldest, the pinned and the newest release."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import sinkscope
from sinkscope import ScoredCache, SinkCache, attached, capture
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.text_model import TextModel
from sinkscope.hf import NEWEST, OLDEST
from sinkscope.hf.caches import argument_name, with_cache
from tests.support import naive_scored, naive_slots
from tests.support.zoo import build, inputs

pytestmark = pytest.mark.versions
FAMILIES = ["llama", "gemma3", "falcon_rotary"]  # plain; with sliding windows; outside the attention interface


def greedy(model, ids, cache, count):
    """By hand, one token at a time."""
    written = ids
    with torch.no_grad():
        for at in range(ids.shape[1] + count - 1):
            logits = model(written[:, at : at + 1], **with_cache(model, cache)).logits
            if at >= ids.shape[1] - 1:
                written = torch.cat([written, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return written


def test_the_release_is_one_that_is_supported():
    release = tuple(map(int, transformers.__version__.split(".")[:2]))
    assert release >= tuple(map(int, OLDEST.split(".")))
    if release <= tuple(map(int, NEWEST.split("."))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sinkscope.hf.check_version()


@pytest.mark.parametrize("name", FAMILIES)
def test_capture_is_eager_attention(name):
    model, ids = build(name, "eager"), inputs(name)["input_ids"]
    with torch.no_grad():
        plain = model(ids, output_attentions=True)
    model = build(name)
    with torch.no_grad(), capture(model, [sinkscope.Maps(resolution=None)]) as scope:
        logits = model(ids).logits
    torch.testing.assert_close(logits, plain.logits, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(scope.record.attention_map, torch.stack(plain.attentions, 1), atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_perplexity_is_the_loss_of_the_model(name):
    model, ids = build(name), inputs(name, tokens=50)["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of deprecated names
        record = sinkscope.perplexity(model, ids, [sinkscope.Dense(), sinkscope.Window(16)], block=13)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    np.testing.assert_allclose(record.nll.sel(policy="dense")[:, 1:], losses, atol=1e-4)
    np.testing.assert_allclose(record.nll[1, :, 1:17], losses[:, :16], atol=1e-4)
    assert np.abs(record.nll[1, :, 30:].values - losses[:, 29:].numpy()).max() > 1e-3


def test_policies_and_normalisers_are_their_definitions():
    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]

    def kept(at):
        return [key for key in range(at + 1) if key < 2 or at - key <= 8]

    expected = naive_slots.run(model, ids, kept=kept, in_cache=True)
    naive_slots.check(model, ids, expected, policy=sinkscope.SinkWindow(2, 8))
    naive_slots.check(
        model, ids, naive_slots.run(model, ids, weights=naive_slots.softmax1), normaliser=sinkscope.Softmax1()
    )
    logits, maps, _ = naive_scored.run(model, ids, "h2o", 10, 4)
    naive_slots.check(model, ids, (logits, maps), policy=sinkscope.HeavyHitters(10, 4))


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_with_a_sink_cache_is_that_of_single_tokens(name):
    model, ids = build(name), inputs(name, 1, 30)["input_ids"]
    with SinkCache(model, 2, 14) as cache:
        written = model.generate(ids, **{argument_name(model.forward): cache}, max_new_tokens=12, do_sample=False)
        assert cache.held == 16
    with SinkCache(model, 2, 14) as cache:
        expected = greedy(model, ids, cache, 12)
    assert torch.equal(written, expected)


def test_generation_under_a_scored_policy():
    model, ids = build("llama"), inputs("llama", 1, 20)["input_ids"]
    with ScoredCache(model, sinkscope.TOVA(10)) as cache:
        written = model.generate(ids, **{argument_name(model.forward): cache}, max_new_tokens=8, do_sample=False)
    logits, _, _ = naive_scored.run(model, written[:, :-1], "tova", 10, 0)
    assert torch.equal(logits[0, 19:].argmax(-1), written[0, 20:])


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_explorer_reads_what_a_scope_reads(name):
    model, ids = build(name), inputs(name, 1, 40)["input_ids"][0]
    controller = Controller(TextModel(model, ids), [""] * 40)
    try:
        controller.begin()
        controller.change(policy="window", window=12)
        assert controller.wait(120) and controller.problem == ""
        losses = controller.now.reading.losses
    finally:
        controller.close()
    with torch.no_grad(), attached(model, policy=sinkscope.Window(12)):
        logits = model(ids[None]).logits[0, :-1]
    np.testing.assert_allclose(losses[1:], F.cross_entropy(logits, ids[1:], reduction="none"), atol=1e-4)
