"""Policies written outside the package work as the built-in ones do, or are refused by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import SinkscopeError, attached, perplexity
from tests.core.own import FAMILIES, Plain, Stripes, losses_of
from tests.support import naive_slots
from tests.support.zoo import build, inputs

# --- static policies --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "policy",
    [sinkscope.EveryNth(7, 5), sinkscope.Chunks(9), sinkscope.Chunks(16, 2), Stripes(), Plain(6)],
    ids=lambda policy: policy.name,
)
def test_a_static_policy_gives_what_its_rule_says(name, policy):
    model, ids = build(name), inputs(name, tokens=50)["input_ids"]

    def kept(at):
        return [key for key in range(at + 1) if bool(policy.sees(torch.tensor(at), torch.tensor(key)))]

    expected = naive_slots.run(model, ids, kept=kept)
    naive_slots.check(model, ids, expected, policy=policy)
    for block in (50, 7):
        record = perplexity(model, ids, [policy], block=block)
        np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(expected[0], ids), atol=1e-4)
    with torch.no_grad(), attached(model, policy=policy):
        cache = sinkscope.hf.caches.growing_cache(model)
        parts = [model(ids[:, :20], **sinkscope.hf.caches.with_cache(model, cache)).logits]
        parts += [
            model(ids[:, at : at + 1], **sinkscope.hf.caches.with_cache(model, cache)).logits for at in range(20, 50)
        ]
    torch.testing.assert_close(torch.cat(parts, 1).double(), expected[0], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        sinkscope.Dense(), sinkscope.Window(9), sinkscope.SinkWindow(2, 7, "original"), sinkscope.Evict([0, 3]),
        sinkscope.Evict([0, 3], once_read=True), sinkscope.EvictRecent(3), sinkscope.SinkWindow(2, 7, bias=-np.inf),
    ],
    ids=lambda policy: policy.name,
)  # fmt: skip
def test_built_in_policies_see_what_their_own_rule_says(policy):
    """`sees` is the definition; the engine runs them by quicker means."""

    @dataclass(frozen=True)
    class ByRule(sinkscope.StaticPolicy):
        def sees(self, query, key):
            return policy.sees(query, key) | (query == key)

    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]
    logits = []
    for each in (policy, ByRule()):
        with torch.no_grad(), attached(model, policy=each):
            logits.append(model(ids).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=1e-4)


def test_the_cost_of_a_policy_follows_from_its_rule():
    model, policy, tokens = build("llama"), Stripes(), 40
    found, dense = (sinkscope.cost(model, each, tokens) for each in (policy, sinkscope.Dense()))
    seen = sum(bool(policy.sees(torch.tensor(i), torch.tensor(j))) for i in range(tokens) for j in range(i + 1))
    assert found.attention_flops * (tokens * (tokens + 1) // 2) == dense.attention_flops * seen
    assert found.kv_bytes == dense.kv_bytes  # any key may be seen later


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda query, key: key < query, "query 0 does not see its own key under Own"),
        (lambda query, key: (query != 7) & (key <= query), "query 7 does not see its own key under Own"),
        (lambda query, key: (query - key).float(), "float32 numbers; it has to give a tensor of booleans"),
        (lambda query, key: True, "a bool; it has to give a tensor of booleans"),
        (lambda query, key: torch.ones(3, 2, dtype=torch.bool), r"gave booleans of shape \(3, 2\)"),
    ],
)
def test_a_rule_that_cannot_be_carried_out_is_refused(rule, message):
    class Own(sinkscope.StaticPolicy):
        def sees(self, query, key):
            return rule(query, key)

    model, ids = build("llama"), inputs("llama", tokens=12)["input_ids"]
    with pytest.raises(SinkscopeError, match=message), torch.no_grad(), attached(model, policy=Own()):
        model(ids)
    with pytest.raises(SinkscopeError, match=message):
        perplexity(model, ids, [Own()])


def test_a_policy_that_would_be_passed_over_is_refused_by_name():
    class Overridden(sinkscope.SinkWindow):
        def sees(self, query, key):
            return key <= query

    class Nothing(sinkscope.Policy):
        pass

    model, ids = build("llama"), inputs("llama", tokens=12)["input_ids"]
    for policy, message in (
        (Overridden(1, 4), "Overridden gives a `sees` of its own to a policy whose `bind` does not ask it"),
        (Nothing(), "Nothing is a policy that does not say which keys a query sees"),
    ):
        with pytest.raises(SinkscopeError, match=message):
            attached(model, policy=policy)
        with pytest.raises(SinkscopeError, match=message):
            perplexity(model, ids, [policy])
    with pytest.raises(TypeError, match="abstract"):
        type("Blind", (sinkscope.StaticPolicy,), {})()


def test_two_policies_of_one_class_that_is_no_dataclass_are_told_apart():
    assert repr(Plain(6)) != repr(Plain(7))
    assert Plain(6).coordinates["policy_settings"] != Plain(7).coordinates["policy_settings"]


def test_heads_given_as_pairs_are_refused_with_the_class_that_takes_them():
    for wrong in ([(0, 1)], ["0"], [0.5]):
        with pytest.raises(SinkscopeError, match=r"no number of a head; give heads=\[0, 5\]"):
            attached(build("llama"), policy=sinkscope.Window(4, heads=wrong))
    with pytest.raises(SinkscopeError, match=r"use sinkscope\.PerHead"):
        attached(build("llama"), normaliser=sinkscope.Softmax1(heads=[(0, 1)]))


# --- another policy in each head --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_head_has_its_own_policy():
    model, ids = build("llama"), inputs("llama", tokens=50)["input_ids"]
    window, sinks = sinkscope.Window(9), sinkscope.SinkWindow(2, 11)
    policy = sinkscope.PerHead({(0, 1): sinkscope.Dense(), (1, 0): window, (1, 3): window}, default=sinks)
    with torch.no_grad(), attached(model, policy=policy, probes=sinkscope.ALL) as scope:
        logits = model(ids).logits
    maps = scope.record.attention_map
    alone = {}
    for name, each in (("dense", sinkscope.Dense()), ("sinks", sinks)):
        with torch.no_grad(), attached(model, policy=each, probes=[sinkscope.Maps()]) as first:
            model(ids)
        alone[name] = first.record.attention_map
    np.testing.assert_allclose(maps.sel(layer=0, head=1), alone["dense"].sel(layer=0, head=1), atol=1e-6)
    for head in (0, 2, 3):
        np.testing.assert_allclose(maps.sel(layer=0, head=head), alone["sinks"].sel(layer=0, head=head), atol=1e-6)
    second = maps.sel(layer=1, sequence=0)
    assert (second.sel(head=[0, 3])[:, 30:, :20] == 0).all()
    assert (second.sel(head=[1, 2])[:, 30:, :2].sum("map_key") > 0).all()
    np.testing.assert_allclose(maps.sum("map_key"), 1, atol=1e-5)
    for block in (50, 8):
        record = perplexity(model, ids, [policy], block=block)
        np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(logits, ids), atol=1e-4)


def test_a_table_of_gates_gives_each_key_value_head_its_policy(tmp_path):
    model = build("llama")
    gates = np.array([[0.9, 0.1], [0.2, 0.7]])
    np.savetxt(tmp_path / "gates.tsv", gates, delimiter="\t")
    given = dict(full=sinkscope.Dense(), streaming=sinkscope.Window(4))
    policy = sinkscope.PerHead.from_table(gates, **given)
    assert policy == sinkscope.PerHead.from_table(tmp_path / "gates.tsv", **given)
    assert policy == sinkscope.PerHead.from_table(torch.nn.Parameter(torch.tensor(gates)), **given)
    with pytest.raises(SinkscopeError, match="threshold=nan"):
        sinkscope.PerHead.from_table(gates, threshold=float("nan"))
    heads = model.config.num_attention_heads
    acting = [evictions[0].heads.tolist() for evictions in attached(model, policy=policy).evictions]
    assert acting == [[False] * (heads // 2) + [True] * (heads // 2), [True] * (heads // 2) + [False] * (heads // 2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sinkscope.PerHead({3: sinkscope.Dense()}), r"no \(layer, head\)"),
        (lambda: sinkscope.PerHead({(0, 1): "dense"}), "is no policy"),
        (lambda: sinkscope.PerHead({(0, 1): sinkscope.Recompute(4)}), "cannot be the policy of single heads"),
        (lambda: sinkscope.PerHead({(0, 1): sinkscope.Window(4, layers=[1])}), "says itself where it acts"),
        (lambda: sinkscope.PerHead({(0, 1): sinkscope.Window(4)}, layers=[0]), "leave out layers"),
        (lambda: sinkscope.PerHead.from_table([[0.5, np.nan]]), "got some that are not finite"),
        (lambda: sinkscope.PerHead.from_table("no such table.tsv"), "no table of gates"),
        (
            lambda: attached(build("llama"), policy=sinkscope.PerHead({(9, 0): sinkscope.Window(4)})),
            "head 0 of layer 9",
        ),
        (
            lambda: attached(build("llama"), policy=sinkscope.PerHead.from_table(np.ones((2, 9)))),
            "2 layers of 9 heads",
        ),
    ],
)
def test_wrong_tables_of_heads_are_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()
