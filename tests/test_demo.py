"""The main job on real input: SmolLM2-135M reading the King James Bible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope
from tests.core.eager import distance_profile, entropy

TOKENS = 256


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
