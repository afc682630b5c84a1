"""Measuring many texts in one call, and maps of one."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import ALL, Maps, SinkMass, SinkscopeError, attention_maps, capture, measure
from tests.support.eager import eager_maps
from tests.support.zoo import build, inputs


class Speller:
    """A tokenizer that spells an id out."""

    def decode(self, ids):
        return "".join(f"<{token}>\0" if token % 2 else f" {token}" for token in ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "opt", "bloom", "bert", "mpt", "falcon_rotary"])
@pytest.mark.parametrize("batch_tokens", [1, 80, 4096])
def test_measure_is_capture_over_the_texts_one_by_one(name, batch_tokens):
    model = build(name)
    rows = list(inputs(name, batch=5)["input_ids"])
    texts = [rows[0], rows[1], rows[2][:17], rows[3][:17], rows[4]]
    record = measure(model, texts, ALL[:-1], batch_tokens=batch_tokens)
    for number, text in enumerate(texts):
        with torch.no_grad(), capture(model, ALL[:-1]) as scope:
            model(text[None], use_cache=True) if name != "bert" else model(text[None])
        alone = scope.record
        for variable in set(alone.data_vars) - {"mean_logit", "mean_probability", "activation_dimension"}:
            found = record[variable][number]
            sizes = {dim: slice(0, alone.sizes[dim]) for dim in found.dims}
            np.testing.assert_allclose(found.isel(sizes), alone[variable][0], atol=3e-5, rtol=1e-4, err_msg=variable)
            assert int(found.notnull().sum()) == alone[variable][0].size
    assert record.length.values.tolist() == [40, 40, 17, 17, 40]


def test_the_record_says_what_was_measured():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    record = measure(model, ids, tokenizer=Speller(), text="made up")
    attrs = record.attrs
    assert attrs["model_type"] == "llama" and attrs["dtype"] == "float32" and attrs["causal"] == 1
    assert attrs["tokens"] == 80 and attrs["sequences"] == 2 and attrs["text"] == "made up"
    assert attrs["tokens_sha256"] == hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    assert (
        attrs["bos"] == "no" and attrs["sinkscope"] == sinkscope.__version__ and "SinkMass(first=4)" in attrs["probes"]
    )
    assert measure(model, torch.cat([torch.ones(2, 1, dtype=torch.long), ids], 1)).attrs["bos"] == "yes"
    first = int(ids[0, 0])
    assert record.token_text.values[0, 0] == Speller().decode([first])
    np.testing.assert_array_equal(record.token_id, ids)


def test_a_progress_bar_shows_when_asked(capsys):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    measure(model, ids, progress=True)
    assert "80/80" in capsys.readouterr().err
    measure(model, ids)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_attention_maps_equal_eager_ones():
    given = inputs("gemma3", batch=1)
    model, expected = build("gemma3"), eager_maps("gemma3", inputs("gemma3", batch=1))[0]
    maps = attention_maps(model, given["input_ids"])
    assert maps.dims == ("layer", "head", "query", "key")
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    some = attention_maps(model, given["input_ids"], layers=[5, 2], heads=[1])
    assert some["layer"].values.tolist() == [5, 2] and some["head"].values.tolist() == [1]
    np.testing.assert_allclose(some, expected[[5, 2]][:, [1]], atol=1e-5)
    pooled = attention_maps(model, given["input_ids"], resolution=10)
    assert pooled.shape == (6, 4, 10, 10)
    np.testing.assert_allclose(pooled.sum("key"), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "probes", "message"),
    [
        (torch.zeros(0, dtype=torch.long), None, "empty text"),
        ([], None, "empty text"),
        ([torch.tensor([1, 2, 3, 4]), torch.tensor([], dtype=torch.long)], None, "empty text"),
        (torch.tensor([[5, 6, 7]]), None, r"3 tokens, but SinkMass\(first=4\)"),
        (torch.tensor([[5, 6, 7]]), [SinkMass(first=5)], "at least 5"),
        (torch.zeros(2, 3, 4, dtype=torch.long), None, r"shape \(2, 3, 4\)"),
        (torch.tensor([[5.0, 6.0]]), None, "whole numbers"),
        (torch.tensor([[5, 6, 7, 8, 1000]]), None, "token id 1000 is outside"),
    ],
)
def test_bad_texts(ids, probes, message):
    with pytest.raises(SinkscopeError, match=message):
        measure(build("llama"), ids, probes)


def test_bad_models_and_maps():
    ids = inputs("llama")["input_ids"]
    with pytest.raises(SinkscopeError, match=r"model\.eval"):
        measure(build("llama").train(), ids)
    with pytest.raises(SinkscopeError, match="takes one text"):
        attention_maps(build("llama"), ids)
    with pytest.raises(SinkscopeError, match="layers 0 to 1"):
        attention_maps(build("llama"), ids[:1], layers=[7])
    with pytest.raises(SinkscopeError, match="no tokens to read"):
        measure(build("vit"), ids)


class Mute:
    """A tokenizer that cannot decode one of the tokens."""

    def decode(self, ids):
        raise KeyError(ids[0])


@pytest.mark.parametrize("tokenizer", [object(), "gpt2", Speller, Mute()])
@pytest.mark.parametrize("call", [measure, sinkscope.perplexity])
def test_a_tokenizer_that_is_none_is_found_before_anything_runs(call, tokenizer):
    model, runs = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda module, given, made: runs.append(given[0].shape[1]))
    with pytest.raises(SinkscopeError, match="decode"):
        call(model, inputs("llama", tokens=200)["input_ids"], tokenizer=tokenizer)
    assert 200 not in runs  # shorter ones find out how the model reads


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_ids_that_are_no_whole_numbers_are_refused_by_their_dtype(dtype):
    with pytest.raises(SinkscopeError, match=f"whole numbers; got {dtype}"):
        measure(build("llama"), inputs("llama")["input_ids"].to(dtype))


def test_one_token_is_enough_for_one_key():
    record = measure(build("llama"), torch.tensor([[5]]), [SinkMass(first=1), Maps()])
    np.testing.assert_allclose(record.sink_mass, 1, rtol=1e-6)
    np.testing.assert_allclose(record.attention_map, 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"normaliser": sinkscope.ReLU()}, "normaliser=.* is none of the arguments, and no note of the record either"),
        ({"probe": "all"}, r"probe='all' would be a note of the record alone: did you mean probes=\?"),
        ({"what": [sinkscope.Window(8)]}, "what=.* is none of the arguments"),
    ],
)
def test_what_would_act_is_never_taken_for_a_note(notes, words):
    with pytest.raises(SinkscopeError, match=words):
        sinkscope.measure(build("llama"), inputs("llama")["input_ids"], **notes)
    record = sinkscope.measure(build("llama"), inputs("llama")["input_ids"], note={"of": [1, "two"]}, day="Monday")
    assert record.attrs["day"] == "Monday"
