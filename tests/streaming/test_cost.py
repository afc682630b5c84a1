"""Costs against formulas by hand and against each other; what cannot be costed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.policies import Dense, EveryNth, Recompute, SinkWindow, Window
from sinkscope.scope.scope import attached
from sinkscope.streaming.cost import Cost, cost, cost_table
from sinkscope.streaming.shapes import shapes_of
from tests.support import zoo
from tests.support.costed import FAMILIES, POLICIES


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_policy_that_is_counted_pair_by_pair_can_read_one_token():
    found = cost(zoo.build("llama"), EveryNth(step=4, window=4), 1)
    dense = cost(zoo.build("llama"), Dense(), 1)
    assert (found.attention_size, found.flops, found.flops_per_token) == (1, dense.flops, dense.flops_per_token)


@pytest.mark.slow
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


@pytest.mark.parametrize("tokens", [0, -3, 2.0, True, None])
def test_less_than_one_token_is_refused(tokens):
    with pytest.raises(SinkscopeError, match="is not a whole number of 1 or more"):
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
