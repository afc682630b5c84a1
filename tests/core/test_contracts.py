"""Policies, normalisers and probes written outside the package work as the built-in ones do, or are refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import sinkscope
from sinkscope import SinkscopeError, attached, capture, perplexity
from sinkscope.models.facts import find_anatomy
from tests.core import naive_scored, naive_slots
from tests.zoo import build, inputs

FAMILIES = ["llama", "qwen3", "gpt_neox"]


@dataclass(frozen=True)
class Stripes(sinkscope.StaticPolicy):
    """Keys of one's own parity, and the first."""

    period: int = 3

    def sees(self, query, key):
        return ((query - key) % self.period == 0) | (key == 0)


class Plain(sinkscope.StaticPolicy):
    """No dataclass: what it is made with is an attribute."""

    def __init__(self, reach):
        super().__init__()
        object.__setattr__(self, "reach", reach)

    def sees(self, query, key):
        return query - key < self.reach


class Squared(sinkscope.Normaliser):
    """Squares of the scores, over their sum."""

    def weights(self, scores):
        squares = torch.where(scores > -torch.inf, scores**2, 0.0)
        return squares / squares.sum(-1, keepdim=True).clamp(min=1e-9)


class Hard(sinkscope.Softmax1):
    """A redefinition of `weights` below a class that is carried out by another method."""

    def weights(self, scores):
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def naive_squared(scores):
    return scores**2 / (scores**2).sum(-1, keepdim=True)


def naive_sparsemax(scores):
    """By bisection of the threshold, where `sparsemax` sorts."""
    low, high = scores.amax(-1, keepdim=True) - 1, scores.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        over = (scores - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (scores - high).clamp(min=0)


def losses_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )


# --- static policies --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("policy", [sinkscope.EveryNth(7, 5), Stripes(), Plain(6)], ids=lambda policy: policy.name)
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


# --- scored policies --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("rule", ["h2o", "tova"])
def test_scored_policies_give_what_the_naive_loop_gives(name, rule, chunk):
    model, ids = build(name), inputs(name, tokens=40)["input_ids"]
    recent = 4 if rule == "h2o" else 0
    policy = sinkscope.HeavyHitters(10, 4, chunk=chunk) if rule == "h2o" else sinkscope.TOVA(10, chunk=chunk)
    logits, maps, _ = naive_scored.run(model, ids, rule, 10, recent, chunk)
    naive_slots.check(model, ids, (logits, maps), policy=policy)
    for block in (40, 7, 1):
        record = perplexity(model, ids, [policy], block=block)
        np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(logits, ids), atol=1e-4)


@pytest.mark.parametrize("rule", ["h2o", "tova"])
def test_generation_with_a_scored_cache_follows_the_naive_loop(rule):
    model, ids = build("llama"), inputs("llama", 1, 20)["input_ids"]
    policy = sinkscope.HeavyHitters(10, 4) if rule == "h2o" else sinkscope.TOVA(10)
    with sinkscope.ScoredCache(model, policy) as cache:
        name = sinkscope.hf.caches.argument_name(model.forward)
        written = model.generate(ids, **{name: cache}, max_new_tokens=15, do_sample=False)
        places = [layer.memory.places[0].tolist() for layer in cache.kept_layers]
        assert cache.nbytes == sum(2 * 10 * layer.keys.shape[1] * layer.keys.shape[3] * 4 for layer in cache.layers)
    logits, _, ends = naive_scored.run(model, written[:, :-1], rule, 10, 4 if rule == "h2o" else 0)
    assert torch.equal(logits[0, 19:].argmax(-1), written[0, 20:])
    assert places == [each[0] for each in ends]
    plain = model.generate(ids, max_new_tokens=3, do_sample=False)  # the model is as it was
    assert plain.shape == (1, 23)


def test_a_scored_policy_of_ones_own_keeps_what_it_scores_highest():
    @dataclass(frozen=True)
    class Oldest(sinkscope.ScoredPolicy):
        def score(self, held):
            return -held.places.float()

    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    with torch.no_grad(), attached(model, policy=Oldest(8, 3), probes=[sinkscope.Maps(resolution=None)]) as scope:
        model(ids)
    maps = scope.record.attention_map.values
    seen = (maps > 0).any((0, 1, 2))  # a weight can underflow in one head
    at = np.arange(30)
    expected = (at[None] <= at[:, None]) & ((at[None] < 5) | (at[:, None] - at[None] <= 3) | (at[:, None] < 9))
    assert (seen == expected).all()


