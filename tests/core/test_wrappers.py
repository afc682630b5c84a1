"""Models inside wrappers (adapters, compiled, a trainer's): what is handed over is what runs and is guarded."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sinkscope as S
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.hf.models import core
from sinkscope.models.weights import weights_hash
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=1, tokens=24)["input_ids"]
OTHER = inputs("llama", batch=1, tokens=40, seed=7)["input_ids"]


def adapted(kind: str, seed: int = 3, **options) -> nn.Module:
    """A tiny llama with an adapter of random weights."""
    peft = pytest.importorskip("peft")
    settings = {
        "lora": lambda: peft.LoraConfig(r=4, task_type="CAUSAL_LM", **options),
        "dora": lambda: peft.LoraConfig(r=4, use_dora=True, task_type="CAUSAL_LM"),
        "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
        "oft": lambda: peft.OFTConfig(oft_block_size=8, r=0, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "encoded prompt": lambda: peft.PromptEncoderConfig(
            num_virtual_tokens=4, encoder_hidden_size=16, task_type="CAUSAL_LM"
        ),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    }
    base = build("llama", implementation="eager" if kind in ("prompt", "encoded prompt", "prefix") else None)
    model, generator = peft.get_peft_model(base, settings[kind]()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:  # what the adapter brings
                weights.add_(0.2 * torch.randn(weights.shape, generator=generator))
    return model.eval()


def replica(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)  # on a machine without GPUs it calls the model inside


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


ADAPTERS = ("lora", "dora", "ia3", "oft")
VIRTUAL = ("prompt", "encoded prompt", "prefix")
WRAPPERS = {
    **{kind: lambda kind=kind: adapted(kind) for kind in ADAPTERS},
    "replica": lambda: replica(build("llama")),
    "compiled": lambda: compiled(build("llama")),
    "compiled lora": lambda: compiled(adapted("lora")),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRAPPERS)
@torch.no_grad()
def test_what_is_handed_over_is_what_is_measured_and_streamed(kind):
    model = WRAPPERS[kind]()
    truth = model(IDS).logits
    record = S.measure(model, IDS, [S.SinkMass(), S.Maps()])
    with S.capture(model, [S.Maps()]) as scope:
        torch.testing.assert_close(model(IDS).logits, truth, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(record.attention_map, scope.record.attention_map)
    losses = S.perplexity(model, IDS, [S.Dense(), S.SinkWindow(2, 5)], progress=False).nll.values[:, 0, 1:24]
    expected = nn.functional.cross_entropy(truth[0, :-1], IDS[0, 1:], reduction="none")
    np.testing.assert_allclose(losses[0], expected, atol=5e-5)
    with S.SinkCache(model, 2, 5) as cache:
        outputs = [model(IDS[:, at : at + 1], **with_cache(model, cache)).logits[:, -1] for at in range(24)]
    cached = nn.functional.cross_entropy(torch.cat(outputs)[:-1], IDS[0, 1:], reduction="none")
    np.testing.assert_allclose(losses[1], cached, atol=5e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "oft"])
def test_the_record_names_the_wrapper_and_the_model_inside(kind):
    attributes = S.measure(adapted(kind), IDS).attrs
    assert attributes["wrapper"] == "PeftModelForCausalLM" and attributes["model"] == "LlamaForCausalLM"
    assert "wrapper" not in S.measure(build("llama"), IDS).attrs


def around_generate(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.DataParallel) else model


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_prompt_of_another_conversation_is_refused_as_on_a_plain_model(kind):
    model = WRAPPERS[kind]()
    # no end and no padding: what random weights write may be either
    options = dict(max_new_tokens=4, do_sample=False, suppress_tokens=[0, 1])
    generating = around_generate(model)
    with S.SinkCache(model, 2, 40) as cache:
        first = generating.generate(input_ids=IDS, **with_cache(build("llama"), cache), **options)
        with pytest.raises(SinkscopeError, match="does not continue"):
            generating.generate(input_ids=OTHER, **with_cache(build("llama"), cache), **options)
        more = torch.cat([first, OTHER[:, :3]], 1)
        second = generating.generate(input_ids=more, **with_cache(build("llama"), cache), **options)
    assert torch.equal(second, generating.generate(input_ids=more, **options))
    assert "prepare_inputs_for_generation" not in vars(core(model))


def test_a_prompt_is_refused_where_generate_is_called_on_a_model_around_that_of_the_cache():
    model, options = build("llama"), dict(max_new_tokens=4, do_sample=False)
    with S.SinkCache(model.model, 2, 40) as cache:
        first = model.generate(IDS, **with_cache(model, cache), **options)
        assert torch.equal(first, model.generate(IDS, **options))
        with pytest.raises(SinkscopeError, match="on a model around the LlamaModel that this cache was made for"):
            model.generate(OTHER, **with_cache(model, cache), **options)
        cache.reset()
        again = model.generate(OTHER, **with_cache(model, cache), **options)
    assert torch.equal(again, model.generate(OTHER, **options))


def test_what_somebody_else_put_on_a_model_is_called_and_stays():
    model, calls = build("llama"), []
    original = model.prepare_inputs_for_generation

    def own(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    model.prepare_inputs_for_generation = own
    with S.SinkCache(model, 2, 40) as cache:
        model.generate(IDS, **with_cache(model, cache), max_new_tokens=2, do_sample=False)
        with pytest.raises(SinkscopeError, match="does not continue"):
            model.generate(OTHER, **with_cache(model, cache), max_new_tokens=2, do_sample=False)
    assert calls and model.prepare_inputs_for_generation is own


@pytest.mark.parametrize("kind", VIRTUAL)
@torch.no_grad()
def test_virtual_tokens_are_seen_by_a_capture_around_a_call_of_the_whole(kind):
    model = adapted(kind)
    layers = [layer.self_attn for layer in model.get_base_model().model.layers]
    expected = []
    hooks = [layer.register_forward_hook(lambda *call: expected.append(call[-1][1][0])) for layer in layers]
    model(IDS)
    for hook in hooks:
        hook.remove()
    assert expected[0].shape[-1] == IDS.shape[1] + 4
    with S.capture(model, [S.SinkMass(first=1)]) as scope:
        model(IDS)
    record = scope.record
    assert int(record.length.sum()) == IDS.shape[1] + 4
    mass = torch.stack(expected)[..., 0]  # [layer, head, query] on the first key, a virtual one
    found = record.sink_mass.values.squeeze()[..., -mass.shape[-1] :]  # those of a prefix are keys, and no queries
    np.testing.assert_allclose(found, mass, atol=2e-6)


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize(
    "call",
    [
        lambda model: S.measure(model, IDS),
        lambda model: S.attention_maps(model, IDS),
        lambda model: S.perplexity(model, IDS, [S.Dense()]),
        lambda model: S.SinkCache(model, 2, 5),
        lambda model: S.cost(model, S.Dense(), 10),
        lambda model: S.ablate(model, IDS, sinks=[0], cache_size=8),
    ],
)
def test_virtual_tokens_are_refused_by_name_where_the_tool_runs_the_model(kind, call):
    model = adapted(kind)
    with pytest.raises(
        SinkscopeError, match="PeftModelForCausalLM changes what its LlamaForCausalLM reads: it reads 10"
    ):
        call(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_of_an_adapter_alone_is_refused():
    model = adapted("lora", lora_dropout=0.1)
    S.measure(model, IDS)
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_dropout.train()
    with pytest.raises(SinkscopeError, match="training mode"):
        S.measure(model, IDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_what_an_adapter_makes_of_its_weights_anew_counts_once_a_forward_pass(kind):
    """Counted by torch's own counter over real forward passes of 1 and of 6 tokens, without a cache."""

    def flops(tokens: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(IDS[:, :tokens], use_cache=False, logits_to_keep=1)
        return counter.get_total_flops()

    model = adapted(kind)
    model.set_attn_implementation("eager")
    assert S.cost(model, S.Recompute(6), 1).flops == flops(1)
    hidden = 2 * (36 - 21) * 2 * 4 * (16 + 16)  # pairs that the mask hides, in 2 layers of 4 heads
    assert S.cost(model, S.Recompute(6), 50).flops_per_token == flops(6) - hidden


def test_a_merged_adapter_gives_what_it_gave_unmerged():
    model = adapted("lora")
    before = S.measure(model, IDS).sink_mass
    merged = copy.deepcopy(model).merge_and_unload()
    np.testing.assert_allclose(S.measure(merged, IDS).sink_mass, before, atol=2e-5)
    assert weights_hash(merged) != weights_hash(model)


def test_the_hash_sees_an_adapter_its_scale_and_whether_it_is_on():
    model = adapted("lora")
    hashes = {weights_hash(model), weights_hash(build("llama")), weights_hash(adapted("lora", seed=4))}
    hashes.add(weights_hash(adapted("lora", lora_alpha=16)))
    with model.disable_adapter():
        hashes.add(weights_hash(model))
    assert len(hashes) == 5 and weights_hash(model) in hashes and weights_hash(copy.deepcopy(model)) in hashes


def test_the_hash_is_that_of_the_model_inside_for_wrappers_that_add_nothing():
    expected = weights_hash(build("llama"))
    assert {weights_hash(compiled(build("llama"))), weights_hash(replica(build("llama")))} == {expected}


@pytest.mark.slow
def test_a_cache_goes_on_under_another_wrapper_of_the_same_weights_and_not_with_an_adapter(tmp_path):
    model = build("llama")
    with S.SinkCache(model, 2, 5) as cache, torch.no_grad():
        model(IDS, **with_cache(model, cache))
        cache.save(tmp_path / "cache.safetensors")
    with S.SinkCache.load(tmp_path / "cache.safetensors", compiled(build("llama"))) as again:
        assert again.seen == 24
    with pytest.raises(SinkscopeError, match="saved with a LlamaForCausalLM, and this"):
        S.SinkCache.load(tmp_path / "cache.safetensors", adapted("lora"))


@torch.no_grad()
def test_an_adapter_that_acts_from_certain_tokens_on_reads_a_text_whole():
    model = adapted("lora", alora_invocation_tokens=[int(IDS[0, 15])])
    expected = nn.functional.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:], reduction="none")
    losses = S.perplexity(model, IDS, [S.Dense()], block=5, progress=False).nll.values[0, 0, 1:]
    np.testing.assert_allclose(losses, expected, atol=5e-5)
    with pytest.raises(SinkscopeError, match="other numbers for a text that it reads in parts"):
        S.SinkCache(model, 2, 5)
    with model.disable_adapter(), S.SinkCache(model, 2, 5):
        pass


