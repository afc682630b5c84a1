"""The value of a sink replaced, against attention written out in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers.models.llama import modeling_llama

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.hf.tiny import eager_twin
from tests.support.naive_science import heads_of
from tests.support.zoo import build


def _ids(tokens=30, batch=2):
    return torch.randint(3, 120, (batch, tokens), generator=torch.Generator().manual_seed(5))


def _states(model, ids, monkeypatch, change):
    """Final states of a float64 twin in which `change` of layer, head, weights and values gives the output."""
    twin = eager_twin(copy.deepcopy(model)).double()

    def attention(module, query, key, value, mask, scaling, dropout=0.0, **_):
        group = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(group, 1) for each in (key, value))
        scores = query @ key.mT * scaling
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        made = [change(module.layer_idx, head, weights[0, head], value[0, head]) for head in range(query.shape[1])]
        return torch.stack(made)[None].transpose(1, 2), weights

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(modeling_llama, "eager_attention_forward", attention)
        return twin.model(input_ids=ids[None], use_cache=False).last_hidden_state[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("zero", "mean", "other text", "removed"))
@pytest.mark.parametrize("heads", (None, [(0, 1), (1, 2)]))
def test_the_change_is_that_of_attention_written_out(kind, heads, monkeypatch):
    model, ids = build("llama"), _ids()
    record = sinkscope.sink_values(model, ids, kinds=kind, heads=heads)
    known = heads_of(model, ids)
    keys = [each.mean(2).argmax(-1) for each in known.maps]  # by layer, [sequence, head]
    for number, text in enumerate(ids):

        def change(layer, head, weights, value, number=number):
            if heads is not None and (layer, head) not in heads:
                return weights @ value
            key = int(keys[layer][number, head])
            value, weights = value.clone(), weights.clone()
            clean = torch.from_numpy(known.values[layer][number, head])
            other = 1 - number
            if kind == "removed":
                weights[key + 1 :, key] = 0
                weights /= weights.sum(-1, keepdim=True)
            elif kind == "zero":
                value[key] = 0
            elif kind == "mean":
                value[key] = torch.cat([clean[:key], clean[key + 1 :]]).mean(0)
            else:
                value[key] = torch.from_numpy(known.values[layer][other, head][keys[layer][other, head]])
            return weights @ value

        clean = _states(model, text, monkeypatch, lambda layer, head, weights, value: weights @ value)
        changed = _states(model, text, monkeypatch, change)
        expected = float((changed - clean).norm() / clean.norm())
        assert float(record.change.sel(intervention=kind)[number]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_what_is_drawn_follows_from_the_seed_and_a_head_that_hands_on_nothing_changes_nothing():
    model, ids = copy.deepcopy(build("llama")), _ids()
    kinds = ["ordinary", "random zero"]
    one, two, three = (sinkscope.sink_values(model, ids, kinds=kinds, seed=seed).change for seed in (0, 0, 1))
    assert (one == two).all()
    assert (one != three).all()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    assert (sinkscope.sink_values(model, ids).change == 0).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kinds": "all"}, "'all' is no entry of kinds"),
        ({"kinds": ()}, "give one or more of zero, mean"),
        ({"kinds": ("zero", "zero")}, "each once"),
        ({"heads": [(0, 1), (0, 1)]}, "a head twice"),
        ({"heads": [(9, 0)]}, "no head 0"),
        ({"heads": []}, "names no head"),
        ({"ids": _ids(2)}, "three tokens"),
        ({"ids": _ids(batch=1)}, "two texts"),
    ],
)
def test_what_cannot_be_done_is_said(given, said):
    ids = given.pop("ids", None)
    with pytest.raises(SinkscopeError, match=said):
        sinkscope.sink_values(build("llama"), _ids() if ids is None else ids, **given)


@pytest.mark.slow
def test_layers_with_a_window_of_their_own_are_left_out_and_refused_by_name():
    model = build("olmo3")
    record = sinkscope.sink_values(model, _ids(), kinds="zero")
    assert record.attrs["heads"] < 16
    assert np.isfinite(record.change).all()
    with pytest.raises(SinkscopeError, match="slides over the model's own window"):
        sinkscope.sink_values(model, _ids(), kinds="zero", heads=[(0, 0)])
    with pytest.raises(SinkscopeError, match="every layer of MistralForCausalLM slides over a window of its own"):
        sinkscope.sink_values(build("mistral_sliding"), _ids(), kinds="zero")
