"""Normalisers against their definitions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from sinkscope import (
    ClippedSoftmax,
    LearnedSink,
    LogSumExp,
    Maps,
    ReLU,
    Sigmoid,
    SinkscopeError,
    Softmax,
    Softmax1,
    attached,
)
from tests.support import naive_slots
from tests.support.zoo import build, inputs

SCORES = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
LOGITS = torch.tensor([1.0, -2, 3, 0.5])
DEFINED = [
    (Softmax(), naive_slots.softmax),
    (Softmax1(), naive_slots.softmax1),
    (LearnedSink(LOGITS), naive_slots.learned_sink(LOGITS)),
    (ClippedSoftmax(-0.05, 1.1), naive_slots.clipped(-0.05, 1.1)),
    (Sigmoid(), naive_slots.sigmoid(None)),
    (Sigmoid(-1.5), naive_slots.sigmoid(-1.5)),
    (ReLU(), naive_slots.relu),
]
IDS = [repr(normaliser)[:20] for normaliser, _ in DEFINED]


@pytest.mark.parametrize(("normaliser", "defined"), DEFINED, ids=IDS)
def test_weights_equal_the_definition_and_hidden_keys_get_none(normaliser, defined):
    torch.testing.assert_close(normaliser.weights(SCORES), defined(SCORES))
    for lowest in (-torch.inf, torch.finfo(torch.float64).min):
        hidden = SCORES.clone()
        hidden[..., 5:] = lowest
        weights = normaliser.weights(hidden)
        torch.testing.assert_close(weights[..., :5], defined(SCORES[..., :5]))
        assert (weights[..., 5:] == 0).all()


def test_softmax1_is_an_extra_key_of_logit_zero():
    extended = torch.cat([SCORES, torch.zeros(2, 4, 5, 1, dtype=torch.float64)], -1).softmax(-1)
    torch.testing.assert_close(Softmax1().weights(SCORES), extended[..., :-1])


@pytest.mark.parametrize(("normaliser", "defined"), DEFINED, ids=IDS)
def test_a_model_and_all_probes_follow_the_normaliser(normaliser, defined):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    expected = naive_slots.run(model, ids, weights=defined)
    record = naive_slots.check(model, ids, expected, normaliser=normaliser)
    assert record.attrs["normaliser"] == repr(normaliser)


@pytest.mark.parametrize(("normaliser", "defined"), DEFINED[1:5], ids=IDS[1:5])
def test_chosen_layers_and_heads_alone_follow_it(normaliser, defined):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    placed = type(normaliser)(**{**vars(normaliser), "layers": [1], "heads": [0, 3]})
    expected, maps = naive_slots.run(model, ids, weights=defined, layers=[1], heads=[0, 3])
    with torch.no_grad(), attached(model, normaliser=placed, probes=[Maps(resolution=None), LogSumExp()]) as scope:
        logits = model(ids).logits
    torch.testing.assert_close(logits.double(), expected, atol=5e-5, rtol=1e-4)
    np.testing.assert_allclose(scope.record.attention_map.values, torch.stack(maps, 1).numpy(), atol=1e-5)


def test_a_learned_sink_is_what_gpt_oss_does_itself():
    model, ids = build("gpt_oss"), inputs("gpt_oss")["input_ids"]
    own = [layer.self_attn.sinks for layer in model.model.layers]
    bare = copy.deepcopy(model)
    for layer in bare.model.layers:
        layer.self_attn.sinks.data.fill_(-torch.inf)  # without the model's own
    with torch.no_grad():
        expected = model(ids).logits
        with attached(model, normaliser=LearnedSink(own[0].detach(), layers=[0])):
            torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-4)
        with attached(model, normaliser=Softmax()):
            without = model(ids).logits
        torch.testing.assert_close(without, bare(ids).logits, atol=2e-5, rtol=1e-4)
    assert (without - expected).abs().max() > 1e-3


def test_softmax1_on_a_model_leaves_the_missing_mass_to_the_virtual_sink():
    model, given = build("llama"), inputs("llama")
    with torch.no_grad():
        before = model(**given).logits
        with attached(model, normaliser=Softmax1(), probes=[LogSumExp(), Maps(resolution=None)]) as scope:
            changed = model(**given).logits
        after = model(**given).logits
    assert torch.equal(before, after) and (before - changed).abs().max() > 1e-3
    rows = scope.record.attention_map.sum("map_key")
    torch.testing.assert_close(
        torch.tensor(1 - rows.values), torch.tensor(scope.record.virtual_sink_mass.values), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize(("normaliser", "defined"), DEFINED, ids=IDS)
def test_gradients_are_those_of_a_plain_version(normaliser, defined):
    """The loss of a model in training, its attention's gradient against autograd through the definition in float64."""
    model, ids = build("llama"), inputs("llama")["input_ids"]
    double = copy.deepcopy(model).double()
    with attached(model, normaliser=normaliser):
        loss = model(ids, labels=ids).loss
        loss.backward()
    expected = naive_slots.loss(double, ids, defined)
    expected.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), atol=1e-5, rtol=1e-5)
    for (name, parameter), reference in zip(model.named_parameters(), double.parameters(), strict=True):
        error = (parameter.grad.double() - reference.grad).abs().max()
        assert error < 2e-4 * reference.grad.abs().max() + 1e-7, name
    model.zero_grad(set_to_none=True)


def test_a_learned_logit_gets_its_gradient():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    logit = LOGITS.clone().requires_grad_()
    with attached(model, normaliser=LearnedSink(logit)):
        model(ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)
    for head in range(4):
        losses = []
        for step in (-1e-2, 1e-2):
            moved = LOGITS.clone()
            moved[head] += step
            losses.append(float(naive_slots.loss(copy.deepcopy(model).double(), ids, naive_slots.learned_sink(moved))))
        assert math.isclose(logit.grad[head], (losses[1] - losses[0]) / 2e-2, rel_tol=1e-2, abs_tol=1e-6)


def test_a_family_outside_the_interface_refuses_a_normaliser():
    with pytest.raises(SinkscopeError, match="attention interface"):
        attached(build("bloom"), normaliser=Softmax1())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClippedSoftmax(gamma=0.1), "gamma <= 0"),
        (lambda: ClippedSoftmax(zeta=0.9), "zeta >= 1"),
        (lambda: ClippedSoftmax(gamma=math.nan), "gamma <= 0"),
        (lambda: Sigmoid(bias=math.inf), "finite bias"),
        (lambda: attached(build("llama"), normaliser=Softmax1), "is not a normaliser"),
        (lambda: attached(build("llama"), normaliser=Softmax1(layers=[2])), "layer 2 .* layers 0 to 1"),
        (lambda: attached(build("llama"), normaliser=Softmax1(heads=[4])), "head 4 .* heads 0 to 3"),
        (lambda: attached(build("llama"), normaliser=Softmax1(heads=[])), "acts in no head"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()
