"""Eviction in closed form against really evicting, in one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from sinkscope import Evict, EvictionEffect, ReLU, SinkscopeError, Softmax1, attached, capture, measure
from sinkscope.attention.masks import CausalMask
from sinkscope.probes.base import LayerProbe, Variable
from sinkscope.probes.eviction_effect import eviction_effect
from sinkscope.scope.interface import Sight, observed_layer
from tests.support.zoo import build, inputs

TOKENS = 40


@dataclass(frozen=True)
class HeadOutputs(LayerProbe):
    """Every number of every head's output, and the log-sum-exp."""

    makes: ClassVar = {
        "output": Variable(("sequence", "head", "query", "dim")),
        "lse": Variable(("sequence", "head", "query")),
    }

    def observe(self, layer):
        return {"output": layer.output, "lse": layer.lse}


def outputs(model, ids, policy=None, normaliser=None):
    with torch.no_grad(), attached(model, policy=policy, normaliser=normaliser, probes=[HeadOutputs()]) as scope:
        model(ids)
    return scope.record


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(0,), (0, 1, 2, 3), (2, 11)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_oss", "gemma2", "deepseek_v3", "gpt2", "softmax1"])
def test_the_change_is_that_of_evicting_in_that_layer(name, keys):
    normaliser = Softmax1() if name == "softmax1" else None
    model, ids = (
        build("llama" if normaliser else name),
        inputs("llama" if normaliser else name, tokens=TOKENS)["input_ids"],
    )
    with torch.no_grad(), attached(model, normaliser=normaliser, probes=[EvictionEffect(keys)]) as scope:
        model(ids)
    record, dense, start = scope.record, outputs(model, ids, normaliser=normaliser), max(keys) + 1
    for layer in record.layer.values:
        policy = Evict(keys, layers=[int(layer)])
        if not attached(model, policy=policy).evictions[layer]:
            continue  # a sliding layer
        evicted = outputs(model, ids, policy, normaliser).sel(layer=layer)
        here, seen = dense.sel(layer=layer), record.sel(layer=layer).isel(query=slice(start, None))
        change = (evicted.output - here.output).isel(query=slice(start, None))
        forced = (here.lse - evicted.lse).isel(query=slice(start, None))
        mass = 1 - np.exp(-forced)
        denominator = mass * evicted.output.isel(query=slice(start, None))
        for variable, expected in (
            ("log_amplification", forced),
            ("change_norm", np.sqrt((change**2).sum("dim"))),
            ("lost_denominator", np.sqrt((denominator**2).sum("dim"))),
            ("lost_value", np.sqrt(((denominator - change) ** 2).sum("dim"))),
            ("output_norm", np.sqrt((here.output**2).sum("dim")).isel(query=slice(start, None))),
        ):
            np.testing.assert_allclose(
                seen[variable].values, expected.values, atol=1e-5, rtol=1e-5, err_msg=f"{variable}, {layer}"
            )
        assert np.isnan(record.change_norm.sel(layer=layer).isel(query=slice(start)).values).all()


@pytest.mark.parametrize("strength", [0.0, 6.0, 12.0, 40.0])
def test_the_parts_add_up_however_much_is_parked(strength):
    """Against float64, up to a sink that leaves a weight of exp(-40) to all others."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, heads, 50, 16, generator=generator) for heads in (4, 2, 2))
    query[..., 0], key[..., 0], key[:, :, 0, 0] = 1, 0, strength * 4  # scores of key 0 grow by the strength
    _, layer = observed_layer(query, key, value, Sight(CausalMask(0), 0, 0))
    effect = eviction_effect(layer, (0,))
    states = [state.double().repeat_interleave(2, 1) for state in (key, value)]
    scores = (query.double() @ states[0].mT * 0.25).masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    late = slice(1, None)
    dense = scores.softmax(-1)[:, :, late]
    rest = scores[:, :, late, 1:].softmax(-1) @ states[1][:, :, 1:]
    forced = scores[:, :, late].logsumexp(-1) - scores[:, :, late, 1:].logsumexp(-1)
    handed_on = dense[..., :1] * states[1][:, :, :1]
    close = {"atol": 1e-5 * float(value.abs().max()), "rtol": 1e-5}
    torch.testing.assert_close(effect.log_amplification[:, :, late].double(), forced, **close)
    torch.testing.assert_close(effect.change[:, :, late].double(), rest - dense @ states[1], **close)
    torch.testing.assert_close(effect.value[:, :, late].double(), handed_on, atol=1e-6, rtol=1e-5)
    lost = (effect.change + effect.value)[:, :, late].double()
    torch.testing.assert_close(lost, dense[..., :1] * rest, **close)


def test_padding_makes_no_difference():
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"][:1]
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 7, dtype=torch.long), torch.ones_like(ids)], 1)
    with torch.no_grad(), capture(model, [EvictionEffect()]) as plain:
        model(ids)
    with torch.no_grad(), capture(model, [EvictionEffect()]) as moved:
        model(padded, attention_mask=mask)
    np.testing.assert_allclose(moved.record.change_norm, plain.record.change_norm, atol=1e-5, rtol=1e-5)


def test_a_model_that_shows_no_output_gives_the_amplification_alone():
    model, ids = build("bloom"), inputs("bloom", tokens=TOKENS)["input_ids"]
    with torch.no_grad(), capture(model, [EvictionEffect((0,))]) as scope:
        model(ids)
    with torch.no_grad():
        maps = model(ids, output_attentions=True).attentions
    assert "change_norm" not in scope.record
    mass = torch.stack(maps, 1)[..., 1:, 0].double()
    found = torch.from_numpy(scope.record.log_amplification.values[..., 1:]).double()
    torch.testing.assert_close(1 - torch.exp(-found), mass, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvictionEffect(()), "evicts nothing"),
        (lambda: EvictionEffect((1, 1)), "evicts nothing"),
        (lambda: EvictionEffect(3), "evicts nothing"),
        (lambda: outputs_under(normaliser=ReLU()), "not shares of a denominator"),
        (lambda: outputs_under(policy=Evict([0])), "dense pass"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


def outputs_under(**slots):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    with torch.no_grad(), attached(model, probes=[EvictionEffect()], **slots):
        model(ids)


def test_keys_behind_which_a_text_has_no_query_are_refused_before_anything_runs():
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    for last in (TOKENS - 1, TOKENS, 10**9):
        with pytest.raises(
            SinkscopeError, match=rf"queries behind place {last}, and a text of {TOKENS} tokens has none"
        ):
            measure(model, ids, [EvictionEffect((0, last))])
    record = measure(model, [ids[0], ids[1, :5]], [EvictionEffect((0, TOKENS - 2))])
    assert np.isfinite(record.change_norm[0, ..., -1]).all() and record.change_norm[0, ..., :-1].isnull().all()
