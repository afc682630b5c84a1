"""Weights wherever they are kept: packed, in buffers, on the disk, or nowhere."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import sinkscope as S
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.hf.placement import reading_device
from sinkscope.models.weights import PIECE, weights_hash
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=1, tokens=40)["input_ids"]
POLICY = S.SinkWindow(4, 12)


# --- the hash ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [(0, 1), (3, 5), (2, 1000), (0, -1)])
def test_weights_that_change_places_change_the_hash(dtype, places):
    model = build("llama", dtype=dtype)
    before = weights_hash(model)
    with torch.no_grad():
        weights, (one, two) = model.model.layers[0].mlp.up_proj.weight.view(-1), places
        weights[one], weights[two] = weights[two].clone(), weights[one].clone()
    assert weights_hash(model) != before
    with torch.no_grad():
        weights[one], weights[two] = weights[two].clone(), weights[one].clone()
    assert weights_hash(model) == before


def test_any_two_weights_may_change_places_whose_bits_differ_in_the_highest_alone():
    """Half precision leaves the lower bits of a word alone: all pairs of 0.5 and -0.5 in 512 places, at once."""
    holder = nn.Linear(512, 1, bias=False).bfloat16()
    hashes = set()
    for place in range(512):
        with torch.no_grad():
            holder.weight.fill_(0.5)[0, place] = -0.5
        hashes.add(weights_hash(holder))
    assert len(hashes) == 512


def test_the_hash_sees_pieces_that_change_places_and_odd_sizes():
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.randn(2 * PIECE + 3, generator=torch.Generator().manual_seed(0)).bfloat16())
    before = weights_hash(holder)
    with torch.no_grad():
        holder.weight.copy_(
            torch.cat([holder.weight[PIECE // 2 : PIECE], holder.weight[: PIECE // 2], holder.weight[PIECE:]])
        )
    changed = weights_hash(holder)
    with torch.no_grad():
        holder.weight[-1] += 1
    assert len({before, changed, weights_hash(holder)}) == 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "bloom", "dynamic"])
def test_the_hash_stays_when_a_model_runs_and_is_that_of_a_copy(family):
    model = build(family) if family != "dynamic" else adapting()
    before = weights_hash(model)
    S.measure(model, IDS)
    assert weights_hash(model) == before == weights_hash(copy.deepcopy(model))


def adapting() -> nn.Module:
    """Its frequencies change with texts longer than 20 tokens."""
    config = copy.deepcopy(build("llama").config)
    config.max_position_embeddings = 20
    config.rope_parameters = dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def test_the_hash_sees_buffers_of_both_kinds():
    model = build("llama")
    hashes = [weights_hash(model)]
    model.model.rotary_emb.inv_freq *= 2  # which is not saved
    hashes.append(weights_hash(model))
    model.register_buffer("mine", torch.zeros(3))
    hashes.append(weights_hash(model))
    assert len(set(hashes)) == 3


# --- packed --------------------------------------------------------------------------------------------------------


def in_int8(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma2"])
@pytest.mark.parametrize("policy", [POLICY, S.Recompute(9)])
def test_packed_layers_cost_what_they_multiply(family, policy):
    assert S.cost(in_int8(build(family)), policy, 100) == S.cost(build(family), policy, 100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cache_of_a_packed_model_is_refused_by_one_of_other_weights(tmp_path):
    model, other = in_int8(build("llama")), build("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(2)  # the same whole numbers, with another scale
    with S.SinkCache(model, 4, 12) as cache, torch.no_grad():
        model(IDS, **with_cache(model, cache))
        cache.save(tmp_path / "cache.safetensors")
    S.SinkCache.load(tmp_path / "cache.safetensors", in_int8(build("llama"))).close()
    with pytest.raises(SinkscopeError, match="other weights"):
        S.SinkCache.load(tmp_path / "cache.safetensors", in_int8(other))


# --- offloaded -----------------------------------------------------------------------------------------------------

ON_DISK = {
    "the second layer": {"model.layers.1": "disk"},
    "the first weight": {"model.embed_tokens": "disk", "model.layers.0": "disk"},
    "all": dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"], "disk"),
}
PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.fixture(params=ON_DISK)
def offloaded(request, tmp_path) -> nn.Module:
    build("llama").save_pretrained(tmp_path / "model")
    places = dict.fromkeys(PARTS, "cpu") | ON_DISK[request.param]
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    ).eval()
    assert any(each.is_meta for each in model.parameters())
    return model


@pytest.mark.slow
def test_an_offloaded_model_gives_the_numbers_of_the_undivided_one(offloaded, tmp_path):
    model = build("llama")
    meta = [name for name, each in offloaded.named_parameters() if each.is_meta]
    one, two = (S.measure(each, IDS, [*S.FREE, S.Maps()]) for each in (model, offloaded))
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name], two[name])
    assert one.attrs["device"] == two.attrs["device"] == "cpu" and one.attrs["dtype"] == two.attrs["dtype"]
    policies = [S.Dense(), POLICY, S.Recompute(16), S.PerHead({(1, 2): POLICY}, default=S.Dense())]
    losses = [S.perplexity(each, IDS, policies, progress=False).nll for each in (model, offloaded)]
    np.testing.assert_array_equal(*losses)
    tables = [S.ablate(each, IDS, sinks=[0, 1], cache_size=16).drop(columns="seconds") for each in (model, offloaded)]
    assert tables[0].equals(tables[1])
    assert S.cost(model, POLICY, 50).flops == S.cost(offloaded, POLICY, 50).flops
    assert [name for name, each in offloaded.named_parameters() if each.is_meta] == meta


@pytest.mark.slow
def test_a_cache_goes_from_an_offloaded_model_to_the_undivided_one_and_back(offloaded, tmp_path):
    model, path = build("llama"), tmp_path / "cache.safetensors"
    assert weights_hash(offloaded) == weights_hash(model)
    text = IDS
    for each in (offloaded, model, offloaded):
        with S.SinkCache.load(path, each) if path.exists() else S.SinkCache(each, 4, 12) as cache:
            text = each.generate(text, **with_cache(each, cache), max_new_tokens=3, do_sample=False)
            cache.save(path)
    with S.SinkCache(model, 4, 12) as cache:
        assert torch.equal(text, model.generate(IDS, **with_cache(model, cache), max_new_tokens=9, do_sample=False))


def test_the_hash_sees_a_weight_on_the_disk(offloaded):
    changed = build("llama")
    with torch.no_grad():
        changed.model.layers[1].self_attn.q_proj.weight[0, 0] += 1
    assert weights_hash(offloaded) != weights_hash(changed)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: S.measure(model, IDS),
        lambda model: S.capture(model).__enter__(),
        lambda model: S.perplexity(model, IDS, [S.Dense()]),
        lambda model: S.SinkCache(model, 4, 12),
        lambda model: S.ablate(model, IDS, sinks=[0], cache_size=8),
    ],
)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_model_without_weights_is_refused_by_name(call, family):
    model = build(family).to("meta")
    assert reading_device(model).type == "meta"
    with pytest.raises(SinkscopeError, match=r"(Model|ForCausalLM) has weights on torch's meta device"):
        call(model)
    with pytest.raises(SinkscopeError, match="meta device, which holds no numbers"):
        weights_hash(model)


def test_weights_that_are_not_finite_are_named_on_the_disk_too(tmp_path):
    broken = build("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    broken.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(PARTS, "cpu") | ON_DISK["the second layer"]
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    ).eval()
    with pytest.raises(SinkscopeError, match=r"the weights model.layers.1.mlp.up_proj.weight are not finite"):
        S.perplexity(model, IDS, [S.Dense()], progress=False)
