"""Where measuring could go wrong silently: caches, threads, dtypes, shared configurations, unusual inputs."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache, JambaConfig, JambaForCausalLM, LlamaConfig, LlamaForCausalLM

from sinkscope import (
    ALL,
    LearnedSink,
    Maps,
    Norms,
    SinkMass,
    SinkscopeError,
    Softmax1,
    attached,
    attend,
    capture,
    measure,
)
from tests.core.eager import eager_maps
from tests.zoo import build, inputs

FULL = (*ALL[:-1], Maps(resolution=None))


def record_of(model, **given):
    with torch.no_grad(), capture(model, FULL) as scope:
        model(**given)
    return scope.record


# --- caches -------------------------------------------------------------------------------------------------------


def test_caches_that_take_turns_keep_their_texts_apart():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    alone = [record_of(model, input_ids=ids[:1]), record_of(model, input_ids=ids[1:, :20])]
    first, second = DynamicCache(), DynamicCache()
    with torch.no_grad(), capture(model, FULL) as scope:
        model(ids[:1, :20], past_key_values=first)
        model(ids[1:, :20], past_key_values=second)
        model(ids[:1, 20:], past_key_values=first)
    assert scope.record.length.values.tolist() == [40, 20]
    np.testing.assert_allclose(scope.record.attention_map[0], alone[0].attention_map[0], atol=2e-5)
    np.testing.assert_allclose(scope.record.attention_map[1, :, :, :20, :20], alone[1].attention_map[0], atol=2e-5)


def test_a_cropped_cache_and_beam_search_are_refused():
    model, ids = build("llama"), inputs("llama", batch=1)["input_ids"]
    cache = DynamicCache()
    with torch.no_grad(), capture(model), pytest.raises(SinkscopeError, match="cropped or its rows reordered"):
        model(ids[:, :20], past_key_values=cache)
        cache.crop(-10)
        model(ids[:, 20:], past_key_values=cache)
    options = dict(max_new_tokens=12, num_beams=3, do_sample=False, pad_token_id=0)
    with torch.no_grad(), capture(model), pytest.raises(SinkscopeError, match="beam search"):
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def test_a_left_padded_prefill_before_the_scope():
    model, given = build("llama"), inputs("llama")
    mask = torch.ones_like(given["input_ids"])
    mask[0, :7] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = record_of(model, **given, attention_mask=mask, position_ids=positions)
    cache = DynamicCache()
    with torch.no_grad():
        model(
            given["input_ids"][:, :30],
            attention_mask=mask[:, :30],
            position_ids=positions[:, :30],
            past_key_values=cache,
        )
        with capture(model, [SinkMass()]) as scope:
            model(
                given["input_ids"][:, 30:], attention_mask=mask, position_ids=positions[:, 30:], past_key_values=cache
            )
    assert scope.record.length.values.tolist() == [33, 40]
    found = scope.record.sink_mass
    assert bool(found[0, :, :, :23].isnull().all()) and bool(found[1, :, :, :30].isnull().all())
    np.testing.assert_allclose(found[0, :, :, 23:33], whole.sink_mass[0, :, :, 23:33], atol=2e-6)


def test_embeddings_in_place_of_tokens():
    model, ids = build("llama"), inputs("llama", batch=1)["input_ids"]
    embedded = record_of(model, inputs_embeds=model.get_input_embeddings()(ids))
    np.testing.assert_allclose(embedded.attention_map, record_of(model, input_ids=ids).attention_map, atol=2e-6)
    assert "token_id" not in embedded.coords and embedded.attrs["bos"] == "unknown"
    with torch.no_grad(), capture(model) as scope:  # the prompt as embeddings, what follows as tokens
        model.generate(
            inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
    assert (
        scope.record.token_id.values[0, :40].tolist() == [-1] * 40 and (scope.record.token_id.values[0, 40:] >= 0).all()
    )


# --- wrappers, dtypes, autocast -----------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """A module of one's own around a transformers model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **given):
        return self.model(**given)


@pytest.mark.parametrize("name", ["mistral_sliding", "deepseek_v3", "gpt_oss", "falcon_rotary"])
def test_a_wrapped_model_is_measured_as_itself(name):
    given = inputs(name)
    wrapped = record_of(Wrapper(build(name)).eval(), **given, use_cache=True)
    for variable, values in record_of(build(name), **given, use_cache=True).data_vars.items():
        np.testing.assert_array_equal(wrapped[variable], values, err_msg=str(variable))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "bloom", "gptj"])
