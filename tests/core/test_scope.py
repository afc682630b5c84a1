"""The scope leaves the model as it found it, and joins forward passes right."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    MambaConfig,
    MambaForCausalLM,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

from sinkscope import (
    ALL,
    FREE,
    LogSumExp,
    Maps,
    MeanLogits,
    Norms,
    SinkMass,
    SinkscopeError,
    attached,
    capture,
)
from tests.zoo import DECODERS, ENCODERS, VISION, build, inputs

FULL = (*ALL[:-1], Maps(resolution=None))


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    return [(name, kind, len(getattr(module, kind))) for name, module in model.named_modules() for kind in kinds]


def state_of(model):
    configs = {name: module.config for name, module in model.named_modules() if hasattr(module, "config")}
    return (
        hooks_of(model),
        {name: (config.to_dict(), config._attn_implementation) for name, config in configs.items()},
        {name: module.training for name, module in model.named_modules()},
        sorted(vars(model)),
    )


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


@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "opt", "bloom", "gptj", "mistral_sliding"]
)
@pytest.mark.parametrize("steps", [[40], [20, 15, 1, 1, 3], [1] * 40])
def test_a_filled_cache_gives_the_record_of_one_forward(name, steps):
    model, given = build(name), inputs(name)
    with torch.no_grad(), capture(model, FULL) as whole:
        model(**given, use_cache=True)
    cache, position = DynamicCache(), 0  # keeps all keys, also of sliding layers
    with torch.no_grad(), capture(model, FULL) as scope:
        for step in steps:
            model(given["input_ids"][:, position : position + step], past_key_values=cache, use_cache=True)
            position += step
    record = scope.record
    for variable in set(whole.record.data_vars) - {"activation_dimension", "activation_median"}:
        np.testing.assert_allclose(record[variable], whole.record[variable], atol=3e-5, rtol=1e-4, err_msg=variable)
    np.testing.assert_array_equal(record.token_id, given["input_ids"])


def test_a_sliding_cache_that_dropped_the_first_keys_gives_them_no_mass():
    model, given = build("mistral_sliding"), inputs("mistral_sliding")
    with torch.no_grad(), capture(model, FULL) as whole:
        model(**given)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), capture(model, FULL) as scope:
        for part in given["input_ids"].split(10, 1):
            model(part, past_key_values=cache)
    assert cache.layers[0].keys.shape[2] < 40
    for variable in ("sink_mass", "received", "distance_mass", "attention_map"):
        np.testing.assert_allclose(scope.record[variable], whole.record[variable], atol=2e-5)


def test_a_static_cache_is_read_up_to_where_it_is_filled():
    model, given = build("llama"), inputs("llama")
    with torch.no_grad(), capture(model, FULL) as whole:
        model(**given)
    cache = StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad(), capture(model, FULL) as scope:
        for part in given["input_ids"].split(16, 1):
            model(part, past_key_values=cache)
    for variable in ("sink_mass", "received", "entropy", "value_norm", "attention_map"):
        np.testing.assert_allclose(scope.record[variable], whole.record[variable], atol=2e-5)


def test_a_scope_attached_after_the_prefill_measures_from_there_on():
    model, given = build("llama"), inputs("llama")
    cache = DynamicCache()
    with torch.no_grad():
        with capture(model) as whole:
            model(**given)
        model(given["input_ids"][:, :30], past_key_values=cache)
        with capture(model, [SinkMass(first=2)]) as scope:
            model(given["input_ids"][:, 30:], past_key_values=cache)
    assert bool(scope.record.sink_mass[..., :30, :].isnull().all())
    np.testing.assert_allclose(scope.record.sink_mass[..., 30:, :], whole.record.sink_mass[..., 30:, :2], atol=2e-6)


def test_generate_is_captured_token_by_token():
    model, given = build("llama"), inputs("llama", batch=1, tokens=12)
    options = dict(
        max_new_tokens=9, do_sample=False, pad_token_id=0, attention_mask=torch.ones(1, 12, dtype=torch.long)
    )
    with torch.no_grad(), capture(model, FULL) as scope:
        text = model.generate(**given, **options)
    with torch.no_grad(), capture(model, FULL) as whole:
        model(text[:, :-1])  # the last token is never read
    np.testing.assert_allclose(scope.record.attention_map, whole.record.attention_map, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom", "gptj"])
def test_bfloat16_masses_are_close_to_float32_ones_and_exact_for_what_attention_saw(name):
    given = inputs(name)
    model = build(name, dtype=torch.bfloat16)
    with torch.no_grad(), capture(model, FULL) as scope:
        model(**given)
    record = scope.record
    assert record.attrs["dtype"] == "bfloat16"
    total = record.attention_map.values.sum(-1)
    if "virtual_sink_mass" in record:
        total += record.virtual_sink_mass.values
    np.testing.assert_allclose(total, 1, atol=1e-3)  # the same scores went into the sum and into each term
    with torch.no_grad(), capture(build(name), FULL) as exact:
        build_model = exact.model
        build_model(**given)
    layer = record.sink_mass[:, 0] - exact.record.sink_mass[:, 0]
    assert float(abs(layer).max()) < 0.15  # 3 digits of scores that reach 10


def test_padding_on_the_right_is_removed_too():
    model, given = build("llama"), inputs("llama")
    mask = torch.ones_like(given["input_ids"])
    mask[0, 25:] = 0
    with torch.no_grad():
        with capture(model, FULL) as alone:
            model(given["input_ids"][:1, :25])
        with capture(model, FULL) as scope:
            model(**given, attention_mask=mask)
    assert scope.record.length.values.tolist() == [25, 40]
    for name in ("sink_mass", "entropy"):
        np.testing.assert_allclose(scope.record[name][0, :, :, :25], alone.record[name][0], atol=1e-5)
        assert bool(scope.record[name][0, :, :, 25:].isnull().all())


def test_a_mask_of_the_users_own_is_honoured():
    model, given = build("llama"), inputs("llama", batch=1)
    visible = torch.ones(40, 40, dtype=torch.bool).tril()
    visible[10:, 0] = False  # nobody sees the first token from the tenth on
    with torch.no_grad(), capture(model, FULL) as scope:
        model(**given, attention_mask=visible[None, None])
    assert float(scope.record.sink_mass[..., 10:, 0].max()) == 0
    np.testing.assert_allclose(scope.record.attention_map.sum("map_key"), 1, atol=1e-5)


class Reader(nn.Module):
    """Attention of one's own, outside transformers: the scores are known in advance."""

    class PlainAttention(nn.Module):
        def __init__(self, scores):
            super().__init__()
            self.scores = nn.Parameter(scores)

        def forward(self, values):
            return self.scores.softmax(-1) @ values

    def __init__(self, scores):
        super().__init__()
        self.layers = nn.ModuleList([self.PlainAttention(scores)])

    def forward(self, values):
        return self.layers[0](values)


