"""Costs against real decoding: operations as torch counts them, bytes as the cache holds them, sums term by term."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import DynamicCache

import sinkscope
from sinkscope.core.policies import Dense, Policy, Recompute, SinkWindow, Window
from sinkscope.core.scope import attached
from sinkscope.errors import SinkscopeError
from sinkscope.reporting.four_policies import four_policies, four_policies_latex
from sinkscope.streaming.costs.cost import Cost, cost, cost_table
from sinkscope.streaming.costs.shapes import LayerShape, Shapes, shapes_of
from sinkscope.streaming.costs.spans import pairs, rerun_pairs, spans
from tests import zoo

FAMILIES = ("llama", "gpt_neox", "gemma2", "deepseek_v3", "falcon_rotary", "gpt_oss", "mixtral", "mistral_sliding")
DECODERS = [name for name in zoo.DECODERS if name != "llama4"]
POLICIES = (Dense(), Window(6), Recompute(6), SinkWindow(2, 4))
COUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, out_shape=None, **b: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._grouped_mm: lambda rows, weight, *a, out_shape=None, **b: 2 * rows[0] * rows[1] * weight[-1],
}

policies = st.one_of(
    st.just(Dense()),
    st.builds(Window, st.integers(1, 40)),
    st.builds(Recompute, st.integers(1, 40)),
    st.builds(SinkWindow, st.integers(0, 8), st.integers(1, 40)),
)
windows = st.one_of(st.none(), st.integers(2, 40))


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
    return model, [counted(model, ids[:, [t]], past_key_values=cache) for t in range(tokens)], cache


def held_bytes(cache):
    return sum(each.numel() * each.element_size() for layer in cache.layers for each in (layer.keys, layer.values))


def seen_keys(policy: Policy, window: int | None, mixed: bool, t: int) -> list[int]:
    """The keys that each query run for token t sees, itself included, listed one by one."""
    if isinstance(policy, Recompute):
        texts = range(max(0, t + 1 - policy.size), t + 1)
        return [sum(1 for j in texts if j <= i and (window is None or i - j < window)) for i in texts]
    if isinstance(policy, Dense) or (mixed and window is not None):
        return [sum(1 for j in range(t + 1) if window is None or t - j < window)]
    sinks, size = policy.sinks, policy.window
    return [sum(1 for j in range(t) if t - j <= size or j < sinks) + 1]


def brute(shapes: Shapes, policy: Policy, t: int) -> tuple[int, int]:
    """Operations for token t, of attention and of the rest, from the list of all keys seen."""
    mixed = None in [layer.window for layer in shapes.layers]
    attention = 0
    for layer in shapes.layers:
        seen = seen_keys(policy, layer.window, mixed, t)
        remade = len(seen) if isinstance(policy, Recompute) else seen[0]
        attention += layer.flops_per_pair * sum(seen) + layer.flops_per_key * remade
    return attention, shapes.body_flops * len(seen) + shapes.head_flops


@pytest.mark.parametrize("name", FAMILIES)
def test_dense_operations_are_those_torch_counts_in_real_decoding(name):
    model, steps, _ = decoded(name, 24)
    for tokens in (1, 2, 24):
        found = cost(model, Dense(), tokens)
        assert found.flops == sum(steps[:tokens])
        assert found.flops_per_token == steps[tokens - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_dense_bytes_are_those_a_real_cache_holds(name):
    model, _, cache = decoded(name, 24)
    found = cost(model, Dense(), 24)
    assert found.kv_bytes == held_bytes(cache)
    model(zoo.inputs(name, batch=1, tokens=1)["input_ids"], past_key_values=cache, use_cache=True)
    assert found.kv_bytes + found.kv_bytes_growth == held_bytes(cache)  # 24 tokens fill every native window of the zoo


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
    real = counted(model, ids[:, -size:], past_key_values=fresh_cache(model), logits_to_keep=1)
    masked = sum(
        layer.flops_per_pair * (run * run - sum(min(i + 1, layer.window or run) for i in range(run)))
        for layer in shapes.layers
    )
    assert cost(model, Recompute(size), 30).flops_per_token == real - masked


def test_a_window_costs_what_decoding_on_a_cropped_cache_costs():
    model, size = zoo.build("llama"), 6
    ids = zoo.inputs("llama", batch=1, tokens=20)["input_ids"]
    cache, steps = DynamicCache(), []
    for t in range(20):
        steps.append(counted(model, ids[:, [t]], past_key_values=cache, position_ids=torch.tensor([[min(t, size)]])))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, -size:], layer.values[:, :, -size:]
    found = cost(model, Window(size), 20)
    assert (found.flops, found.flops_per_token) == (sum(steps), steps[-1])
    assert found.kv_bytes == held_bytes(cache)
    same = cost(model, SinkWindow(2, 4), 20)
    assert (same.flops, same.kv_bytes) == (found.flops, found.kv_bytes)


def test_llama_agrees_with_its_formula_by_hand():
    """2 layers, 4 heads over 2 KV heads of 16, hidden 64, feed-forward 96, vocabulary 128; float32."""
    found = cost(zoo.build("llama"), SinkWindow(4, 12), 100)
    weights = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96) + 64 * 128
    assert found.rest_flops_per_token == 2 * weights and found.rest_flops == 100 * 2 * weights
    assert found.attention_flops_per_token == 2 * (2 * 4 * (16 + 16)) * 17
    assert (found.attention_size, found.kv_bytes, found.kv_bytes_growth) == (17, 2 * 16 * 2 * 2 * 16 * 4, 0)
    assert found.kv_bytes_peak == found.kv_bytes * 17 // 16
    assert (found.kv_bytes_mha, found.kv_bytes_mqa) == (2 * found.kv_bytes, found.kv_bytes // 2)
    assert found.saving == 2


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


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma2"])
def test_bfloat16_halves_the_bytes_and_leaves_the_operations(name):
    single, half = (cost(zoo.build(name, dtype=dtype), Window(8), 50) for dtype in (torch.float32, torch.bfloat16))
    assert half.flops == single.flops
    for quantity in ("kv_bytes", "kv_bytes_peak", "kv_bytes_mha", "kv_bytes_mqa"):
        assert 2 * getattr(half, quantity) == getattr(single, quantity)


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma2", "mistral_sliding"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_totals_are_the_sum_over_tokens(name, policy):
    model, shapes = zoo.build(name), shapes_of(zoo.build(name))
    steps = [brute(shapes, policy, t) for t in range(30)]
    for tokens in (1, 5, 6, 7, 16, 17, 30):
        found = cost(model, policy, tokens)
        assert (found.attention_flops, found.rest_flops) == tuple(map(sum, zip(*steps[:tokens], strict=True)))
        assert (found.attention_flops_per_token, found.rest_flops_per_token) == steps[tokens - 1]


@settings(deadline=None)
@given(policy=policies, native=st.lists(windows, min_size=1, max_size=3), tokens=st.integers(1, 60))
def test_pairs_seen_are_those_counted_one_by_one(policy, native, tokens):
    for window, span in zip(native, spans(policy, native), strict=True):
        listed = [seen_keys(policy, window, None in native, t) for t in range(tokens)]
        if isinstance(policy, Recompute):
            assert rerun_pairs(tokens, policy.size, span.seen) == sum(map(sum, listed))
        else:
            assert pairs(tokens, span.seen) == sum(map(sum, listed))
        assert (tokens if span.seen is None else min(tokens, span.seen)) == listed[-1][-1]


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 60), sinks=st.integers(0, 8), tokens=st.integers(1, 200))
def test_before_anything_is_evicted_all_caches_cost_the_same_and_afterwards_less(size, sinks, tokens):
    model = zoo.build("llama")
    dense, window = cost(model, Dense(), tokens), cost(model, Window(sinks + size), tokens)
    sink, again = cost(model, SinkWindow(sinks, size), tokens), cost(model, Recompute(sinks + size), tokens)
    assert (sink.flops, sink.kv_bytes) == (window.flops, window.kv_bytes)
    evicted = tokens > sinks + size
    assert (window.kv_bytes < dense.kv_bytes) is evicted and window.kv_bytes <= dense.kv_bytes
    assert (window.flops < dense.flops) is (tokens > sinks + size + 1)
    assert again.kv_bytes == window.kv_bytes
    assert again.flops >= window.flops or size + sinks == 1


def test_growth_is_the_difference_of_one_more_token_once_windows_are_full():
    for name in FAMILIES:
        model = zoo.build(name)
        for policy in POLICIES:
            before, after = (cost(model, policy, tokens) for tokens in (300, 301))
            assert after.kv_bytes - before.kv_bytes == before.kv_bytes_growth
            assert (before.memory == "O(T)") is (before.kv_bytes_growth > 0)


def test_a_policy_acts_on_the_same_layers_as_in_a_scope():
    """gemma2 mixes a native window of 16 with a full layer; in sliding mistral all layers have it."""
    mixed, sliding = zoo.build("gemma2"), zoo.build("mistral_sliding")
    assert cost(mixed, Window(6), 90).kv_bytes == (6 + 15) * 2 * 2 * 16 * 4
    assert cost(sliding, Window(6), 90).kv_bytes == (6 + 6) * 2 * 2 * 16 * 4
    assert cost(sliding, Dense(), 90).kv_bytes == (15 + 15) * 2 * 2 * 16 * 4
    assert [cost(mixed, policy, 90).attention_size for policy in POLICIES] == [90, 7, 6, 7]
    assert [cost(sliding, policy, 90).attention_size for policy in POLICIES] == [16, 7, 6, 7]
    assert cost(sliding, Dense(), 90).complexity == "O(T·L)"


def test_a_long_text_is_counted_at_once_and_exactly():
    model = zoo.build("llama")
    shapes, tokens = shapes_of(model), 4_000_000
    found = cost(model, Recompute(4096), tokens)
    one = found.attention_flops_per_token
    assert one == sum(layer.flops_per_pair for layer in shapes.layers) * 4096 * 4097 // 2
    assert found.attention_flops == cost(model, Recompute(4096), 5000).attention_flops + (tokens - 5000) * one


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "deepseek_v3"])
def test_costing_leaves_the_model_as_it_was(name):
    model = zoo.build(name)
    ids = zoo.inputs(name)["input_ids"]
    before, implementation = model(ids).logits, model.config._attn_implementation
    cost(model, Dense(), 10)
    assert torch.equal(model(ids).logits, before) and model.config._attn_implementation == implementation
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3", "falcon_rotary"])
def test_the_attention_implementation_does_not_change_the_cost(name):
    eager, fused = (cost(zoo.build(name, implementation), Window(6), 40) for implementation in ("eager", "sdpa"))
    assert eager == fused


def test_shapes_need_no_weights():
    assert cost(zoo.build("llama").to("meta"), SinkWindow(4, 12), 1000) == cost(
        zoo.build("llama"), SinkWindow(4, 12), 1000
    )


def test_a_model_without_its_head_costs_the_head_less():
    model = zoo.build("llama")
    whole, body = cost(model, Recompute(6), 40), cost(model.model, Recompute(6), 40)
    assert whole.rest_flops - body.rest_flops == 40 * 2 * 64 * 128
    assert whole.attention_flops == body.attention_flops


def test_the_complexities_are_those_of_the_four_ways():
    table = cost_table(zoo.build("llama"), POLICIES, 1000).set_index("policy")
    assert list(table.index) == [policy.name for policy in POLICIES]
    assert list(table["complexity"]) == ["O(T²)", "O(T·L)", "O(T·L²)", "O(T·L)"]
    assert list(table["memory"]) == ["O(T)", "O(L)", "O(L)", "O(L)"]
    assert list(table["attention_size"]) == [1000, 7, 6, 7]
    for policy in POLICIES:
        found, row = cost(zoo.build("llama"), policy, 1000), table.loc[policy.name]
        assert (row["flops"], row["flops_per_token"]) == (found.flops, found.flops_per_token)
        assert (row["kv_bytes"], row["kv_bytes_mha"]) == (found.kv_bytes, found.kv_bytes_mha)


def test_the_table_says_what_it_was_made_of():
    table = cost_table(zoo.build("llama"), POLICIES, 1000)
    assert table.attrs["model_type"] == "llama" and table.attrs["tokens"] == 1000 and table.attrs["dtype"] == "float32"


def test_a_cost_reads_as_a_few_lines():
    found = cost(zoo.build("llama"), SinkWindow(4, 12), 1000)
    text, page = repr(found), found._repr_html_()
    assert isinstance(found, Cost)
    assert len(text.splitlines()) == 6
    for words in ("sinks 4+12", "1,000 tokens", "17 keys", "O(T·L)", "8.19 kB, O(L), bounded", "16.4 kB with keys"):
        assert words in text and words in page
    assert "each further token adds 512 B" in repr(cost(zoo.build("llama"), Dense(), 1000))


def test_the_four_policies_table_joins_costs_and_perplexities():
    costs = cost_table(zoo.build("llama"), POLICIES, 1000)
    measured = pd.DataFrame({"policy": ["window 6", "dense"], "ppl": [5158.07, 5.4], "low": [5000.0, 5.3],
                             "high": [5300.0, 5.5]})  # fmt: skip
    measured.attrs = {"text": "a book", "tokens": 500}
    table = four_policies(costs, measured)
    assert list(table["policy"]) == list(costs["policy"])
    assert list(table["ppl"].fillna(-1)) == [5.4, 5158.07, -1, -1]
    assert list(table["kv_megabytes"]) == [held / 1e6 for held in costs["kv_bytes"]]
    assert table.attrs["text"] == "a book" and table.attrs["cost_tokens"] == 1000 and table.attrs["tokens"] == 500
    latex = four_policies_latex(table)
    for words in (r"\toprule", r"O(T$\cdot$L$^{2}$)", "recompute 6", "5,158", "kv megabytes", "after 1,000 tokens"):
        assert words in latex
    assert sum(line.endswith(r"\\") for line in latex.splitlines()) == 5
    assert "ppl" not in four_policies(costs) and "perplexity" not in four_policies_latex(four_policies(costs))


def test_tables_that_do_not_fit_are_refused():
    costs = cost_table(zoo.build("llama"), POLICIES, 1000)
    measured = pd.DataFrame({"policy": ["window 7"], "ppl": [1.0], "low": [1.0], "high": [1.0]})
    with pytest.raises(SinkscopeError, match="window 7 has a perplexity but no cost"):
        four_policies(costs, measured)
    with pytest.raises(SinkscopeError, match="perplexities has no column ppl"):
        four_policies(costs, measured.drop(columns="ppl"))
    with pytest.raises(SinkscopeError, match="'dense' twice"):
        four_policies(pd.concat([costs, costs[:1]]))


@pytest.mark.parametrize("tokens", [0, -3, 2.0, True, None])
def test_less_than_one_token_is_refused(tokens):
    with pytest.raises(SinkscopeError, match="whole number of tokens >= 1"):
        cost(zoo.build("llama"), Dense(), tokens)


@pytest.mark.parametrize("policy", [None, "dense", Window, 4])
def test_what_is_not_a_policy_is_refused(policy):
    with pytest.raises(SinkscopeError, match="is not a policy"):
        cost(zoo.build("llama"), policy, 10)


@pytest.mark.parametrize("name", zoo.ENCODERS)
def test_encoders_and_vision_models_are_refused(name):
    with pytest.raises(SinkscopeError, match="does not read token by token"):
        cost(zoo.build(name), Window(4), 10)


def test_attention_in_chunks_and_scopes_are_refused():
    with pytest.raises(SinkscopeError, match="attends in chunks"):
        cost(zoo.build("llama4"), Dense(), 10)
    model = zoo.build("llama")
    with attached(model), pytest.raises(SinkscopeError, match="carries a scope"):
        cost(model, Dense(), 10)
    with pytest.raises(SinkscopeError, match="expected a loaded model"):
        cost("llama", Dense(), 10)


def test_the_public_names_are_these():
    assert (sinkscope.cost, sinkscope.Cost, sinkscope.cost_table) == (cost, Cost, cost_table)
