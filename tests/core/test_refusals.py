"""Arguments and models that cannot be used are refused with a sentence."""

from __future__ import annotations

import copy

import pytest
import torch

from sinkscope import (
    FREE,
    TOVA,
    EveryNth,
    LearnedSink,
    LogSumExp,
    Maps,
    Reach,
    Recompute,
    ScoredCache,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    Softmax1,
    attached,
    attend,
    capture,
    measure,
    perplexity,
    recall,
    sink_values,
)
from sinkscope.hf.tiny import tiny_model
from tests.support.model_state import hooks_of
from tests.support.zoo import build, inputs


def test_a_probe_given_twice():
    with pytest.raises(SinkscopeError, match="SinkMass is given twice"):
        capture(build("llama"), [SinkMass(1), LogSumExp(), SinkMass(4)])


def test_not_a_probe():
    with pytest.raises(SinkscopeError, match="not a probe"):
        capture(build("llama"), [SinkMass])


@pytest.mark.parametrize(
    "make", [lambda: SinkMass("4"), lambda: SinkMass(2.5), lambda: Maps(layers=1), lambda: Maps(heads=[])]
)
def test_probe_arguments_of_another_type(make):
    with pytest.raises(SinkscopeError):
        make()


def test_nothing_to_measure_and_nothing_measured():
    model, given = build("llama"), inputs("llama")
    with torch.no_grad(), capture(model) as scope:
        pass
    with pytest.raises(SinkscopeError, match="nothing was measured"):
        _ = scope.record
    with torch.no_grad(), attached(model) as scope:
        model(**given)
    assert not scope.record.data_vars and scope.record.length.values.tolist() == [40, 40]


@pytest.mark.parametrize(
    ("model", "ids", "probes", "message"),
    [
        ("gpt2", [5, 6, 7, 8], None, "loaded model"),
        (None, "In the beginning", None, "not texts"),
        (None, {"input_ids": [5, 6]}, None, "return_tensors"),
        (None, [5, 6, 7, 8], SinkMass(), None),
        (None, [5, 6, 7, 8], [Maps], "not a probe"),
    ],
)
def test_measure_takes_what_it_is_meant_for(model, ids, probes, message):
    model = build("llama") if model is None else model
    if message is None:
        assert measure(model, ids, probes).length.values.tolist() == [4]  # a list of ids is one text
    else:
        with pytest.raises(SinkscopeError, match=message):
            measure(model, ids, probes)


@pytest.mark.parametrize(
    ("normaliser", "message"),
    [(Softmax1, "not a normaliser"), (LearnedSink(torch.zeros(3)), "3 logits"), (LearnedSink(float("nan")), "NaN")],
)
def test_normalisers_that_do_not_fit(normaliser, message):
    model, given = build("llama"), inputs("llama")
    with pytest.raises(SinkscopeError, match=message), attached(model, normaliser=normaliser):
        model(**given)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 3, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4)],
        [(1, 2, 5, 4), (1, 2, 3, 4), (1, 2, 3, 4)],
        [(2, 5, 4), (2, 5, 4), (2, 5, 4)],
        [(1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 6, 4)],
        [(1, 2, 5, 4), (1, 2, 5, 8), (1, 2, 5, 4)],
    ],
)
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(SinkscopeError):
        attend(*(torch.randn(shape) for shape in shapes))


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(name, bad):
    model, given = build(name), inputs(name)
    path = {
        "llama": "model.layers.0.mlp.up_proj.weight",
        "bloom": "transformer.h.0.mlp.dense_h_to_4h.weight",
    }[name]
    before = copy.deepcopy(hooks_of(model))
    with torch.no_grad():
        model.get_parameter(path)[3, 3] = bad
        for probes in (FREE, [SinkMass()]):
            with pytest.raises(SinkscopeError, match=path.replace(".", r"\.")), capture(model, probes):
                model(**given)
    assert hooks_of(model) == before


def test_dropout_is_refused():
    model = build("llama")
    model.config.attention_dropout = 0.1
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    model.train()
    with pytest.raises(SinkscopeError, match=r"model\.eval"), capture(model):
        model(**inputs("llama"))
    assert model.training


@pytest.mark.parametrize("kind", ["openai-gpt", "big_bird", "doge", "cpmant", "mpt"])
def test_what_a_refusal_names_instead_is_not_refused_in_turn(kind):
    model, ids = tiny_model(kind), torch.randint(3, 120, (1, 16))
    policies = [SinkWindow(2, 8), SinkWindow(2, 8, positions="original"), EveryNth(4, 6), TOVA(8), Recompute(8)]
    for policy in policies:
        try:
            attached(model, policy=policy)
        except SinkscopeError as refusal:
            if "use sinkscope.perplexity" in str(refusal):
                perplexity(model, ids, [policy], progress=False)


def test_no_advice_is_given_to_measure_a_scored_policy_where_layers_make_their_own_mask():
    model = tiny_model("deepseek_v32")
    with pytest.raises(SinkscopeError, match=r"layers make no mask of their own, sinkscope\.perplexity"):
        ScoredCache(model, TOVA(8))


@pytest.mark.parametrize("heads", [range(3), [1.7, 2.0], [(0,)], [(0.5, 1)], "ab"], ids=repr)
def test_heads_that_are_no_pairs(heads):
    ids = torch.randint(3, 120, (1, 16))
    with pytest.raises(SinkscopeError, match="are no pairs"):
        sink_values(build("llama"), ids, kinds="zero", heads=heads)


def test_a_normaliser_that_is_none():
    ids = torch.randint(3, 120, (1, 120))
    with pytest.raises(SinkscopeError, match=r"\[40, 44\] is not a normaliser"):
        recall(build("llama"), ids, distances=20, passage=8, passages=1, normaliser=[40, 44], progress=False)


def test_more_sinks_than_tokens_are_all_tokens():
    ids = torch.randint(3, 120, (1, 16))
    model = build("llama")
    with torch.no_grad(), capture(model, [Reach(sinks=(16, 51246), windows=4)]) as scope:
        model(ids)
    found = scope.record.reach
    assert found.values == pytest.approx(1.0, abs=1e-5)  # which is all attention
