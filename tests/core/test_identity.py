"""Whatever changes a model's numbers changes its identity, and what does not leaves it as it is."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from types import MethodType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from transformers import AutoModelForCausalLM

import sinkscope as S
from sinkscope.definition import Unknown, check_resumable
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.models.identity import difference, identity
from tests.core.test_weights import adapting
from tests.core.test_wrappers import adapted, compiled, replica
from tests.support.zoo import build, inputs, with_uneven_attention

IDS = inputs("llama", batch=1, tokens=40)["input_ids"]


def configured(family: str = "llama", **changes) -> nn.Module:
    """The tiny model of a family with the same weights under another configuration."""
    config = copy.deepcopy(build(family).config)
    for name, value in changes.items():
        setattr(config, name, value)
    return with_uneven_attention(AutoModelForCausalLM.from_config(config)).eval()


def hooked(function, path: str = "model.layers.1.mlp") -> nn.Module:
    model = build("llama")
    model.get_submodule(path).register_forward_hook(function)
    return model


def changed(path: str, name: str, value) -> nn.Module:
    model = build("llama")
    setattr(model.get_submodule(path), name, value)
    return model


def permuted() -> nn.Module:
    model = build("llama")
    with torch.no_grad():
        weights = model.model.layers[0].mlp.up_proj.weight
        weights[:8] = weights[:8].flip(0)
    return model


def zero(module, args, output):
    return output * 0


def halved(self, hidden):
    return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden)) / 2


def with_forward() -> nn.Module:
    model = build("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = MethodType(halved, mlp)
    return model


class Scaled(nn.Module):
    def forward(self, weight):
        return weight * 2


def parametrized() -> nn.Module:
    model = build("llama")
    nn.utils.parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight", Scaled())
    return model


def pruned() -> nn.Module:
    model = build("llama")
    nn.utils.prune.l1_unstructured(model.model.layers[1].mlp.up_proj, "weight", amount=0.5)
    return model


class Doubled(nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


def with_class() -> nn.Module:
    model = build("llama")
    model.lm_head.__class__ = Doubled
    return model


ROPE = {"rope_theta": 500000.0, "rope_type": "default"}
OTHERS = {  # models of other numbers, and the words for what differs from the plain one
    "rope_theta": (lambda: configured(rope_parameters=ROPE), "rope_theta was 10000.0 and now is 500000.0"),
    "rms_norm_eps": (lambda: configured(rms_norm_eps=0.1), "rms_norm_eps was 1e-06 and now is 0.1"),
    "hidden_act": (lambda: configured(hidden_act="gelu"), "hidden_act was silu and now is gelu"),
    "head split": (lambda: configured(num_attention_heads=8, num_key_value_heads=4, head_dim=8),
                   "head_dim was 16 and now is 8"),
    "a hook": (lambda: hooked(zero), "forward hook on model.layers.1.mlp was not there and now is"),
    "a hook that is a lambda": (lambda: hooked(lambda *_: _[-1] * 0), "forward hook on model.layers.1.mlp was not"),
    "a hook elsewhere": (lambda: hooked(zero, "model.norm"), "forward hook on model.norm was not there and now is"),
    "permuted": (permuted, "^it has other weights or buffers$"),
    "scaling": (lambda: changed("model.layers.1.self_attn", "scaling", 1.0),
                r"model.layers.1.self_attn.scaling was 0.25 and now is 1.0$"),
    "an epsilon": (lambda: changed("model.norm", "variance_epsilon", 0.1), "model.norm.variance_epsilon was 1e-06 and"),
    "layer_idx": (lambda: changed("model.layers.1.self_attn", "layer_idx", 0),
                  r"model.layers.1.self_attn.layer_idx was 1 and now is 0$"),
    "an activation": (lambda: changed("model.layers.1.mlp", "act_fn", nn.GELU()),
                      "model.layers.1.mlp.act_fn was transformers.activations.SiLUActivation and now is torch"),
    "a function": (lambda: changed("model.layers.0.mlp", "act_fn", nn.Identity()), "act_fn was .* and now is"),
    "forward": (with_forward, "model.layers.1.mlp.forward was not there and now is"),
    "a class": (with_class, "lm_head was torch.nn.modules.linear.Linear and now is tests.core.test_identity.Doubled"),
    "parametrized": (parametrized, "modules was .* and now is"),
    "pruned": (pruned, "forward pre-hook on model.layers.1.mlp.up_proj was not there"),
    "dtype": (lambda: build("llama", dtype=torch.bfloat16), "dtype was float32 and now is bfloat16"),
    "eager": (lambda: build("llama", "eager"), "attention was sdpa and now is eager"),
    "a dropped layer": (lambda: dropped(), "modules was"),
    "lora": (lambda: seeded(), "modules was"),
    "another configuration of a layer": (lambda: changed("model.layers.1.mlp", "config", configured(
        hidden_act="gelu").config), "model.layers.1.mlp.config.hidden_act was not there and now is gelu"),
}  # fmt: skip


def seeded() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return adapted("lora")


def dropped() -> nn.Module:
    model = build("llama")
    del model.model.layers[1]
    return model


@pytest.mark.parametrize("kind", OTHERS)
def test_what_changes_the_numbers_changes_the_identity_and_is_named(kind):
    make, words = OTHERS[kind]
    before, now = identity(build("llama")), identity(make())
    assert before != now and now == identity(make())
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(difference(before, now))
    check_resumable(now)


SAME = {
    "compiled": lambda: compiled(build("llama")),
    "a replica": lambda: replica(build("llama")),
    "a copy": lambda: copy.deepcopy(build("llama")),
    "another name": lambda: configured(_name_or_path="elsewhere"),
    "dropout": lambda: configured(attention_dropout=0.3),
    "labels": lambda: configured(id2label={0: "a", 1: "b"}),
    "use_cache": lambda: configured(use_cache=False),
    "generation": lambda: generating(),
}


def generating() -> nn.Module:
    model = build("llama")
    model.generation_config.temperature = 0.3
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAME)
def test_what_changes_no_number_leaves_the_identity(kind):
    assert difference(identity(build("llama")), identity(SAME[kind]())) == ""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss", "bloom", "mixtral", "dynamic"])
def test_the_identity_stays_when_a_model_runs(family):
    model = build(family) if family != "dynamic" else adapting()
    before = identity(model)
    S.measure(model, IDS)
    model(IDS, output_attentions=family == "llama", output_hidden_states=True)
    with S.SinkCache(model, 4, 12) as cache, torch.no_grad():
        if family != "dynamic":
            model(IDS, **with_cache(model, cache))
        assert difference(before, identity(model)) == ""
    assert identity(model) == before


@pytest.mark.slow
def test_a_hook_is_the_same_in_another_process_and_another_one_is_not():
    code = "from tests.core.test_identity import *; print(sorted(identity(hooked(zero)).items()))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(sorted(identity(hooked(zero)).items()))
    hooks = [lambda *_: _[-1] * 0.5, lambda *_: _[-1] * 0.25, functools.partial(lambda by, *_: _[-1] * by, 0.5)]
    assert len({identity(hooked(hook))["forward hook on model.layers.*.mlp"] for hook in hooks}) == 3


class Editor:
    """Its hooks change what passes, by as much as it holds, and give nothing back."""

    def __init__(self, by: float) -> None:
        self.by, self.data = by, torch.full((), by)

    def edit(self, output):
        output.mul_(self.by)

    def by_a_method(self, module, args, output):
        self.edit(output)

    def __call__(self, module, args, output):
        self.edit(output)

    def by_an_attribute(self, module, args, output):
        output.data *= self.data


def by_a_closure(by):
    def edit(output):
        output.mul_(by)

    def hook(module, args, output):
        edit(output)

    return hook


def by_an_argument(by):
    def hook(module, args, output):
        torch.mul(output, by, out=output)

    return hook


def by_a_sum(by):
    def hook(module, args, output):
        torch.add(output, by, out=output)

    return hook


def by_an_operator(by):
    def hook(module, args, output):
        output.__imul__(by)

    return hook


def by_a_dictionary(by):
    ways = {"edit": lambda output: output.mul_(by)}

    def hook(module, args, output):
        ways["edit"](output)

    return hook


def by_numpy(by):
    def hook(module, args, output):
        np.multiply(output.numpy(), by, out=output.numpy())

    return hook


def now_and_then(by):
    def hook(module, args, output):
        return output * by if by < 5 else None

    return hook


def by_a_function_within(by):
    def hook(module, args, output):
        any(each.mul_(by) is None for each in [output])

    return hook


ACTING = {
    "a method": lambda by: Editor(by).by_a_method,
    "an object": Editor,
    "an attribute": lambda by: Editor(by).by_an_attribute,
    "a closure": by_a_closure,
    "an argument": by_an_argument,
    "a sum": by_a_sum,
    "an operator": by_an_operator,
    "a dictionary": by_a_dictionary,
    "numpy": by_numpy,
    "now and then": now_and_then,
    "a function within": by_a_function_within,
}


@pytest.mark.parametrize("kind", ACTING)
def test_a_hook_that_changes_what_passes_is_told_with_what_it_holds(kind):
    models = [hooked(ACTING[kind](by)) for by in (0.5, 3.0)]
    with torch.no_grad():
        one, two = (model(IDS).logits for model in models)
    assert not torch.equal(one, two)
    assert "forward hook on model.layers.1.mlp" in difference(*map(identity, models))


class Collector:
    def __init__(self) -> None:
        self.count, self.seen, self.last = 0, [], None

    def __call__(self, module, args, output):
        self.count += 1
        self.seen.append(output.detach().float().norm(dim=-1).cpu())
        self.last = output


def collecting(seen: list):
    def hook(module, args, output):
        if isinstance(output, torch.Tensor):
            seen.append(output[0].mean().item())

    return hook


@pytest.mark.parametrize("make", [Collector, lambda: collecting([])])
def test_a_hook_that_collects_leaves_the_identity_as_it_runs(make):
    model = hooked(make())
    before = identity(model)
    model(IDS)
    assert identity(model) == before


def test_what_cannot_be_told_is_refused_for_what_is_kept():
    told = identity(hooked(lambda *_: eval("0")))
    assert isinstance(told["forward hook on model.layers.*.mlp"], Unknown)
    with pytest.raises(SinkscopeError, match=r"with the forward hook on model.layers.\*.mlp: it uses `eval"):
        check_resumable(told)


def test_what_was_put_in_the_place_of_a_library_s_method_or_function_is_told(monkeypatch):
    model = build("llama")
    before = identity(model)
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", halved)
    assert "LlamaMLP.forward was not there and now is" in difference(before, identity(model))
    monkeypatch.undo()
    monkeypatch.setattr("transformers.models.llama.modeling_llama.apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
    assert "modeling_llama.apply_rotary_pos_emb was not there" in difference(before, identity(model))
    monkeypatch.undo()
    monkeypatch.setattr(F, "silu", lambda x: x)
    assert "torch.nn.functional.silu was not there" in difference(before, identity(model))


def test_hooks_on_every_module_are_told():
    model = build("llama")
    before = identity(model)
    handle = nn.modules.module.register_module_forward_hook(zero)
    now = identity(model)
    handle.remove()
    assert "forward hook on every module was not there" in difference(before, now) and identity(model) == before


def test_the_precision_of_the_machine_is_told():
    model = build("llama")
    before, found = identity(model), {}
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast was off and now is bfloat16"] = identity(model)
    word = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    found["precision of matrix products was"] = identity(model)
    torch.set_float32_matmul_precision(word)
    torch.set_default_dtype(torch.float64)
    found["default dtype was float32 and now is float64"] = identity(model)
    torch.set_default_dtype(torch.float32)
    assert all(words in difference(before, now) for words, now in found.items()) and identity(model) == before


def test_the_identity_is_the_same_for_weights_on_the_disk(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
              "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    ).eval()
    assert difference(identity(model), identity(offloaded)) == ""
    mlp = offloaded.model.layers[1].mlp
    mlp._old_forward = MethodType(halved, mlp)
    assert "model.layers.1.mlp.forward was not there" in difference(identity(model), identity(offloaded))


def test_the_settings_of_an_adapter_are_named():
    one, two = (identity(adapted("lora", lora_alpha=alpha)) for alpha in (8, 16))
    assert "lora_alpha" in difference(one, two) or "scaling" in difference(one, two)
