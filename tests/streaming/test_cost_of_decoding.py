"""Costs against real decoding: operations as torch counts them, bytes as the cache holds them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import DynamicCache

from sinkscope.policies import Dense, Recompute, SinkWindow, Window
from sinkscope.streaming.cost import cost
from sinkscope.streaming.shapes import shapes_of
from tests.support import zoo
from tests.support.costed import FAMILIES

DECODERS = [name for name in zoo.DECODERS if name != "llama4"]
COUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, out_shape=None, **b: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._grouped_mm: lambda rows, weight, *a, out_shape=None, **b: 2 * rows[0] * rows[1] * weight[-1],
}


def counted(model, ids, **more):
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        model(input_ids=ids, use_cache=True, **more)
    return counter.get_total_flops()


def fresh_cache(model):
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def decoded(name, tokens):
    """Operations of each step of decoding, and the cache after it."""
    model, ids = zoo.build(name), zoo.inputs(name, batch=1, tokens=tokens)["input_ids"]
    cache = fresh_cache(model)
    return model, [counted(model, ids[:, [t]], cache=cache) for t in range(tokens)], cache


def held_bytes(cache):
    return sum(each.numel() * each.element_size() for layer in cache.layers for each in (layer.keys, layer.values))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_dense_operations_are_those_torch_counts_in_real_decoding(name):
    model, steps, _ = decoded(name, 24)
    for tokens in (1, 2, 24):
        found = cost(model, Dense(), tokens)
        assert found.flops == sum(steps[:tokens])
        assert found.flops_per_token == steps[tokens - 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_dense_bytes_are_those_a_real_cache_holds(name):
    model, _, cache = decoded(name, 24)
    found = cost(model, Dense(), 24)
    assert found.kv_bytes == held_bytes(cache)
    model(zoo.inputs(name, batch=1, tokens=1)["input_ids"], cache=cache, use_cache=True)
    assert found.kv_bytes + found.kv_bytes_growth == held_bytes(cache)  # 24 tokens fill every native window of the zoo


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_every_family_has_shapes_that_explain_its_first_steps(name):
    model, steps, cache = decoded(name, 5)
    found = cost(model, Dense(), 5)
    assert (found.flops, found.kv_bytes) == (sum(steps), held_bytes(cache))
    assert all(layer.heads == 4 for layer in shapes_of(model).layers)
    assert found.kv_bytes_mqa <= found.kv_bytes_mha


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "deepseek_v3", "mixtral", "gemma2", "mistral_sliding"])
def test_recompute_operations_are_those_of_running_the_last_tokens_afresh(name):
    """The counter takes the whole square of queries and keys for attention; the keys that are masked are taken off."""
    model, size = zoo.build(name), 20
    ids = zoo.inputs(name, batch=1, tokens=30)["input_ids"]
    shapes, run = shapes_of(model), min(30, size)
    real = counted(model, ids[:, -size:], cache=fresh_cache(model), logits_to_keep=1)
    masked = sum(
        layer.flops_per_pair * (run * run - sum(min(i + 1, layer.window or run) for i in range(run)))
        for layer in shapes.layers
    )
    assert cost(model, Recompute(size), 30).flops_per_token == real - masked


@pytest.mark.slow
def test_a_window_costs_what_decoding_on_a_cropped_cache_costs():
    model, size = zoo.build("llama"), 6
    ids = zoo.inputs("llama", batch=1, tokens=20)["input_ids"]
    cache, steps = DynamicCache(), []
    for t in range(20):
        steps.append(counted(model, ids[:, [t]], cache=cache, position_ids=torch.tensor([[min(t, size)]])))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, -size:], layer.values[:, :, -size:]
    found = cost(model, Window(size), 20)
    assert (found.flops, found.flops_per_token) == (sum(steps), steps[-1])
    assert found.kv_bytes == held_bytes(cache)
    same = cost(model, SinkWindow(2, 4), 20)
    assert (same.flops, same.kv_bytes) == (found.flops, found.kv_bytes)