class Around(nn.Module):
    """A wrapper of a user's own, that hands everything on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids, **given):
        return self.inner(input_ids=input_ids, **given)


class Reversing(Around):
    def forward(self, input_ids, **given):
        return super().forward(input_ids.flip(1), **given)


class Hiding(Around):
    def forward(self, input_ids, **given):
        seen = (torch.arange(input_ids.shape[1]) % 3 != 1).long().expand(len(input_ids), -1)
        return super().forward(input_ids, **given, attention_mask=seen)


class Moving(Around):
    def forward(self, input_ids, **given):
        return super().forward(input_ids, **given, position_ids=100 + torch.arange(input_ids.shape[1])[None])


class Longer(Around):
    """Puts a token before texts that are not very short."""

    def forward(self, input_ids, **given):
        before = torch.ones_like(input_ids[:, : input_ids.shape[1] > 4])
        return super().forward(torch.cat([before, input_ids], 1), **given)


class Bare(Around):
    def forward(self, input_ids, **given):
        return super().forward(input_ids, **given).logits


class LastAlone(Around):
    def forward(self, input_ids, **given):
        made = super().forward(input_ids, **given)
        made.logits = made.logits[:, -1:]
        return made


class Cutting(Around):
    """Reads no more than the last tokens of long texts."""

    def forward(self, input_ids, **given):
        return super().forward(input_ids[:, -8:], **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, said",
    [
        (Reversing, "reads other tokens than it is given"),
        (Hiding, "hides some of the tokens"),
        (Moving, "counts positions in a way of its own"),
        (Longer, "reads 7 tokens where it is given 6"),
        (Bare, "gives no `logits` for each"),
        (LastAlone, "gives no `logits` for each"),
    ],
)
def test_a_wrapper_that_does_more_than_hand_on_is_refused_where_the_tool_runs_the_model(kind, said):
    for policy in (S.Dense(), S.SinkWindow(2, 5)):
        with pytest.raises(SinkscopeError, match=said):
            S.perplexity(kind(build("llama")), IDS, [policy], progress=False)
    plain = [
        S.perplexity(each, IDS, [S.Dense(), S.SinkWindow(2, 5)], progress=False)
        for each in (build("llama"), Around(build("llama")))
    ]
    np.testing.assert_array_equal(plain[0].nll, plain[1].nll)


def test_a_wrapper_that_cuts_long_texts_alone_gives_no_losses_of_them():
    with pytest.raises(SinkscopeError, match="gave logits for other tokens than the 23 that it read"):
        S.perplexity(Cutting(build("llama")), IDS, [S.Dense()], progress=False)