def test_scored_policies_resume_from_a_checkpoint_to_the_bit(tmp_path, monkeypatch):
    model, ids = build("llama"), inputs("llama", tokens=60)["input_ids"]
    policies = [sinkscope.HeavyHitters(10, 4, chunk=3), sinkscope.PerHead({(0, 1): sinkscope.TOVA(8)})]
    whole = perplexity(model, ids, policies, block=7)
    monkeypatch.setattr("sinkscope.streaming.checkpoint.SECONDS", 0.0)
    steps = 0

    def interrupted(*args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = sinkscope.streaming.readers.scored
    for policy in policies:
        steps = 0
        monkeypatch.setattr("sinkscope.streaming.readers.scored", interrupted)
        with pytest.raises(KeyboardInterrupt):
            perplexity(model, ids, [policy], block=7, checkpoint=tmp_path)
        monkeypatch.setattr("sinkscope.streaming.readers.scored", original)
    again = perplexity(model, ids, policies, block=7, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.nll, whole.nll)


def run_with(cache, model, ids):
    with torch.no_grad():
        return model(ids, **{sinkscope.hf.caches.argument_name(model.forward): cache}).logits


@pytest.mark.parametrize("read_before", [False, True])
def test_an_interrupted_scored_cache_is_refused_until_it_is_reset(read_before):
    model, ids = build("llama"), inputs("llama", 1, 20)["input_ids"]
    with sinkscope.ScoredCache(model, sinkscope.TOVA(6)) as cache:
        if read_before:
            run_with(cache, model, ids[:, :8])

        def interrupt(*_):
            raise KeyboardInterrupt

        hook = find_anatomy(model).parts[1].attention.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_with(cache, model, ids[:, 8:])
        hook.remove()
        with pytest.raises(SinkscopeError, match="interrupted"):
            run_with(cache, model, ids[:, 8:])
        cache.reset()
        again = run_with(cache, model, ids)
    expected, *_ = naive_scored.run(model, ids, "tova", 6, 0)
    torch.testing.assert_close(again.double(), expected, atol=1e-4, rtol=1e-4)


def test_a_scored_cache_goes_with_its_own_policy_alone():
    model, ids = build("llama"), inputs("llama", 1, 20)["input_ids"]
    with sinkscope.ScoredCache(model, sinkscope.TOVA(6)) as cache:
        run_with(cache, model, ids[:, :10])
    with pytest.raises(SinkscopeError, match="no longer on the model"):
        run_with(cache, model, ids[:, 10:])
    other = attached(model, policy=sinkscope.HeavyHitters(6, 2))
    with other, pytest.raises(SinkscopeError, match=r"one of TOVA\(budget=6.* carries HeavyHitters"):
        run_with(cache, model, ids[:, 10:])


def test_scored_policies_read_latent_attention_and_keep_its_whole_cache():
    model, ids = build("deepseek_v3"), inputs("deepseek_v3", 1, 20)["input_ids"]
    policy = sinkscope.TOVA(6)
    with torch.no_grad(), attached(model, policy=policy):
        logits = model(ids).logits
    for block in (20, 6, 1):
        nll = perplexity(model, ids, [policy], block=block).nll[0, :, 1:]
        np.testing.assert_allclose(nll, losses_of(logits, ids), atol=1e-4)
    with pytest.raises(SinkscopeError, match="caches latent states that all heads share"):
        sinkscope.ScoredCache(model, policy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sinkscope.HeavyHitters(4, 8), "cannot hold the last 8"),
        (lambda: sinkscope.TOVA(0), "give a whole budget >= 1"),
        (lambda: sinkscope.TOVA(4, chunk=0), "give a whole chunk >= 1"),
        (lambda: sinkscope.ScoredCache(build("llama"), sinkscope.Window(4)), "policy with scores"),
        (lambda: sinkscope.ScoredCache(build("bloom"), sinkscope.TOVA(4)), "attention interface"),
    ],
)
def test_scored_policies_that_cannot_be_kept_are_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda held: held.previous[:, :, :2], "expected scores"),
        (lambda held: held.previous * torch.nan, "gave NaN"),
        (lambda held: 1.0, "a float"),
    ],
)
def test_scores_that_choose_nothing_are_refused(score, message):
    class Own(sinkscope.ScoredPolicy):
        def score(self, held):
            return score(held)

    with pytest.raises(SinkscopeError, match=message):
        perplexity(build("llama"), inputs("llama", tokens=12)["input_ids"], [Own(4)])


# --- another policy in each head --------------------------------------------------------------------------------------


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
        (lambda: sinkscope.PerHead.from_table([[0.5, np.nan]]), "finite number"),
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


