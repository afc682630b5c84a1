"""The shapes that costs are counted from: those of the model, whatever its head, experts, dtype or device."""

from __future__ import annotations

import pytest
import torch

from sinkscope.policies import Dense, Recompute, SinkWindow, Window
from sinkscope.streaming.cost import cost
from sinkscope.streaming.shapes import LayerShape, shapes_of
from tests.support import zoo


def test_only_active_experts_count():
    config = dict(zoo.DECODERS["mixtral"][1])
    model = zoo.build("mixtral")
    router, expert = 64 * config["num_local_experts"], 3 * 64 * 96
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    assert shapes_of(model).body_flops == 2 * 2 * (attention + router + config["num_experts_per_tok"] * expert)


def test_latent_attention_caches_one_latent_and_makes_its_keys_anew():
    """kv rank 16, rotated key 8, query and key 16 + 8, value 16, 4 heads."""
    for layer in shapes_of(zoo.build("deepseek_v3")).layers:
        assert layer == LayerShape(4, 1, 16, 8, 4, None, 2 * 4 * (24 + 16), 2 * 16 * 4 * (16 + 16))
        assert (layer.kv_bytes, layer.kv_bytes_mha, layer.kv_bytes_mqa) == (4 * 24, 4 * 4 * 40, 4 * 40)


@pytest.mark.slow
def test_shapes_need_no_weights():
    assert cost(zoo.build("llama").to("meta"), SinkWindow(4, 12), 1000) == cost(
        zoo.build("llama"), SinkWindow(4, 12), 1000
    )


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3", "falcon_rotary"])
def test_the_attention_implementation_does_not_change_the_cost(name):
    eager, fused = (cost(zoo.build(name, implementation), Window(6), 40) for implementation in ("eager", "sdpa"))
    assert eager == fused


def test_a_model_without_its_head_costs_the_head_less():
    model = zoo.build("llama")
    whole, body = cost(model, Recompute(6), 40), cost(model.model, Recompute(6), 40)
    assert whole.rest_flops - body.rest_flops == 40 * 2 * 64 * 128
    assert whole.attention_flops == body.attention_flops


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma2"])
def test_bfloat16_halves_the_bytes_and_leaves_the_operations(name):
    single, half = (cost(zoo.build(name, dtype=dtype), Window(8), 50) for dtype in (torch.float32, torch.bfloat16))
    assert half.flops == single.flops
    for quantity in ("kv_bytes", "kv_bytes_peak", "kv_bytes_mha", "kv_bytes_mqa"):
        assert 2 * getattr(half, quantity) == getattr(single, quantity)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "deepseek_v3"])
def test_costing_leaves_the_model_as_it_was(name):
    model = zoo.build(name)
    ids = zoo.inputs(name)["input_ids"]
    before, implementation = model(ids).logits, model.config._attn_implementation
    cost(model, Dense(), 10)
    assert torch.equal(model(ids).logits, before) and model.config._attn_implementation == implementation
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
