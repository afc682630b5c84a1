"""Attention of a user's own, whatever name it goes by and wherever it was put, is never taken for transformers' own."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

import sinkscope as S
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=1, tokens=24)["input_ids"]


@functools.wraps(sdpa_attention_forward)
def decorated(*args, **given):
    output, shown = sdpa_attention_forward(*args, **given)
    return output * 0.5, shown


def put_under_a_name_of_its_module(monkeypatch) -> str:
    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", decorated)
    return "mine"


def put_with_arguments_of_its_own(monkeypatch) -> str:
    bound = functools.partial(sdpa_attention_forward, is_causal=False)
    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", bound)
    return "mine"


def put_into_the_functions_that_models_use(monkeypatch) -> str:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", decorated)
    return "sdpa"


def put_in_the_place_of_the_eager_attention(monkeypatch) -> str:
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", decorated)
    return "eager"


def put_in_the_place_of_torchs_function(monkeypatch) -> str:
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **given: plain(*args, **given) * 0.5)
    return "sdpa"


@pytest.mark.parametrize(
    "put",
    [
        put_under_a_name_of_its_module, put_with_arguments_of_its_own, put_into_the_functions_that_models_use,
        put_in_the_place_of_the_eager_attention, put_in_the_place_of_torchs_function,
    ],
)  # fmt: skip
def test_a_function_of_a_users_own_is_refused_wherever_it_was_put(put: Callable, monkeypatch):
    model = build("llama")
    model.set_attn_implementation(put(monkeypatch))
    with pytest.raises(SinkscopeError, match=r"attends by '(mine|sdpa|eager)', a function that is none of"):
        S.measure(model, IDS)


def attends_by(attention: Callable) -> Callable:
    """A forward pass of a Llama's attention that calls a function instead of what the configuration names."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, cache=None, **given):
        rows, tokens, _ = hidden_states.shape
        cache = given.get("past_key_values") if cache is None else cache
        query, key, value = (
            project(hidden_states).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = modeling_llama.apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        causal = torch.ones(tokens, key.shape[2], dtype=torch.bool).tril(key.shape[2] - tokens)
        return self.o_proj(attention(query, key, value, causal).transpose(1, 2).reshape(rows, tokens, -1)), None

    return forward


def elsewhere(query, key, value, causal):
    return F.scaled_dot_product_attention(query * 3, key, value, causal, enable_gqa=True)


def patched(forward: Callable, layers: slice = slice(None)) -> nn.Module:
    model = build("llama")
    for layer in model.model.layers[layers]:
        layer.self_attn.forward = types.MethodType(forward, layer.self_attn)
    return model


def one_by_one(model: nn.Module, sinks: int, window: int) -> np.ndarray:
    with torch.no_grad(), S.SinkCache(model, sinks, window) as cache:
        outputs = [model(IDS[:, at : at + 1], **with_cache(model, cache)).logits[:, -1] for at in range(24)]
    return F.cross_entropy(torch.cat(outputs)[:-1], IDS[0, 1:], reduction="none").numpy()


@pytest.mark.slow
@pytest.mark.parametrize("layers", [slice(None), slice(1, 2)])
def test_a_forward_pass_of_a_users_own_is_streamed_as_what_it_is(layers):
    model = patched(attends_by(elsewhere), layers)
    losses = S.perplexity(model, IDS, [S.Dense(), S.SinkWindow(2, 5)], block=6, progress=False).nll.values[:, 0, 1:]
    with torch.no_grad():
        plain = F.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:], reduction="none")
    np.testing.assert_allclose(losses[0], plain, atol=5e-5)
    np.testing.assert_allclose(losses[1], one_by_one(model, 2, 5), atol=5e-5)
    assert np.abs(losses[0] - losses[1]).max() > 0.01  # the policy did something