# --- normalisers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normaliser", "weights"),
    [(sinkscope.Sparsemax(), naive_sparsemax), (Squared(), naive_squared)],
    ids=["sparsemax", "squared"],
)
def test_a_normaliser_is_its_weights(normaliser, weights, monkeypatch):
    monkeypatch.setattr("sinkscope.attention.attend_layer.BLOCK_ENTRIES", 2 * 4 * 50 * 7)  # several blocks of rows
    model, ids = build("llama"), inputs("llama", tokens=50)["input_ids"]
    expected = naive_slots.run(model, ids, weights=weights)
    naive_slots.check(model, ids, expected, normaliser=normaliser)
    record = perplexity(model, ids, [sinkscope.Dense()], block=13, normaliser=normaliser)
    np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(expected[0], ids), atol=2e-4)
    with torch.no_grad(), attached(model, normaliser=normaliser):
        cache = sinkscope.hf.caches.growing_cache(model)
        given = sinkscope.hf.caches.with_cache(model, cache)
        parts = [model(part, **given).logits for part in (ids[:, :30], *ids[:, 30:].split(1, 1))]
    torch.testing.assert_close(torch.cat(parts, 1).double(), expected[0], atol=1e-4, rtol=1e-4)


def test_a_normaliser_acts_in_its_heads_and_under_policies():
    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]
    placed = sinkscope.Sparsemax(layers=[1], heads=[0, 2])
    expected = naive_slots.run(model, ids, weights=naive_sparsemax, layers=[1], heads=[0, 2])
    naive_slots.check(model, ids, expected, normaliser=placed)
    kept = lambda at: [key for key in range(at + 1) if key >= at - 8]  # noqa: E731
    for policy, seen, cached in (
        (sinkscope.Window(8), kept, False),
        (sinkscope.SinkWindow(2, 8), lambda at: sorted({0, 1, *kept(at)} & set(range(at + 1))), True),
    ):
        expected = naive_slots.run(model, ids, weights=naive_sparsemax, kept=seen, in_cache=cached)
        naive_slots.check(model, ids, expected, policy=policy, normaliser=sinkscope.Sparsemax())


def test_weights_redefined_below_a_quicker_form_are_what_counts():
    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    expected = naive_slots.run(model, ids, weights=lambda scores: (scores == scores.amax(-1, keepdim=True)).double())
    naive_slots.check(model, ids, expected, normaliser=Hard())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda scores: scores[..., :-1].softmax(-1), "weights have that shape"),
        (lambda scores: 3, "a int for scores"),
        (lambda scores: scores.softmax(-1) * torch.nan, "NaN or infinite"),
        (lambda scores: scores, "NaN or infinite"),
        (lambda scores: torch.ones_like(scores) / scores.shape[-1], "gives weight to hidden keys"),
        (lambda scores: scores.softmax(-2).nan_to_num(), "depend on the other queries"),
        (lambda scores: scores.softmax(0).nan_to_num(), "depend on the other texts"),
        (lambda scores: scores.softmax(1).nan_to_num(), "depend on the other heads"),
        (lambda scores: scores.softmax(-1) / scores.shape[-1], "depend on how many keys are hidden"),
    ],
)
def test_a_normaliser_that_is_none_is_refused_before_anything_runs(weights, message):
    class Own(sinkscope.Normaliser):
        def weights(self, scores):
            return weights(scores)

    model = build("llama")
    with pytest.raises(SinkscopeError, match=message):
        attached(model, normaliser=Own())
    with pytest.raises(SinkscopeError, match=message):
        perplexity(model, inputs("llama", tokens=12)["input_ids"], normaliser=Own())


# --- probes -----------------------------------------------------------------------------------------------------------


class Kurtosis(sinkscope.HiddenProbe):
    makes: ClassVar = {"kurtosis": sinkscope.Variable(("sequence", "token"), units="1", description="of hidden states")}

    def observe_hidden(self, hidden):
        centred = hidden.double() - hidden.double().mean(-1, keepdim=True)
        return {"kurtosis": (centred**4).mean(-1) / (centred**2).mean(-1) ** 2}


class Nearest(sinkscope.TileProbe):
    """Attention on the query's own key."""

    makes: ClassVar = {"own_mass": sinkscope.Variable(("sequence", "head", "query"), units="1")}

    def start(self, layer):
        return torch.zeros_like(layer.lse)

    def add(self, total, layer, tile):
        rows = torch.arange(layer.rows)[tile.rows]
        columns = torch.arange(layer.length)[tile.columns]
        total[:, tile.heads, tile.rows] += (tile.probabilities * (rows[:, None] == columns)).sum(-1)

    def finish(self, total, layer):
        return {"own_mass": total}


def test_probes_of_ones_own_are_recorded_with_what_they_declare(tmp_path):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    with torch.no_grad(), capture(model, [Kurtosis(), Nearest(), sinkscope.Maps(resolution=None)]) as scope:
        states = model(ids, output_hidden_states=True).hidden_states
    record = scope.record
    hidden = states[1].double().numpy()
    centred = hidden - hidden.mean(-1, keepdims=True)
    expected = (centred**4).mean(-1) / (centred**2).mean(-1) ** 2
    np.testing.assert_allclose(record.kurtosis.sel(layer=0), expected, rtol=1e-4)
    assert record.kurtosis.attrs["units"] == "1" and "hidden states" in record.kurtosis.attrs["long_name"]
    np.testing.assert_allclose(record.own_mass, np.diagonal(record.attention_map.values, axis1=-2, axis2=-1), atol=1e-6)
    path = sinkscope.save_record(record, tmp_path / "own.nc")
    xr.testing.assert_allclose(sinkscope.open_record(path).kurtosis, record.kurtosis)


