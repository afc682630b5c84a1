"""Models that read images: whole, with the processor's output, each stream with a record; and their text alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sinkscope import (
    Dense,
    Maps,
    Received,
    SinkCache,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    attention_maps,
    capture,
    image_mass,
    measure,
    perplexity,
    sink_mass,
)  # fmt: skip
from sinkscope.hf.caches import with_cache
from tests.support.model_state import state_of
from tests.support.several import IMAGE, IMAGE_TEXT, PACKED, build_several, inputs_of, own_maps
from tests.support.zoo import build

PROBES = (Maps(resolution=None), SinkMass(), Received())
TEXT = torch.randint(3, 90, (2, 30), generator=torch.Generator().manual_seed(8))
STREAMED = ("llava", "gemma3", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_each_stream_of_a_whole_model_has_its_own_eager_maps(name):
    model, given, own = build_several(name), inputs_of(name), own_maps(name, inputs_of(name))
    with torch.no_grad():
        outside = model(**given).logits
        with capture(model, PROBES) as scope:
            inside = model(**given).logits
    torch.testing.assert_close(inside, outside, atol=1e-5, rtol=0)
    assert next(iter(scope.streams)) == "text" and scope.streams["text"] is scope and set(scope.streams) == set(own)
    for stream, layers in own.items():
        record = scope.streams[stream].record
        assert record.attrs["stream"] == stream and record.sizes["sequence"] == 2
        for number, calls in layers.items():
            ours = record.attention_map.sel(layer=number).values
            for sequence, expected in enumerate(maps_by_image(calls)):
                np.testing.assert_allclose(ours[sequence], expected, atol=2e-6)


def maps_by_image(calls):
    """Maps [head, query, key] of each of two images: of one call, one call for each, or a call for each window."""
    if len(calls) <= 2:
        return torch.cat(calls)
    half = len(calls) // 2
    return [
        torch.stack([torch.block_diag(*(call[0, head] for call in part)) for head in range(part[0].shape[1])])
        for part in (calls[:half], calls[half:])
    ]


@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_the_tokens_of_an_image_are_known(name):
    given = inputs_of(name)
    record = measure(build_several(name), given, PROBES)
    np.testing.assert_array_equal(record.token_id, given["input_ids"])
    np.testing.assert_array_equal(record.is_image, given["input_ids"] == IMAGE)


def test_padding_is_left_out_where_the_language_model_gets_a_mask_of_the_models_making():
    for name in ("gemma3", "llava"):
        model, given = build_several(name), inputs_of(name)
        alone = measure(model, {key: value[:1] for key, value in given.items()}, PROBES)
        padded = {key: value.clone() for key, value in given.items()}
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            if key in padded:
                padded[key] = torch.nn.functional.pad(padded[key], (5, 0))
        record = measure(model, padded, PROBES)
        assert record.length.values.tolist() == alone.length.values.tolist() * 2
        np.testing.assert_allclose(record.attention_map[0], alone.attention_map[0], atol=5e-6)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama"])
def test_measure_and_attention_maps_take_a_processors_output(name):
    model, given = build_several(name), inputs_of(name, batch=1)
    with torch.no_grad(), capture(model, PROBES) as scope:
        model(**given)
    for stream in scope.streams:
        expected = scope.streams[stream].record
        np.testing.assert_array_equal(measure(model, given, PROBES, stream=stream).received, expected.received)
        maps = attention_maps(model, given, stream=stream)
        np.testing.assert_array_equal(maps, expected.attention_map[0])


def test_the_null_counts_what_the_tokens_of_an_image_see():
    """Tokens of an image of gemma3 see each other both ways: 10 keys for each of the tokens 6 to 9."""
    record = measure(build_several("gemma3"), inputs_of("gemma3"), PROBES)
    assert record.attrs["causal"] == 0
    seen = (record.attention_map.sel(layer=1) > 0).any("head").sum("map_key").values
    np.testing.assert_array_equal(record.keys_seen, seen)
    assert sink_mass(record).attrs["null"] == pytest.approx(float(np.mean(4 / seen[0, 4:])))


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_mass_on_the_tokens_of_images_and_that_of_even_attention(name):
    """Brute force over the maps in float64; the null is that of maps with even shares where the model's are not 0."""
    record = measure(build_several(name), inputs_of(name), PROBES)
    maps, is_image = record.attention_map.values.astype(np.float64), record.is_image.values
    expected = np.stack([maps[s][..., is_image[s]].sum(-1).mean(-1) for s in range(2)]).mean(0)
    np.testing.assert_allclose(image_mass(record), expected, atol=1e-6)
    seen = (maps > 0).any((1, 2))  # in some layer, some head
    even = seen / seen.sum(-1, keepdims=True)
    null = np.mean([even[s][:, is_image[s]].sum(-1).mean() for s in range(2)])
    assert image_mass(record).attrs["null"] == pytest.approx(null)
    with pytest.raises(SinkscopeError, match="no key of this record is a token of an image"):
        image_mass(measure(build("llama"), TEXT, PROBES))


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl"])
def test_generated_tokens_continue_the_text_with_its_image(name):
    model, given = build_several(name), inputs_of(name)
    banned = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, 101]}
    with torch.no_grad():
        with capture(model, PROBES) as stepped:
            written = model.generate(**given, **banned)
        more = {"input_ids": written[:, :-1]}
        for key in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if key in given:
                more[key] = torch.nn.functional.pad(given[key], (0, 3), value=int(key == "attention_mask"))
        whole = measure(model, given | more, PROBES)
    np.testing.assert_array_equal(stepped.record.token_id, whole.token_id)
    np.testing.assert_allclose(stepped.record.attention_map, whole.attention_map, atol=5e-6)
    assert stepped.streams["vision"].record.sizes["sequence"] == 2