def test_a_model_of_ones_own_is_watched():
    scores = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    scores = scores.masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    model = Reader(scores).eval()
    with torch.no_grad(), capture(model, [LogSumExp(), MeanLogits(6), Maps(resolution=None)]) as scope:
        model(torch.randn(1, 2, 6, 4))
    np.testing.assert_allclose(scope.record.log_sum_exp[0, 0], scores[0].logsumexp(-1), atol=1e-6)
    np.testing.assert_allclose(scope.record.mean_logit[0], scores[0].masked_fill(scores[0].isinf(), torch.nan))
    np.testing.assert_allclose(scope.record.attention_map[0, 0], scores[0].softmax(-1), atol=1e-6)


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


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_probe_given_twice():
    with pytest.raises(SinkscopeError, match="SinkMass is given twice"):
        capture(build("llama"), [SinkMass(1), LogSumExp(), SinkMass(4)])


def test_a_model_without_attention_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(SinkscopeError, match="no attention modules"):
        capture(model)


def test_an_encoder_decoder_is_refused():
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8))
    with pytest.raises(SinkscopeError, match="encoder-decoder"):
        capture(model)


def test_not_a_model():
    with pytest.raises(SinkscopeError, match=r"sinkscope\.load"):
        capture("gpt2")


def test_not_a_probe():
    with pytest.raises(SinkscopeError, match="not a probe"):
        capture(build("llama"), [SinkMass])


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


def test_tokens_outside_the_vocabulary_are_named():
    model = build("llama")
    for ids, named in ((torch.tensor([[1, 2, 128]]), "128"), (torch.tensor([[1, -3]]), "-3")):
        with (
            pytest.raises(SinkscopeError, match=f"token id {named} is outside the vocabulary of 128"),
            capture(model),
        ):
            model(ids)


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


def test_nothing_to_measure_and_nothing_measured():
    model, given = build("llama"), inputs("llama")
    with torch.no_grad(), capture(model) as scope:
        pass
    with pytest.raises(SinkscopeError, match="nothing was measured"):
        _ = scope.record
    with torch.no_grad(), attached(model) as scope:
        model(**given)
    assert not scope.record.data_vars and scope.record.length.values.tolist() == [40, 40]


def test_another_batch_size_in_mid_sequence_is_refused():
    model, given = build("llama"), inputs("llama", batch=1)
    cache = DynamicCache()
    with torch.no_grad(), pytest.raises(SinkscopeError, match="2 rows"), capture(model):
        model(given["input_ids"][:, :20], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        model(given["input_ids"][:, 20:].repeat(2, 1), past_key_values=cache)


def test_norms_need_a_cache_outside_the_interface():
    model, given = build("bloom"), inputs("bloom")
    with torch.no_grad(), capture(model, [Norms(), SinkMass()]) as scope:
        model(**given, use_cache=False)
    assert "key_norm" not in scope.record and "sink_mass" in scope.record


def test_vision_models_have_no_token_ids():
    for name in VISION:
        model, given = build(name), inputs(name)
        with torch.no_grad(), capture(model) as scope:
            model(**given)
        assert "token_id" not in scope.record.coords and scope.record.attrs["causal"] == 0
        assert scope.record.length.values.tolist() == [scope.record.sizes["query"]] * 2
