"""Policies of one's own that would be passed over, or read differently in blocks, are refused by name before a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import SinkscopeError, attached, perplexity
from sinkscope.attention.eviction import (
    Eviction,
    KeyEviction,
    RecentEviction,
    SeenEviction,
    WindowEviction,
)
from sinkscope.explorer.configuration import Configuration
from sinkscope.policies.base import Kept
from tests.core.own import losses_of
from tests.support.zoo import build, inputs


def logits_of(policy, name="llama", tokens=40):
    model, ids = build(name), inputs(name, tokens=tokens)["input_ids"]
    with torch.no_grad(), attached(model, policy=policy):
        return model(ids).logits


def own(*bases, **members):
    return type("Own", (*bases,), {"__module__": __name__, **members})


def binding(give, *bases, **members):
    return own(*(bases or (sinkscope.Policy,)), bind=lambda self, layer: give(layer), **members)()


def refused(policy, message):
    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]
    with pytest.raises(SinkscopeError, match=message):
        attached(model, policy=policy)
    with pytest.raises(SinkscopeError, match=message):
        perplexity(model, ids, [policy])


def test_heads_that_an_inner_policy_binds_are_kept_in_per_head():
    def one_head(layer):
        return (RecentEviction(recent=5, since=6, heads=torch.arange(layer.heads) == 0),)

    policy = binding(one_head)
    torch.testing.assert_close(logits_of(sinkscope.PerHead({}, default=policy)), logits_of(policy))
    others = sinkscope.PerHead({(0, 0): sinkscope.Dense(), (1, 0): sinkscope.Dense()}, default=policy)
    torch.testing.assert_close(logits_of(others), logits_of(sinkscope.Dense()), atol=1e-5, rtol=1e-4)


def near(query, key):
    return query - key <= 8


@pytest.mark.slow
def test_kept_of_a_policy_is_what_its_bind_reads():
    kept = property(lambda self: Kept(0, 8))
    sees = staticmethod(near)
    wrong = {
        "SeenEviction": own(
            sinkscope.Policy, kept=kept, sees=sees, bind=lambda self, layer: (SeenEviction(since=0, policy=self),)
        )(),
        "KeyEviction": binding(lambda layer: (KeyEviction(since=9, keys=(2,), bias=-np.inf),), kept=kept),
        "WindowEviction": binding(sinkscope.Window(4).bind, kept=kept),
        "nothing": binding(lambda layer: (), kept=kept),
    }
    for given, policy in wrong.items():
        refused(policy, rf"the last 8, and its `bind` gave {given} for other keys")
        with pytest.raises(SinkscopeError, match="leave out `kept`"):
            sinkscope.cost(build("llama"), policy, 40)
    right = binding(sinkscope.Window(8).bind, kept=kept)
    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]
    for block in (40, 7):
        record = perplexity(model, ids, [right], block=block)
        np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(logits_of(sinkscope.Window(8)), ids), atol=1e-4)
    assert Configuration(policy=right).first_affected(40) == 9
    assert Configuration(policy=binding(sinkscope.Window(5).bind, cache_size=12)).first_affected(40) == 0


def few(self, query, key):
    return query - key < 2


def older(self, held):
    return held.previous


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (own(sinkscope.TOVA, sees=few)(8), "Own is a ScoredPolicy, so nobody asks the `sees`"),
        (own(sinkscope.TOVA, bind=lambda self, layer: ())(8), "Own is a ScoredPolicy, so nobody asks the `bind`"),
        (own(sinkscope.Recompute, sees=few)(6), "Own is recomputed, so nobody asks the `sees`"),
        (own(sinkscope.Recompute, bind=lambda self, layer: ())(6), "Own is recomputed, so nobody asks the `bind`"),
        (own(sinkscope.PerHead, sees=few)(), "Own is a PerHead, so nobody asks the `sees`"),
        (binding(sinkscope.Window(9).bind, is_dense=True), "Own says by `is_dense` that .* nobody asks the `bind`"),
        (own(sinkscope.TOVA, is_dense=True, score=older)(8), "nobody asks the `score`"),
        (binding(sinkscope.Window(9).bind, sees=few), "`sees` of Own.* says otherwise than what its `bind` gave"),
        (own(sinkscope.SinkWindow, sinkscope.ScoredPolicy, score=older)(2), "a StaticPolicy and a ScoredPolicy at"),
        (own(sinkscope.StaticPolicy, recomputed=True, sees=few)(), "Own is recomputed, so nobody asks the `sees`"),
        (own(sinkscope.Policy, recomputed=True)(), "Own is recomputed and does not say by `kept` how many tokens"),
    ],
)  # fmt: skip
def test_a_method_that_nobody_asks_is_refused_by_name(policy, message):
    refused(policy, message)


def test_a_rule_that_bind_and_sees_both_tell_alike_is_carried_out():
    policy = binding(sinkscope.Window(8).bind, sees=staticmethod(near))
    torch.testing.assert_close(logits_of(policy), logits_of(sinkscope.Window(8)))


@pytest.mark.parametrize(
    "rule",
    [
        lambda query, key: (query == key) | (key > key.max() - 6) | (key < 2),
        lambda query, key: (query == key) | (key < query.min()),
        lambda query, key: (query == key) | (key >= key.numel() - 6),
        lambda query, key: (query == key) | (torch.rand(torch.broadcast_shapes(query.shape, key.shape)) > 0.5),
    ],
    ids=["last key", "first query", "count", "random"],
)
def test_a_rule_that_follows_from_more_than_places_is_refused(rule):
    refused(own(sinkscope.StaticPolicy, sees=lambda self, query, key: rule(query, key))(), "`sees` of Own.* otherwise")


def test_a_rule_may_look_into_a_table_of_the_texts_length():
    table = torch.rand(40, 40, generator=torch.Generator().manual_seed(1)) > 0.5
    policy = own(sinkscope.StaticPolicy, sees=lambda self, query, key: (query == key) | table[query, key])()
    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]
    record = perplexity(model, ids, [policy], block=7)
    np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(logits_of(policy), ids), atol=1e-4)


def written(self, held):
    held.key.zero_()
    return held.previous


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda self, held: held.key.norm(dim=-1).mean(0, keepdim=True).expand(held.previous.shape), "other texts"),
        (lambda self, held: torch.rand(held.previous.shape), "other scores when it is asked again"),
        (written, "changes the `key` it is given"),
    ],
)
def test_a_score_that_mixes_texts_or_changes_keys_is_refused(score, message):
    refused(own(sinkscope.ScoredPolicy, score=score)(8), message)


def test_settings_are_checked_where_post_init_is_ones_own():
    @dataclass(frozen=True)
    class Own(sinkscope.ScoredPolicy):
        alpha: float = 0.5

        def __post_init__(self):
            assert self.alpha > 0

        def score(self, held):
            return held.previous

    for policy, message in (
        (Own(4, 8), "a budget of 4 keys, which cannot hold the last 8"),
        (Own(4.5, 2), "give a whole budget >= 1"),
        (Own(8, 2, chunk=0), "give a whole chunk >= 1"),
    ):
        refused(policy, message)
        with pytest.raises(SinkscopeError, match=message):
            sinkscope.cost(build("llama"), policy, 40)


def test_no_cost_is_given_for_a_policy_that_hides_a_query_from_itself():
    policy = own(sinkscope.StaticPolicy, sees=lambda self, query, key: key < query)()
    with pytest.raises(SinkscopeError, match="query 0 does not see its own key"):
        sinkscope.cost(build("llama"), policy, 40)


@dataclass(frozen=True, kw_only=True, eq=False)
class ByRule(Eviction):
    rule: object = field(default=None)

    def sees(self, query, key):
        return self.rule(query, key)


@pytest.mark.parametrize(
    ("eviction", "message"),
    [
        (ByRule(since=3, rule=lambda query, key: (key < 0) & (query < 0)), "hides every key from query 3"),
        (ByRule(since=0, rule=lambda query, key: (query - key < 4).int()), "int32 numbers .*booleans"),
        (ByRule(since=0, rule=lambda query, key: key > key.max() - 6), "ByRule, which `bind` of Own.* otherwise"),
        (KeyEviction(since=0, keys=(0, 1), bias=-np.inf), "hides every key from query 0"),
        (KeyEviction(since=3, keys=(0, 1), values="nope"), "values='nope'; give one of kept"),
        (RecentEviction(recent=2, since=3, heads=torch.tensor([0, 1])), "it has to give 4 booleans"),
        (RecentEviction(recent=2, since=3, heads=torch.ones(2, dtype=torch.bool)), "it has to give 4 booleans"),
    ],
)
def test_a_bound_eviction_that_cannot_be_carried_out_is_refused(eviction, message):
    refused(binding(lambda layer: (eviction,)), message)
    if eviction.heads is None:
        refused(sinkscope.PerHead({(0, 1): binding(lambda layer: (eviction,))}), message)


@pytest.mark.slow
def test_an_eviction_of_ones_own_is_carried_out():
    policy = binding(lambda layer: (ByRule(since=0, rule=lambda query, key: query - key < 4),))
    torch.testing.assert_close(logits_of(policy), logits_of(sinkscope.Window(3)), atol=1e-5, rtol=1e-4)
    sinks = binding(lambda layer: (WindowEviction(sinks=4, window=3, rotation=None, since=8),))
    torch.testing.assert_close(logits_of(sinks), logits_of(sinkscope.SinkWindow(4, 3, "original")))
    turned = binding(lambda layer: tuple(replace(each) for each in sinkscope.SinkWindow(2, 6).bind(layer)))
    torch.testing.assert_close(logits_of(turned), logits_of(sinkscope.SinkWindow(2, 6)))


def test_coordinates_of_ones_own_have_the_names_of_all_policies():
    few = own(sinkscope.Window, coordinates=property(lambda self: {"policy_kind": "x"}))(5)
    more = own(sinkscope.Window, coordinates=property(lambda self: sinkscope.Window(5).coordinates | {"extra": 3}))(5)
    for policy, message in ((few, "`coordinates` of Own lack cache_size"), (more, "`coordinates` of Own add extra")):
        refused(policy, message)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [sinkscope.TOVA(9), sinkscope.HeavyHitters(9, 4, chunk=3)], ids=lambda each: each.name
)
def test_scored_policies_run_where_cached_keys_cannot_be_moved(policy):
    model, ids = build("gpt2"), inputs("gpt2", tokens=40)["input_ids"]
    expected = losses_of(logits_of(policy, "gpt2"), ids)
    for block in (40, 7, 1):
        record = perplexity(model, ids, [policy], block=block)
        np.testing.assert_allclose(record.nll[0, :, 1:], expected, atol=1e-4)
    with torch.no_grad(), sinkscope.ScoredCache(model, policy) as cache:
        parts = [model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(40)]
    np.testing.assert_allclose(losses_of(torch.cat(parts, 1), ids), expected, atol=1e-4)


@pytest.mark.parametrize("most", [8, 12, 40, 200])
def test_a_rule_that_goes_by_the_last_query_that_it_is_asked_of_is_refused(most):
    def sees(self, query, key):
        return query - key < (4 if query.max() > most else 8)

    refused(own(sinkscope.StaticPolicy, sees=sees)(), "answers otherwise for the same places")
