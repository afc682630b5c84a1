"""Forward passes that share a cache are joined to the record of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.utils import generic

from sinkscope import Norms, SinkMass, SinkscopeError, capture
from tests.core.recorded import FULL, record_of
from tests.support.zoo import build, inputs


@pytest.mark.slow
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
            model(given["input_ids"][:, position : position + step], cache=cache, use_cache=True)
            position += step
    record = scope.record
    for variable in set(whole.record.data_vars) - {"activation_dimension", "activation_median"}:
        np.testing.assert_allclose(record[variable], whole.record[variable], atol=3e-5, rtol=1e-4, err_msg=variable)
    np.testing.assert_array_equal(record.token_id, given["input_ids"])


@pytest.mark.slow
def test_a_sliding_cache_that_dropped_the_first_keys_gives_them_no_mass():
    model, given = build("mistral_sliding"), inputs("mistral_sliding")
    with torch.no_grad(), capture(model, FULL) as whole:
        model(**given)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), capture(model, FULL) as scope:
        for part in given["input_ids"].split(10, 1):
            model(part, cache=cache)
    assert cache.layers[0].keys.shape[2] < 40
    for variable in ("sink_mass", "received", "distance_mass", "attention_map"):
        np.testing.assert_allclose(scope.record[variable], whole.record[variable], atol=2e-5)


@pytest.mark.slow
def test_a_static_cache_is_read_up_to_where_it_is_filled():
    model, given = build("llama"), inputs("llama")
    with torch.no_grad(), capture(model, FULL) as whole:
        model(**given)
    cache = StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad(), capture(model, FULL) as scope:
        for part in given["input_ids"].split(16, 1):
            model(part, cache=cache)
    for variable in ("sink_mass", "received", "entropy", "value_norm", "attention_map"):
        np.testing.assert_allclose(scope.record[variable], whole.record[variable], atol=2e-5)


def test_a_scope_attached_after_the_prefill_measures_from_there_on():
    model, given = build("llama"), inputs("llama")
    cache = DynamicCache()
    with torch.no_grad():
        with capture(model) as whole:
            model(**given)
        model(given["input_ids"][:, :30], cache=cache)
        with capture(model, [SinkMass(first=2)]) as scope:
            model(given["input_ids"][:, 30:], cache=cache)
    assert bool(scope.record.sink_mass[..., :30, :].isnull().all())
    np.testing.assert_allclose(scope.record.sink_mass[..., 30:, :], whole.record.sink_mass[..., 30:, :2], atol=2e-6)


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
            cache=cache,
        )
        with capture(model, [SinkMass()]) as scope:
            model(given["input_ids"][:, 30:], attention_mask=mask, position_ids=positions[:, 30:], cache=cache)
    assert scope.record.length.values.tolist() == [33, 40]
    found = scope.record.sink_mass
    assert bool(found[0, :, :, :23].isnull().all()) and bool(found[1, :, :, :30].isnull().all())
    np.testing.assert_allclose(found[0, :, :, 23:33], whole.sink_mass[0, :, :, 23:33], atol=2e-6)


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


def test_caches_that_take_turns_keep_their_texts_apart():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    alone = [record_of(model, input_ids=ids[:1]), record_of(model, input_ids=ids[1:, :20])]
    first, second = DynamicCache(), DynamicCache()
    with torch.no_grad(), capture(model, FULL) as scope:
        model(ids[:1, :20], cache=first)
        model(ids[1:, :20], cache=second)
        model(ids[:1, 20:], cache=first)
    assert scope.record.length.values.tolist() == [40, 20]
    np.testing.assert_allclose(scope.record.attention_map[0], alone[0].attention_map[0], atol=2e-5)
    np.testing.assert_allclose(scope.record.attention_map[1, :, :, :20, :20], alone[1].attention_map[0], atol=2e-5)


@pytest.mark.parametrize("name", ["bloom", "gptj", "codegen", "falcon_rotary"])
def test_norms_of_watched_families_are_those_of_their_cache(name):
    model, given = build(name), inputs(name)
    with torch.no_grad(), capture(model, [Norms()]) as scope:
        cache = model(**given, use_cache=True).cache
    for number, layer in enumerate(cache.layers):
        np.testing.assert_allclose(scope.record.key_norm[:, number], layer.keys.double().norm(dim=-1), rtol=1e-5)
        np.testing.assert_allclose(scope.record.value_norm[:, number], layer.values.double().norm(dim=-1), rtol=1e-5)


def test_norms_need_a_cache_outside_the_interface():
    model, given = build("bloom"), inputs("bloom")
    with torch.no_grad(), capture(model, [Norms(), SinkMass()]) as scope:
        model(**given, use_cache=False)
    assert "key_norm" not in scope.record and "sink_mass" in scope.record


def test_a_cropped_cache_and_beam_search_are_refused():
    model, ids = build("llama"), inputs("llama", batch=1)["input_ids"]
    cache = DynamicCache()
    with torch.no_grad(), capture(model), pytest.raises(SinkscopeError, match="cropped or its rows reordered"):
        model(ids[:, :20], cache=cache)
        cache.crop(-10)
        model(ids[:, 20:], cache=cache)
    options = dict(max_new_tokens=12, num_beams=3, do_sample=False, pad_token_id=0)
    with torch.no_grad(), capture(model), pytest.raises(SinkscopeError, match="beam search"):
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def test_another_batch_size_in_mid_sequence_is_refused():
    model, given = build("llama"), inputs("llama", batch=1)
    cache = DynamicCache()
    with torch.no_grad(), pytest.raises(SinkscopeError, match="2 rows"), capture(model):
        model(given["input_ids"][:, :20], cache=cache)
        cache.batch_repeat_interleave(2)
        model(given["input_ids"][:, 20:].repeat(2, 1), cache=cache)


@pytest.mark.slow
def test_a_static_cache_in_generate_measures_what_a_growing_one_does():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :7] = 0  # padding on the left: `generate` hands over the mask that it made itself
    records = []
    for kind in (None, "static"):
        options = dict(max_new_tokens=3, cache_implementation=kind, pad_token_id=0, do_sample=False)
        with torch.no_grad(), capture(model, FULL) as scope:
            model.generate(ids, attention_mask=mask, **options)
        records.append(scope.record)
    growing, static = records
    assert list(static.length) == list(growing.length) == [ids.shape[1] - 7 + 2, ids.shape[1] + 2]
    for variable in ("sink_mass", "received", "entropy", "attention_map"):
        np.testing.assert_allclose(static[variable], growing[variable], atol=2e-5)


def test_no_name_of_another_release_is_asked_for_where_no_cache_is_used(monkeypatch):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    said = []
    monkeypatch.setattr(generic.logger, "warning_once", said.append, raising=False)
    with torch.no_grad(), capture(model) as scope:
        model(ids, use_cache=False)
    assert scope.record.sizes["layer"] == 2 and said == []