def test_a_model_is_left_as_it_was_also_after_an_exception():
    model, given = build_several("qwen3_vl"), inputs_of("qwen3_vl")
    before = state_of(model)
    with SinkCache(model, 2, 8), capture(model):
        pass
    with pytest.raises(SinkscopeError), capture(model):
        measure(model, given)  # a scope is on
    with pytest.raises(ValueError, match="do not match"), capture(model) as scope, torch.no_grad():
        model(**given | {"input_ids": TEXT[:, :6], "attention_mask": None})
    assert state_of(model) == before
    with pytest.raises(SinkscopeError, match="nothing was measured"):
        _ = scope.record


# --- text alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMED)
def test_text_alone_is_read_as_by_the_language_model(name):
    model = build_several(name)
    language = next(module for module in model.modules() if module is model.get_decoder())
    whole, alone = measure(model, TEXT, PROBES), measure(language, TEXT, PROBES)
    np.testing.assert_array_equal(whole.attention_map, alone.attention_map)
    with torch.no_grad():
        logits = model(TEXT).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), TEXT[:, 1:], reduction="none")
    record = perplexity(model, TEXT, [Dense(), SinkWindow(2, 9)], block=7)
    np.testing.assert_allclose(record.nll[0, :, 1:], losses, atol=2e-5)
    with torch.no_grad(), SinkCache(model, 2, 9) as cache:
        stepped = [model(TEXT[:, at : at + 1], **with_cache(model, cache)).logits[:, -1] for at in range(29)]
    losses = torch.nn.functional.cross_entropy(torch.stack(stepped, 2), TEXT[:, 1:], reduction="none")
    np.testing.assert_allclose(record.nll[1, :, 1:], losses, atol=2e-5)


