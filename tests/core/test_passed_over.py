"""What a class of one's own gives and nobody would ask, or says of itself and is not so, is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import SinkscopeError, Variable, attached, capture, measure, perplexity
from sinkscope.hf.caches import growing_cache, with_cache
from sinkscope.normalisers import Normaliser, Pointwise, Sigmoid, Softmax, VirtualKey
from sinkscope.policies.base import Kept
from sinkscope.probes import HiddenProbe, LayerProbe, Measured, TileProbe
from sinkscope.reporting.passes import different
from tests.support.zoo import build, inputs

HEAD = Variable(("sequence", "head"))


def ids(tokens=40):
    return inputs("llama", tokens=tokens)["input_ids"]


def own(*bases, **members):
    return type("Own", bases, {"__module__": __name__, **members})


def squared(self, scores, lse=None, seen=None):
    return scores.softmax(-1) ** 2


def logit(self, heads, device):
    return torch.zeros(heads)


def weigh(self, scores, lse, seen):
    return (scores - lse).exp() ** 2


@pytest.mark.parametrize(
    ("kind", "asked", "unasked"),
    [
        (own(Pointwise, weights=squared, weigh=weigh), "weights", "weigh"),
        (own(VirtualKey, weights=squared, virtual_logit=logit), "weights", "virtual_logit"),
        (own(VirtualKey, Pointwise, weigh=weigh, virtual_logit=logit), "virtual_logit", "weigh"),
        (own(Softmax, weigh=weigh), "virtual_logit", "weigh"),
        (own(Sigmoid, virtual_logit=logit), "weigh", "virtual_logit"),
        (own(Normaliser, weights=squared, weigh=weigh), "weights", "weigh"),
    ],
)
def test_a_way_to_make_weights_that_nobody_asks_is_refused(kind, asked, unasked):
    with pytest.raises(
        SinkscopeError, match=f"weights of Own are made by its `{asked}`, so nobody asks the `{unasked}`"
    ):
        attached(build("llama"), normaliser=kind())


def test_a_method_that_the_weights_themselves_call_is_asked():
    kind = own(Normaliser, weights=lambda self, scores: self.weigh(scores) / 2, weigh=squared)
    with torch.no_grad(), attached(build("llama"), normaliser=kind()) as scope:
        assert scope.normaliser is not None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (own(LayerProbe, observe=lambda self, layer: {}, observe_hidden=lambda self, hidden: {}), "`observe_hidden`"),
        (own(HiddenProbe, observe_hidden=lambda self, hidden: {}, finish=lambda self, total, layer: {}), "`finish`"),
        (own(sinkscope.SinkMass, add=lambda self, total, layer, tile: None), "`add`"),
    ],
)
def test_a_measurement_that_nobody_asks_is_refused(kind, message):
    with pytest.raises(SinkscopeError, match=f"Own is a .*Probe, so nobody asks the {message} of its own"):
        measure(build("llama"), ids(), [kind()])


def test_a_probe_of_two_kinds_is_refused():
    kind = own(
        LayerProbe,
        HiddenProbe,
        makes={"one": HEAD},
        observe=lambda self, layer: {"one": layer.lse.mean(-1)},
        observe_hidden=lambda self, hidden: {},
    )
    with pytest.raises(SinkscopeError, match="Own is a LayerProbe and a HiddenProbe at once; make two probes"):
        measure(build("llama"), ids(), [kind()])


def of_lse(name, make, variable=HEAD, base=LayerProbe):
    return own(base, makes={name: variable}, observe=lambda self, layer: {name: make(layer)})()


def test_one_variable_has_one_maker_even_where_both_declare_it_alike():
    first, second = (
        of_lse("spread", lambda layer: layer.lse.std(-1)),
        of_lse("spread", lambda layer: layer.lse.mean(-1)),
    )
    other = type("Other", (type(second),), {"__module__": __name__})()
    with pytest.raises(SinkscopeError, match="Other and Own both make `spread`; give one of them"):
        measure(build("llama"), ids(), [first, other])


@pytest.mark.parametrize(
    ("variable", "make", "message"),
    [
        (
            Variable(("sequence", "kv_head")),
            lambda layer: layer.lse.mean(-1),
            "4 entries along 'kv_head', and there are 2",
        ),
        (
            Variable(("sequence", "key")),
            lambda layer: layer.key[..., 1:, 0].mean(1),
            "39 entries along 'key', and there",
        ),
        (
            HEAD,
            lambda layer: Measured(layer.lse.mean(-1)[:, :2], {"head": np.array([3, 9])}),
            r"for the heads \[3, 9\], of 4 that there are",
        ),
    ],
)
def test_arrays_of_other_lengths_than_a_layer_has_are_refused(variable, make, message):
    with pytest.raises(SinkscopeError, match=f"Own gave `one` .*{message}"):
        measure(build("llama"), ids(), [of_lse("one", make, variable)])


def test_a_variable_that_is_declared_and_never_given_is_told():
    probe = own(
        TileProbe,
        makes={"one": HEAD, "two": HEAD},
        start=lambda self, layer: torch.zeros(layer.lse.shape[:2]),
        add=lambda self, total, layer, tile: None,
        finish=lambda self, total, layer: {"one": total},
    )()
    with pytest.warns(UserWarning, match="Own declares `two` and gave it nowhere, so the record has none"):
        record = measure(build("llama"), ids(), [probe])
    assert list(record) == ["one"]


@pytest.mark.parametrize("kept", [(4, 8), Kept(0, 0), Kept(-1, 4), Kept(0, 4.5), Kept(True, 4), "4", Kept(0, None)])
def test_sizes_of_a_cache_that_are_none_are_refused(kept):
    for base in (sinkscope.Recompute, sinkscope.Window):
        policy = own(base, kept=property(lambda self: kept))(8)
        with pytest.raises(SinkscopeError, match=r"Own says by `kept` that a cache holds .*Kept"):
            perplexity(build("llama"), ids(), [policy])


@pytest.mark.parametrize("base", [sinkscope.Window, sinkscope.TOVA])
def test_a_cache_size_that_is_not_that_of_the_cache_is_refused(base):
    policy = own(base, cache_size=property(lambda self: 3))(8)
    with pytest.raises(SinkscopeError, match="Own says by `cache_size` that 3 tokens are kept, and a cache holds 8"):
        attached(build("llama"), policy=policy)
    free = own(
        sinkscope.StaticPolicy, sees=lambda self, query, key: key <= query, cache_size=property(lambda self: 3)
    )()
    with pytest.raises(SinkscopeError, match="that 3 tokens are kept, and a cache holds every one"):
        attached(build("llama"), policy=free)


def test_a_policy_with_an_equality_of_its_own_can_be_that_of_a_head():
    kind = own(sinkscope.Window, __eq__=lambda self, other: type(self) is type(other) and self.size == other.size)
    model = build("llama")
    policies = [
        sinkscope.PerHead({(0, 0): kind(8), (0, 1): kind(8)}),
        sinkscope.PerHead({(0, 0): sinkscope.Window(8), (0, 1): sinkscope.Window(8)}, label="plain"),
    ]
    losses = perplexity(model, ids(), policies)["nll"].values
    np.testing.assert_array_equal(losses[0], losses[1])


class Exact(sinkscope.ScoredPolicy):
    """Ranks that single precision cannot tell apart: the older of two keys is the better one by 1 in 2 ** 40."""

    def score(self, held):
        return 2.0**40 - held.places.double()


def test_scores_rank_as_they_are_given():
    model = build("llama")
    first = own(sinkscope.StaticPolicy, sees=lambda self, query, key: (key < 8) | (key == query))()
    losses = perplexity(model, ids(), [Exact(8), first])["nll"].values
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
    complex_scores = own(sinkscope.ScoredPolicy, score=lambda self, held: held.previous.to(torch.complex64))(8)
    with pytest.raises(SinkscopeError, match=r"`score` of Own\(.*\) gave complex numbers"):
        perplexity(model, ids(), [complex_scores])


def test_a_score_that_writes_into_the_weights_is_refused():
    policy = own(sinkscope.ScoredPolicy, score=lambda self, held: held.per_kv_head(held.weights.mul_(2).sum(2)))(8)
    with pytest.raises(SinkscopeError, match=r"`score` of Own.* changes the `weights` it is given"):
        attached(build("llama"), policy=policy)


@pytest.mark.parametrize("leave", [torch.Tensor.detach, lambda scores: torch.tensor(scores.tolist())])
def test_weights_that_left_their_graph_are_refused_in_training(leave):
    kind = own(Normaliser, weights=lambda self, scores: leave(scores).softmax(-1))
    model = build("llama")
    with attached(model, normaliser=kind()):
        logits = model(ids(12), use_cache=False).logits
        with pytest.raises(SinkscopeError, match="follow from the scores and have left their graph"):
            logits.sum().backward()


def test_weights_that_do_not_follow_from_the_scores_need_no_graph():
    kind = own(Normaliser, weights=lambda self, scores: (scores > -torch.inf) * 0.125)
    model = build("llama")
    with attached(model, normaliser=kind()):
        model(ids(12), use_cache=False).logits.sum().backward()
    assert model.model.layers[0].self_attn.v_proj.weight.grad.abs().sum() > 0


def in_parts(model, probe, sizes=(30, 10)):
    cache = growing_cache(model)
    with torch.no_grad(), capture(model, [probe]) as scope:
        for part in ids().split(list(sizes), 1):
            model(part, **with_cache(model, cache))
    return scope.record


class Largest(TileProbe):
    makes = {"largest": HEAD}  # noqa: RUF012

    def start(self, layer):
        return torch.zeros(layer.lse.shape[:2])

    def add(self, total, layer, tile):
        total[:, tile.heads] = torch.maximum(total[:, tile.heads], tile.probabilities.amax((-2, -1)))

    def finish(self, total, layer):
        return {"largest": total}


class Handed(TileProbe):
    """All attention handed out: a sum over the queries."""

    makes = {"handed": Variable(("sequence", "head"), summed=True)}  # noqa: RUF012

    def start(self, layer):
        return torch.zeros(layer.lse.shape[:2])

    def add(self, total, layer, tile):
        total[:, tile.heads] += tile.probabilities.sum((-2, -1))

    def finish(self, total, layer):
        return {"handed": total}


def test_only_sums_over_queries_go_on_in_a_later_pass():
    model = build("llama")
    for probe in (Largest(), of_lse("spread", lambda layer: layer.lse.std(-1))):
        with pytest.raises(
            SinkscopeError, match=r"\[sequence, head\] has nothing along which it goes on, .* summed=True"
        ):
            in_parts(model, probe)
        assert float(in_parts(model, probe, [40])[next(iter(probe.makes))].max()) < 10
    np.testing.assert_allclose(in_parts(model, Handed())["handed"], 40, rtol=1e-5)
    np.testing.assert_allclose(in_parts(model, Handed(), [40])["handed"], 40, rtol=1e-5)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"start": lambda self, layer: 0.0}, r"`start` of Own gave 0\.0, which `add` cannot change in place"),
        ({"add": lambda self, total, layer, tile: total + 1}, "`add` of Own gave a Tensor, which nobody takes"),
    ],
)
def test_a_sum_that_is_not_changed_in_place_is_refused(members, message):
    with pytest.raises(SinkscopeError, match=message):
        measure(build("llama"), ids(), [own(Handed, **members)()])


def test_a_rule_that_raises_is_named():
    table = torch.ones(300, 300, dtype=torch.bool)
    short = own(sinkscope.StaticPolicy, sees=lambda self, query, key: table[query, key])()
    model, text = build("llama"), torch.randint(3, 120, (1, 310))
    with torch.no_grad(), attached(model, policy=short):
        model(text[:, :300])
    with pytest.raises(SinkscopeError, match=r"`sees` of Own\(\) raised IndexError for queries up to 308"):
        perplexity(model, text, [short])


@pytest.mark.parametrize("count", [2, 3])
def test_weights_that_one_key_cannot_have_are_refused_before_anything_runs(count):
    kind = own(
        Normaliser, weights=lambda self, scores: scores.softmax(-1) * (scores >= scores.topk(count).values[..., -1:])
    )
    with pytest.raises(SinkscopeError, match="cannot be made for a query that sees 1 key, as the first ones of every"):
        attached(build("llama"), normaliser=kind())


def test_a_probe_of_a_plain_class_is_told_by_its_attributes_and_not_by_its_address():
    kind = of_lse("spread", lambda layer: layer.lse.std(-1)).__class__
    one, other = kind(), kind()
    other.width = 3
    assert repr(one) == "Own()" and repr(other) == "Own(width=3)" and one == kind() and one != other
    assert measure(build("llama"), ids(), [one])["spread"].attrs["probe"] == "Own()"
    assert different([one, kind(), other]) == [one, other]


def test_a_class_made_of_another_is_called_by_its_own_name():
    kind = own(
        sinkscope.HeavyHitters, score=lambda self, held: 0.9 * held.previous + held.per_kv_head(held.weights.sum(2))
    )
    assert kind(8, 4).name == "Own(budget=8, recent=4, chunk=1)" and sinkscope.HeavyHitters(8, 4).name == "H2O 4+4"
    named = own(sinkscope.HeavyHitters, description="decayed H2O")
    assert named(8, 4).name == "decayed H2O" and named(8, 4, heads=[1]).name == "decayed H2O, head 1"
