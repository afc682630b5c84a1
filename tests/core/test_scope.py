"""The scope leaves the model as it found it, whatever happens inside, and one model carries one."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sinkscope import ALL, Maps, SinkMass, SinkscopeError, capture
from tests.support.model_state import state_of
from tests.support.zoo import DECODERS, ENCODERS, build, inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_capture_changes_nothing(name):
    model, given = build(name), inputs(name)
    before = copy.deepcopy(state_of(model))
    with torch.no_grad():
        plain = model(**given)[0]
        with capture(model, ALL):
            inside = model(**given)[0]
        after = model(**given)[0]
    assert torch.equal(plain, after)
    torch.testing.assert_close(inside, plain, atol=2e-5, rtol=1e-5)
    assert state_of(model) == before


def test_gradients_flow_through_a_capture():
    model, given = build("llama"), inputs("llama", tokens=12)
    grads = []
    for probed in (False, True):
        model.zero_grad()
        if probed:
            with capture(model, ALL):
                model(**given).logits.square().mean().backward()
        else:
            model(**given).logits.square().mean().backward()
        grads.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom", "falcon_rotary"])
@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_an_exception_anywhere_restores_the_model(name, problem):
    model, given = build(name), inputs(name)
    before = copy.deepcopy(state_of(model))

    def fail(*_):
        raise problem("stop")

    inner = next(module for path, module in model.named_modules() if isinstance(module, nn.Linear) and "1." in path)
    for place in (model.lm_head, inner):
        hook = place.register_forward_hook(fail)
        with pytest.raises(problem), capture(model, ALL) as scope:
            model(**given)
        hook.remove()
        if place is inner:
            with pytest.raises(SinkscopeError, match="nothing was measured"):
                _ = scope.record
    with pytest.raises(problem), capture(model):
        raise problem
    assert state_of(model) == before
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_forward_that_raised_leaves_no_trace_in_the_record():
    model, given = build("llama"), inputs("llama")
    calls = []

    def fail_second(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")

    hook = model.model.layers[1].mlp.register_forward_hook(fail_second)
    with torch.no_grad(), capture(model) as scope:
        model(**given)
        with pytest.raises(RuntimeError):
            model(**given)
        model(**given)
    hook.remove()
    record = scope.record
    assert record.sizes["sequence"] == 4
    np.testing.assert_array_equal(record.sink_mass[:2], record.sink_mass[2:])


def test_a_refused_forward_leaves_no_trace():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    with torch.no_grad(), capture(model, [SinkMass(), Maps(resolution=8)]) as scope:
        model(ids)
        with pytest.raises(SinkscopeError, match="one length"):
            model(ids[:, :30])
    assert scope.record.sizes["sequence"] == 2 and scope.record.attention_map.shape[0] == 2


def test_attaching_that_fails_half_way_leaves_no_hooks(monkeypatch):
    model = build("llama")
    before = copy.deepcopy(model.config.to_dict())

    def refuse(*_, **__):
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(model.model.layers[1].self_attn, "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="no hooks"), capture(model):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config.to_dict() == before and model.config._attn_implementation == "sdpa"


def test_nested_scopes_on_one_model_are_refused_and_the_outer_one_goes_on():
    model, given = build("llama"), inputs("llama")
    with torch.no_grad(), capture(model) as outer:
        with pytest.raises(SinkscopeError, match="carries a scope already"), capture(model.model):
            pass
        model(**given)
    assert outer.record.sizes["sequence"] == 2
    with torch.no_grad(), capture(model) as again:
        model(**given)
    np.testing.assert_array_equal(again.record.sink_mass, outer.record.sink_mass)


def test_two_models_carry_a_scope_each():
    first, second, given = build("llama"), build("gpt2"), inputs("llama")
    with torch.no_grad(), capture(first) as one, capture(second) as two:
        first(**given)
        second(**given)
    assert one.record.attrs["model_type"] == "llama" and two.record.attrs["model_type"] == "gpt2"


def test_models_that_share_a_configuration():
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    one, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    before = config._attn_implementation
    with capture(one), pytest.raises(SinkscopeError, match="shares its configuration"), capture(other):
        pass
    assert config._attn_implementation == before


def test_one_model_in_two_threads_is_refused():
    model, given = build("llama"), inputs("llama")
    problems = []

    def second(*_):
        def run():
            try:
                model(**given)
            except SinkscopeError as problem:
                problems.append(str(problem))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    hook = model.model.layers[0].mlp.register_forward_hook(second)
    with torch.no_grad(), capture(model) as scope:
        model(**given)
    hook.remove()
    assert len(problems) == 1 and "two threads" in problems[0]
    assert scope.record.sizes["sequence"] == 2
