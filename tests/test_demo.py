"""The main job on real input: SmolLM2-135M reading the King James Bible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope
from tests.support.eager import distance_profile, entropy

TOKENS = 256
pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def demo():
    model, tokenizer = sinkscope.load()
    return model, sinkscope.read_tokens(tokenizer, limit=TOKENS)


@pytest.fixture(scope="module")
def maps(demo):
    """Maps [layer, head, query, key] of the float64 twin, by its own eager attention."""
    ids = demo[1]
    twin, _ = sinkscope.load(attn_implementation="eager")
    twin = twin.double()
    with torch.no_grad():
        return np.concatenate([layer.numpy() for layer in twin.model(ids, output_attentions=True).attentions])


def test_every_probe_equals_brute_force_on_the_demo_model(demo, maps):
    model, ids = demo
    probes = (*sinkscope.ALL[:-1], sinkscope.Maps(resolution=None))
    record = sinkscope.measure(model, ids, probes).isel(sequence=0)
    np.testing.assert_allclose(record.attention_map, maps, atol=1e-5)
    np.testing.assert_allclose(record.sink_mass, maps[..., :4], atol=1e-5)
    np.testing.assert_allclose(record.received, maps.sum(-2), atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(record.entropy, entropy(maps), atol=1e-4)
    np.testing.assert_allclose(record.distance_mass, distance_profile(maps), atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(record.mean_probability.fillna(0), maps[..., :16, :16], atol=1e-5)


def test_the_first_token_takes_about_a_third_of_all_attention(demo, maps):
    model, ids = demo
    record = sinkscope.measure(model, ids)
    mass = sinkscope.sink_mass(record, first=1)
    np.testing.assert_allclose(mass, maps[..., 1:, 0].mean(-1), atol=1e-5)
    assert 0.25 < float(mass.mean()) < 0.45
    alpha = maps[..., 0].mean(-1)  # Gu et al. 2024, over the whole text
    assert float(sinkscope.sink_rate(record)) == pytest.approx((alpha > 0.3).mean(), abs=1 / alpha.size)


def test_perplexity_collapses_without_sinks_and_recovers_with_four(demo):
    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=700, start=500_000)
    ways = [sinkscope.Dense(), sinkscope.Window(128), sinkscope.SinkWindow(4, 124)]
    dense, window, sinks = sinkscope.ppl(sinkscope.perplexity(model, ids, ways)).values
    assert window > 1.3 * sinks and sinks < 1.2 * dense


def test_blocks_and_the_cache_of_generate_give_the_same_losses(demo):
    model, ids = demo
    policy = sinkscope.SinkWindow(4, 60)
    blocks = sinkscope.perplexity(model, ids[:, :160], [policy], block=100).nll.values[0, 0, 1:]
    alone = []
    with sinkscope.SinkCache(model, sinks=4, window=60) as cache, torch.no_grad():
        for at in range(159):
            logits = model(ids[:, at : at + 1], cache=cache).logits[0]
            alone.append(float(torch.nn.functional.cross_entropy(logits, ids[0, at + 1 : at + 2])))
    np.testing.assert_allclose(blocks, alone, atol=1e-3)