def test_no_slot_is_filled_in_vain_in_a_forward_pass_of_a_users_own():
    model = patched(attends_by(elsewhere))
    with pytest.raises(SinkscopeError, match="a function of its own, so its attention cannot follow a policy"):
        S.attached(model, policy=S.Window(4))
    with pytest.raises(SinkscopeError, match="attended by a function of its own"):
        S.perplexity(model, IDS, [S.Dense()], normaliser=S.Softmax1(), progress=False)
    known = build("llama")
    S.perplexity(known, IDS, [S.SinkWindow(2, 5)], progress=False)  # what is known of it is kept
    for layer in known.model.layers:
        layer.self_attn.forward = types.MethodType(attends_by(elsewhere), layer.self_attn)
    with pytest.raises(SinkscopeError, match="attended by a function of its own"):
        S.perplexity(known, IDS, [S.SinkWindow(2, 5)], progress=False)


def directly(self, hidden_states, position_embeddings=None, attention_mask=None, cache=None, **given):
    rows, tokens, _ = hidden_states.shape
    query, key, value = (
        project(hidden_states).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    query, key = modeling_llama.apply_rotary_pos_emb(query, key, *position_embeddings)
    output = F.scaled_dot_product_attention(query * 3, key, value, is_causal=True, enable_gqa=True)
    return self.o_proj(output.transpose(1, 2).reshape(rows, tokens, -1)), None


@torch.no_grad()
def test_maps_of_a_forward_pass_that_calls_torch_itself_are_those_it_makes():
    model, truth = patched(directly), build("llama", implementation="eager")
    for layer in truth.model.layers:
        layer.self_attn.scaling *= 3
    expected = torch.cat(truth(IDS, output_attentions=True).attentions).numpy()
    ours = S.attention_maps(model, IDS, resolution=None).transpose("layer", "head", ...).values
    np.testing.assert_allclose(ours, expected, atol=1e-5)


class AttentionScale(nn.Module):
    """Something small inside an attention layer, which has a name like one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden)


class Mixing(modeling_llama.LlamaAttention):
    """Attention of another name."""


class Mixed(Mixing):
    """The same by torch itself, beside transformers' interface."""

    forward = directly


def with_a_name_inside(model: nn.Module) -> str:
    attention = model.model.layers[1].self_attn
    attention.q_proj = AttentionScale(attention.q_proj)
    return "LlamaAttention"


def under_another_name(model: nn.Module) -> str:
    model.model.layers[1].self_attn.__class__ = Mixing
    return "Mixing"


def under_another_name_by_itself(model: nn.Module) -> str:
    model.model.layers[1].self_attn.__class__ = Mixed
    return "Mixed"


@pytest.mark.parametrize("change", [with_a_name_inside, under_another_name, under_another_name_by_itself])
def test_no_slot_is_filled_where_it_would_miss_attention(change):
    model = build("llama")
    missed, before = change(model), model(IDS).logits
    for policy in (S.EveryNth(4, 6), S.TOVA(8), S.Evict((0,)), S.PerHead({(0, 0): S.Window(8)})):
        with pytest.raises(SinkscopeError, match=f"attends in {missed}, which is not known for an attention layer"):
            S.attached(model, policy=policy)
        with pytest.raises(SinkscopeError, match=f"attends in {missed}"):
            S.perplexity(model, IDS, [policy], progress=False)
    with pytest.raises(SinkscopeError, match=rf"attends in {missed}.* and Softmax1\(\) would not act there"):
        S.attached(model, normaliser=S.Softmax1())
    torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=0)


def test_a_layer_that_cannot_read_on_is_read_whole():
    """It runs twice over keys that it adds twice."""
    model = build("llama")
    forward = model.model.layers[1].self_attn.forward

    def twice(*args, **given):
        made = forward(*args, **given)
        forward(*args, **given)
        return made

    model.model.layers[1].self_attn.forward = twice
    with torch.no_grad():
        losses = F.cross_entropy(model(IDS, use_cache=False).logits[0, :-1], IDS[0, 1:], reduction="none")
    found = S.perplexity(model, IDS, [S.Dense()], progress=False).nll.values[0, 0, 1:]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    with pytest.raises(SinkscopeError, match="can be read densely, but not streamed"):
        S.perplexity(model, IDS, [S.SinkWindow(2, 8)], progress=False)
