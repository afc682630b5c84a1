"""Sums over all tokens and keys against sums term by term."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.policies import Dense, Policy, Recompute, SinkWindow, Window
from sinkscope.streaming.cost import cost, pairs, rerun_pairs, spans
from sinkscope.streaming.shapes import Shapes, shapes_of
from tests.support import zoo
from tests.support.costed import POLICIES

policies = st.one_of(
    st.just(Dense()),
    st.builds(Window, st.integers(1, 40)),
    st.builds(Recompute, st.integers(1, 40)),
    st.builds(SinkWindow, st.integers(0, 8), st.integers(1, 40)),
)
windows = st.one_of(st.none(), st.integers(2, 40))


def seen_keys(policy: Policy, window: int | None, mixed: bool, t: int) -> list[int]:
    """The keys that each query run for token t sees, itself included, listed one by one."""
    if isinstance(policy, Recompute):
        texts = range(max(0, t + 1 - policy.size), t + 1)
        return [sum(1 for j in texts if j <= i and (window is None or i - j < window)) for i in texts]
    if isinstance(policy, Dense) or (mixed and window is not None):
        return [sum(1 for j in range(t + 1) if window is None or t - j < window)]
    sinks, size = policy.kept
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