@pytest.mark.parametrize("name", STREAMED)
def test_generate_with_a_sink_cache_reads_padded_texts(name):
    model, mask, ids = build_several(name), torch.ones_like(TEXT), TEXT.clone()
    mask[0, :7] = ids[0, :7] = 0
    given = {"max_new_tokens": 8, "do_sample": False}
    with SinkCache(model, 2, 9) as cache:
        both = model.generate(ids, attention_mask=mask, **given, **with_cache(model, cache))
        with pytest.raises(SinkscopeError, match="does not continue"):
            model.generate(TEXT.flip(1).repeat(1, 2), **given, **with_cache(model, cache))
    with SinkCache(model, 2, 9) as cache:
        alone = model.generate(ids[:1, 7:], attention_mask=mask[:1, 7:], **given, **with_cache(model, cache))
    assert both[0, 7:].tolist() == alone[0].tolist()


@pytest.mark.parametrize("window", [100, 9])
@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_images_that_are_tokens_in_a_row_are_read_into_a_sink_cache(name, window):
    """The reference reads the embeddings of the same tokens one at a time."""
    model, given = build_several(name), inputs_of(name)
    language, embedded = model.get_decoder(), []
    hook = language.register_forward_pre_hook(
        lambda module, args, kwargs: embedded.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**given)
        hook.remove()
        with SinkCache(model, 2, window) as cache:
            logits = model(**given, **with_cache(model, cache)).logits[:, -1]
        with SinkCache(language, 2, window) as cache:
            for token in embedded[0].split(1, 1):
                last = language(inputs_embeds=token, **with_cache(language, cache)).last_hidden_state
    torch.testing.assert_close(logits, model.get_output_embeddings()(last)[:, -1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", [100, 9])
@pytest.mark.parametrize(
    ("name", "message"),
    [*((name, "positions in two dimensions") for name in PACKED), ("gemma3", "see later ones")],
)
def test_images_that_are_more_than_tokens_in_a_row_are_refused_by_a_sink_cache(name, message, window):
    model, given = build_several(name), inputs_of(name)
    with SinkCache(model, 2, window) as cache:
        with pytest.raises(SinkscopeError, match=message):
            model.generate(**given, max_new_tokens=2, **with_cache(model, cache))
        assert cache.seen == 0


@pytest.mark.parametrize("window", [100, 9])
def test_a_sink_cache_reads_the_text_beside_layers_for_images_and_refuses_the_images(window):
    model, given = build_several("mllama"), inputs_of("mllama")
    with SinkCache(model, 2, window) as cache:
        with pytest.raises(SinkscopeError, match="cross_attention_states"):
            model.generate(**given, max_new_tokens=2, **with_cache(model, cache))
        assert cache.seen == 0
        written = model.generate(given["input_ids"], max_new_tokens=2, **with_cache(model, cache))
        assert written.shape[1] == given["input_ids"].shape[1] + 2 == cache.seen + 1


def test_the_class_for_causal_language_models_may_give_a_whole_model():
    model = AutoModelForCausalLM.from_config(build_several("gemma3").config).eval()
    assert hasattr(model.model, "vision_tower")
    assert measure(model, TEXT).sizes["layer"] == 3 and perplexity(model, TEXT, [Dense()]).nll.notnull().any()


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_what_is_wrong_with_the_input_is_said():
    model, given = build_several("llava"), inputs_of("llava")
    cases = [
        (model.get_decoder(), given, "LlamaModel reads no pixel_values"),
        (build("llama"), given, "LlamaForCausalLM reads no pixel_values"),
        (model, given | {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT)}, "no token of the text stands"),
        (model, {"input_ids": given["input_ids"]}, "stand for an image, but there is none"),
        (model, [given, TEXT[0]], "are not texts"),
        (model.model.vision_tower, TEXT, "has no tokens to read"),
    ]
    for each, inputs, message in cases:
        with pytest.raises(SinkscopeError, match=message):
            measure(each, inputs)
    with pytest.raises(SinkscopeError, match="no stream of attention 'sound'; it has 'text', 'vision'"):
        measure(model, given, stream="sound")
    with pytest.raises(SinkscopeError, match="takes one text"):
        attention_maps(model, given)