def test_under_autocast_rows_still_sum_to_one(name):
    model, given = build(name), inputs(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), capture(model, FULL) as scope:
        model(**given)
    total = scope.record.attention_map.values.sum(-1)
    if "virtual_sink_mass" in scope.record:
        total += scope.record.virtual_sink_mass.values
    np.testing.assert_allclose(total, 1, atol=3e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon_rotary", "bloom"])
def test_float64_models(name):
    given = inputs(name)
    record = record_of(build(name, dtype=torch.float64), **given)
    np.testing.assert_allclose(record.attention_map, eager_maps(name, given), atol=2e-6)


@pytest.mark.parametrize("name", ["gptj", "codegen", "mpt", "bloom"])
def test_hidden_keys_have_no_logit_also_in_float16(name):
    record = record_of(build(name, dtype=torch.float16), **inputs(name))
    expected = ~np.tri(16, dtype=bool)
    np.testing.assert_array_equal(np.isnan(record.mean_logit.values), np.broadcast_to(expected, (2, 4, 16, 16)))
    assert float(record.mean_logit.min()) > -1000


@pytest.mark.parametrize("name", ["bloom", "gptj", "codegen", "falcon_rotary"])
def test_norms_of_watched_families_are_those_of_their_cache(name):
    model, given = build(name), inputs(name)
    with torch.no_grad(), capture(model, [Norms()]) as scope:
        cache = model(**given, use_cache=True).past_key_values
    for number, layer in enumerate(cache.layers):
        np.testing.assert_allclose(scope.record.key_norm[:, number], layer.keys.double().norm(dim=-1), rtol=1e-5)
        np.testing.assert_allclose(scope.record.value_norm[:, number], layer.values.double().norm(dim=-1), rtol=1e-5)


def test_an_encoder_with_a_mask_of_one_row_and_many_tokens():
    model, given = build("bert"), inputs("bert", batch=1, tokens=300)
    seen = torch.ones(1, 1, 1, 300, dtype=torch.bool)
    seen[..., 250:] = False
    record = record_of(model, **given, attention_mask=seen)
    assert float(record.attention_map[..., 250:].max()) == 0
    np.testing.assert_allclose(record.attention_map.sum("map_key"), 1, atol=1e-5)


# --- the model as it was ------------------------------------------------------------------------------------------


def test_models_that_share_a_configuration():
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    one, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    before = config._attn_implementation
    with capture(one), pytest.raises(SinkscopeError, match="shares its configuration"), capture(other):
        pass
    assert config._attn_implementation == before


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


def test_layers_keep_their_numbers_in_a_hybrid_model():
    config = JambaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, attn_layer_period=4, attn_layer_offset=2, expert_layer_period=8, num_experts=1,
        num_experts_per_tok=1, use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = JambaForCausalLM(config).eval()
    record = measure(model, torch.arange(3, 20), [SinkMass(), Maps(layers=[2])])
    assert record["layer"].values.tolist() == [2] and record.sink_mass.shape == (1, 1, 2, 17, 4)
    with pytest.raises(SinkscopeError, match="layer 0 is out of range"):
        capture(model, [Maps(layers=[0])])


# --- refused with a sentence --------------------------------------------------------------------------------------


def test_a_refused_forward_leaves_no_trace():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    with torch.no_grad(), capture(model, [SinkMass(), Maps(resolution=8)]) as scope:
        model(ids)
        with pytest.raises(SinkscopeError, match="one length"):
            model(ids[:, :30])
    assert scope.record.sizes["sequence"] == 2 and scope.record.attention_map.shape[0] == 2


def test_several_models_in_one():
    model = nn.Module()
    model.tower, model.language_model = build("vit"), build("llama")
    with pytest.raises(SinkscopeError, match=r"several models with attention .*language_model"):
        capture(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"position_ids": torch.cat([torch.arange(20), torch.arange(20)])[None]}, "positions restart"),
        ({"output_attentions": True}, r"sinkscope\.attention_maps"),
    ],
)
def test_inputs_that_cannot_be_measured(given, message):
    model, ids = build("llama"), inputs("llama", batch=1)["input_ids"]
    with torch.no_grad(), capture(model), pytest.raises(SinkscopeError, match=message):
        model(ids, **given, use_cache=False)
    with capture(model), pytest.raises(SinkscopeError, match="nothing to read"):
        model()


def test_a_static_cache_in_generate():
    model, ids = build("llama"), inputs("llama", batch=1)["input_ids"]
    options = dict(max_new_tokens=3, cache_implementation="static", pad_token_id=0)
    with torch.no_grad(), capture(model), pytest.raises(SinkscopeError, match="static cache"):
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def test_attention_that_calls_no_softmax():
    class OddAttention(nn.Module):
        def forward(self, values):
            return values.cumsum(-2)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = OddAttention()

        def forward(self, values):
            return self.attention(values)

    model = Odd()
    with torch.no_grad(), capture(model) as scope:
        model(torch.randn(1, 5, 4))
    with pytest.raises(SinkscopeError, match="no softmax"):
        _ = scope.record


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


@pytest.mark.parametrize(
    ("model", "ids", "probes", "message"),
    [
        ("gpt2", [5, 6, 7, 8], None, "loaded model"),
        (None, "In the beginning", None, "not texts"),
        (None, {"input_ids": [5, 6]}, None, "not texts"),
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
    "make", [lambda: SinkMass("4"), lambda: SinkMass(2.5), lambda: Maps(layers=1), lambda: Maps(heads=[])]
)
def test_probe_arguments_of_another_type(make):
    with pytest.raises(SinkscopeError):
        make()