def test_every_variable_says_its_units_and_dimensions():
    record = sinkscope.measure(
        build("gpt_oss"), inputs("gpt_oss")["input_ids"], [*sinkscope.ALL, sinkscope.OutputNorm()]
    )
    for name, held in record.data_vars.items():
        assert held.attrs["units"] and held.attrs["long_name"], name
        assert held.attrs["dims"].split() == list(held.dims), name
    whole = sinkscope.sink_mass(record)
    np.testing.assert_allclose(sinkscope.sink_mass(record.sel(layer=1)).values, whole.sel(layer=[1]).values)
    xr.testing.assert_allclose(sinkscope.value_drain(record.sel(layer=1)), sinkscope.value_drain(record).sel(layer=[1]))


@pytest.mark.parametrize(
    ("makes", "given", "message"),
    [
        ({}, {"other": torch.zeros(2, 40)}, "gave `other`, which it does not declare"),
        (
            {"one": sinkscope.Variable(("sequence", "token"))},
            {"one": torch.zeros(2)},
            r"gave `one` as torch.float32 \(2,\)",
        ),
        ({"one": sinkscope.Variable(("sequence", "token"))}, {"one": 3}, "gave `one` as int"),
        ({"one": sinkscope.Variable(("sequence", "token"))}, {"one": torch.zeros(2, 40) * 1j}, "as torch.complex64"),
        ({"one": sinkscope.Variable(("sequence", "token"))}, {"one": torch.full((2, 40), 1 << 31)}, "holds 32 bits"),
        ({"one": sinkscope.Variable(("sequence", "token"))}, None, "gave a NoneType; expected a mapping"),
        ({"one": ("sequence", "token")}, {}, "expected a sinkscope.Variable"),
        ({"one": sinkscope.Variable(("sequence", "token", "token"))}, {}, "each needs a name of its own"),
    ],
)
def test_what_a_probe_did_not_declare_is_refused(makes, given, message):
    own = type("Own", (sinkscope.HiddenProbe,), {"makes": makes, "observe_hidden": lambda self, hidden: given})
    model = build("llama")
    with pytest.raises(SinkscopeError, match=message):
        sinkscope.measure(model, inputs("llama")["input_ids"], [own()])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_probe_that_changes_what_the_model_goes_on_with_is_refused():
    class Centred(sinkscope.HiddenProbe):
        makes: ClassVar = {"norm": sinkscope.Variable(("sequence", "token"))}

        def observe_hidden(self, hidden):
            hidden -= hidden.mean(-1, keepdim=True)
            return {"norm": hidden.norm(dim=-1)}

    class Unit(sinkscope.LayerProbe):
        makes: ClassVar = {"length": sinkscope.Variable(("sequence", "kv_head", "key"))}

        def observe(self, layer):
            return {"key_length": layer.value.mul_(2).norm(dim=-1)}

    class UnitValues(Unit):
        makes: ClassVar = {"key_length": sinkscope.Variable(("sequence", "kv_head", "key"))}

    model, ids = build("llama"), inputs("llama")["input_ids"]
    for probe in (Centred(), UnitValues()):
        with pytest.raises(SinkscopeError, match="changed the model's own states in place"):
            sinkscope.measure(model, ids, [probe])
    with pytest.raises(SinkscopeError, match=r"the record itself has .*length"):
        sinkscope.measure(model, ids, [Unit()])


def test_a_hidden_probe_looks_at_the_layers_it_wants():
    class Second(Kurtosis):
        def wants(self, layer):
            return layer == 1

    record = sinkscope.measure(build("llama"), inputs("llama")["input_ids"], [Second()])
    assert record.kurtosis[:, 0].isnull().all() and record.kurtosis[:, 1].notnull().all()


def test_a_probe_of_no_kind_is_refused():
    class Nothing(sinkscope.probes.Probe):
        pass

    with pytest.raises(SinkscopeError, match="Nothing is a probe of no kind"):
        capture(build("llama"), [Nothing()])


def test_a_variable_that_was_not_measured_names_its_probe():
    record = sinkscope.measure(build("llama"), inputs("llama")["input_ids"], [Kurtosis()])
    with pytest.raises(SinkscopeError, match=r"the record has no sink_mass: measure with the probe SinkMass\(\)"):
        sinkscope.sink_mass(record)
