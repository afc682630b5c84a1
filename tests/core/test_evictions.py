"""Policies of chosen keys, and what becomes of the values of anchors, against their definition in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope import (
    ClippedSoftmax,
    Dense,
    Dose,
    Evict,
    EvictRecent,
    Maps,
    Sigmoid,
    SinkscopeError,
    SinkWindow,
    Softmax1,
    Window,
    attached,
)
from sinkscope.scope.interface import EVICTIONS
from tests.support import naive_slots
from tests.support.zoo import build, inputs

TOKENS = 60


def windowed(sinks: int, window: int):
    """Which keys a sink window keeps for a query."""
    return lambda at: [key for key in range(at + 1) if key < sinks or key >= at - window]


def without(keys, start):
    return lambda at: [key for key in range(at + 1) if at < start or key not in keys]


def without_once_read(keys):
    return lambda at: [key for key in range(at + 1) if key == at or key not in keys]


def without_recent(count, start, behind=0):
    return lambda at: [key for key in range(at + 1) if at < start or key not in range(at - behind - count, at - behind)]


WINDOW = dict(kept=windowed(3, 20), in_cache=True, anchors=range(3), since=24)
CASES = {
    "phantom": (SinkWindow(3, 20, values="zeroed"), dict(WINDOW, values="zeroed")),
    "mean values": (SinkWindow(3, 20, values="mean"), dict(WINDOW, values="mean")),
    "values only": (SinkWindow(3, 20, values="added"), dict(WINDOW, values="added")),
    "random values": (SinkWindow(3, 20, values="drawn"), dict(WINDOW, values="drawn")),
    "long values": (SinkWindow(3, 20, values="long"), dict(WINDOW, values="long")),
    "turned values": (SinkWindow(3, 20, values="turned"), dict(WINDOW, values="turned")),
    "window in one layer": (Window(20, layers=[1]), dict(kept=windowed(0, 20), layers=[1])),
    "sinks in some heads": (SinkWindow(3, 20, heads=[1, 2]), dict(kept=windowed(3, 20), in_cache=True, heads=[1, 2])),
    "phantom in some heads of a layer": (
        SinkWindow(3, 20, values="zeroed", heads=[0], layers=[0]),
        dict(WINDOW, values="zeroed", heads=[0], layers=[0]),
    ),
    "evict sinks": (Evict(range(4)), dict(kept=without(range(4), 4))),
    "evict others": (Evict([5, 17, 18], start=30), dict(kept=without([5, 17, 18], 30))),
    "evict before they are read": (Evict([5, 17], start=2), dict(kept=without([5, 17], 2))),
    "evict in some heads": (
        Evict([0, 9], heads=[3], layers=[1]),
        dict(kept=without([0, 9], 10), heads=[3], layers=[1]),
    ),
    "evict one by one": (Evict([17, 0, 1, 40], once_read=True), dict(kept=without_once_read([0, 1, 17, 40]))),
    "evict one by one in a layer": (
        Evict([0], once_read=True, layers=[1]),
        dict(kept=without_once_read([0]), layers=[1]),
    ),
    "weaker sinks of a window": (SinkWindow(3, 20, bias=-2.0), dict(WINDOW, bias=-2.0)),
    "sinks gone from a window": (SinkWindow(3, 20, bias=-math.inf), dict(WINDOW, bias=-math.inf)),
    "stronger phantom": (SinkWindow(3, 20, bias=1.0, values="zeroed"), dict(WINDOW, bias=1.0, values="zeroed")),
    "evict recent": (EvictRecent(4), dict(kept=without_recent(4, 5))),
    "evict before the last": (EvictRecent(4, behind=3), dict(kept=without_recent(4, 8, 3))),
    "evict before the last in a layer": (
        EvictRecent(2, behind=5, start=30, layers=[1]),
        dict(kept=without_recent(2, 30, 5), layers=[1]),
    ),
    "evict recent later": (EvictRecent(4, start=30, heads=[0]), dict(kept=without_recent(4, 30), heads=[0])),
    "stronger sink": (Dose(1.5), dict(anchors=[0], since=1, bias=1.5)),
    "weaker keys": (Dose(-2.0, [7, 30], start=8), dict(anchors=[7, 30], since=8, bias=-2.0)),
    "dose in a head": (Dose(3.0, [0, 1], heads=[2]), dict(anchors=[0, 1], since=2, bias=3.0, heads=[2])),
    "phantom dose": (Dose(0.0, [0], values="zeroed"), dict(anchors=[0], since=1, values="zeroed")),
    "mean dose": (Dose(1.0, [0, 3], values="mean"), dict(anchors=[0, 3], since=4, bias=1.0, values="mean")),
    "random dose": (Dose(1.0, [0, 7], values="drawn"), dict(anchors=[0, 7], since=8, bias=1.0, values="drawn")),
    "long dose": (Dose(1.0, [0], values="long"), dict(anchors=[0], since=1, bias=1.0, values="long")),
    "turned dose": (Dose(1.0, [0, 7], values="turned"), dict(anchors=[0, 7], since=8, bias=1.0, values="turned")),
    "added dose": (Dose(1.0, [0], values="added"), dict(anchors=[0], since=1, bias=1.0, values="added")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "definition"), CASES.values(), ids=CASES)
def test_logits_and_probes_equal_the_definition(policy, definition):
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    naive_slots.check(model, ids, naive_slots.run(model, ids, **definition), policy=policy)


@pytest.mark.parametrize("normaliser", ["softmax1", "clipped", "sigmoid"])
@pytest.mark.parametrize("case", ["phantom", "mean values", "evict others", "dose in a head", "mean dose"])
def test_a_policy_and_a_normaliser_together_equal_the_definition(case, normaliser):
    chosen, defined = {
        "softmax1": (Softmax1(), naive_slots.softmax1),
        "clipped": (ClippedSoftmax(-0.02), naive_slots.clipped(-0.02, 1.0)),
        "sigmoid": (Sigmoid(), naive_slots.sigmoid(None)),
    }[normaliser]
    policy, definition = CASES[case]
    if policy.heads is not None:  # the reference has one rule for where it acts
        chosen = type(chosen)(**{**vars(chosen), "heads": policy.heads})
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    expected, maps = naive_slots.run(model, ids, weights=defined, **definition)
    probe = Maps(resolution=None)
    with torch.no_grad(), attached(model, policy=policy, normaliser=chosen, probes=[probe]) as scope:
        logits = model(ids).logits
    torch.testing.assert_close(logits.double(), expected, atol=5e-5, rtol=1e-4)
    np.testing.assert_allclose(scope.record.attention_map.values, torch.stack(maps, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [
        Dose(0.0), Dose(0.0, [3, 9]), Evict([7], start=TOKENS), SinkWindow(4, TOKENS, values="zeroed"),
        SinkWindow(4, TOKENS, values="added"), EvictRecent(5, start=TOKENS), Dose(4.0, start=TOKENS),
    ],
    ids=lambda policy: policy.name,
)  # fmt: skip
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2", "deepseek_v3"])
def test_with_no_key_evicted_everything_is_dense(name, policy):
    model, ids = build(name), inputs(name, tokens=TOKENS)["input_ids"]
    with torch.no_grad():
        with attached(model, policy=Dense()):
            dense = model(ids).logits
        with attached(model, policy=policy):
            torch.testing.assert_close(model(ids).logits, dense, atol=2e-5, rtol=1e-4)


def test_taking_a_sink_away_slowly_ends_where_evicting_it_does():
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    with torch.no_grad():
        with attached(model, policy=Evict([0])):
            evicted = model(ids).logits
        distances = []
        for bias in (0.0, -2.0, -5.0, -30.0, -math.inf):
            with attached(model, policy=Dose(bias)):
                distances.append(float((model(ids).logits - evicted).abs().max()))
    assert distances[2] < distances[0] and distances[3] < 1e-4 and distances[4] == 0


def test_a_key_policy_works_with_learned_positions_and_native_windows_are_left_alone():
    for name in ("gpt2", "opt", "gemma3"):
        model, ids = build(name), inputs(name, tokens=30)["input_ids"]
        with torch.no_grad(), attached(model, policy=Evict([0]), probes=[Maps(resolution=None)]) as scope:
            model(ids)
        maps = scope.record.attention_map.values
        full = [bool(evictions) for evictions in scope.evictions]
        assert (maps[:, full][..., 1:, 0] == 0).all() and (maps[:, full][..., 0, 0] > 0.99).all()
        assert sum(full) == (1 if name == "gemma3" else len(full))
        for layer in np.flatnonzero(np.logical_not(full)):
            assert (maps[:, layer, :, 1:10, 0] > 0).all()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(keys=st.sets(st.integers(0, 30), min_size=1, max_size=6), start=st.integers(0, 40), cut=st.integers(1, 39))
def test_a_filled_cache_changes_nothing(keys, start, cut):
    """Read at once, and in two parts of any size."""
    from transformers import DynamicCache

    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]
    if set(range(start + 1)) <= keys:
        with pytest.raises(SinkscopeError, match=f"query {start} would see no key"):
            Evict(sorted(keys), start=start)
        return
    cache = DynamicCache()
    with torch.no_grad(), attached(model, policy=Evict(sorted(keys), start=start)):
        whole = model(ids).logits
        parts = [model(part, cache=cache).logits for part in (ids[:, :cut], ids[:, cut:])]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)
    assert not EVICTIONS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Evict([]), "names no keys"),
        (lambda: Evict([3, 3]), "names no keys"),
        (lambda: Evict([-1]), "names no keys"),
        (lambda: Evict(4), "names no keys"),
        (lambda: Evict([0, 1, 2], start=2), "query 2 would see no key: all 3"),
        (lambda: Dose(-math.inf, [0], start=0), "query 0 would see no key"),
        (lambda: Evict([1], start=-1), "start=-1"),
        (lambda: Dose(math.inf), "no dose"),
        (lambda: Dose(math.nan), "no dose"),
        (lambda: Dose(1.0, values="gone"), "values='gone' is unknown"),
        (lambda: SinkWindow(values="halved"), "values='halved' is unknown"),
        (lambda: EvictRecent(0), "recent=0"),
        (lambda: EvictRecent(3, start=3), "query 3 has no token left but itself when the last 3"),
        (lambda: EvictRecent(3, start=5, behind=2), "query 5 has no token left but the last 2 and itself when the oth"),
        (lambda: EvictRecent(3, behind=-1), "behind=-1"),
        (lambda: attached(build("llama"), policy=Evict([0], layers=[5])), "layer 5 .* layers 0 to 1"),
        (lambda: attached(build("llama"), policy=Window(8, heads=[-1])), "head -1"),
        (lambda: attached(build("mistral_sliding"), policy=Evict([0])), "slides over its own window"),
        (lambda: attached(build("bloom"), policy=Evict([0])), "attention interface"),
        (
            lambda: attached(build("llama"), policy=Dose(0.0, values="added"), normaliser=Sigmoid()),
            "not shares of one",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()
