"""Normalisers against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from sinkscope import LearnedSink, LogSumExp, Maps, SinkscopeError, Softmax, Softmax1, attached
from sinkscope.core.normalisers import normalise
from tests.zoo import build, inputs

SCORES = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4


def test_softmax1_weights_equal_the_formula():
    for query in SCORES.flatten(0, 2):
        exponentials = [math.exp(score) for score in query]
        expected = torch.tensor([e / (1 + sum(exponentials)) for e in exponentials], dtype=torch.float64)
        torch.testing.assert_close(Softmax1().weights(query[None, None, None])[0, 0, 0], expected)


def test_softmax1_is_an_extra_key_of_logit_zero():
    extended = torch.cat([SCORES, torch.zeros(2, 3, 5, 1, dtype=torch.float64)], -1).softmax(-1)
    torch.testing.assert_close(Softmax1().weights(SCORES), extended[..., :-1])


@pytest.mark.parametrize(
    "normaliser", [Softmax(), Softmax1(), LearnedSink(1.5), LearnedSink(torch.tensor([1.0, -2, 3]))]
)
def test_from_lse_equals_the_weights(normaliser):
    value = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = normaliser.weights(SCORES)
    logit = normaliser.virtual_logit(3, SCORES.device)
    output, lse = normalise(SCORES.softmax(-1) @ value, SCORES.logsumexp(-1), logit)
    torch.testing.assert_close(output, weights @ value)
    torch.testing.assert_close((SCORES - lse[..., None]).exp(), weights)


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
    # first token of the first layer: one key, so its weight is the sigmoid of its logit
    first = scope.record.log_sum_exp.values[:, 0, :, 0]  # log(1 + exp(logit))
    logit = torch.log(torch.expm1(torch.tensor(first)))
    torch.testing.assert_close(
        torch.tensor(scope.record.attention_map.values[:, 0, :, 0, 0]),
        torch.sigmoid(logit),
        atol=1e-5,
        rtol=0,
    )


def test_a_family_outside_the_interface_refuses_a_normaliser():
    with pytest.raises(SinkscopeError, match="attention interface"):
        attached(build("bloom"), normaliser=Softmax1())
