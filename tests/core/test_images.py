"""Models that read images: whole, with the processor's output, each stream with a record; and their text alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sinkscope import (
    Dense,
    Evict,
    Maps,
    Received,
    SinkCache,
    SinkDimensions,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    Window,
    attached,
    attention_maps,
    capture,
    image_grid,
    image_mass,
    measure,
    perplexity,
    sink_mass,
    visual_sinks,
    visual_sinks_table,
)  # fmt: skip
from sinkscope.hf.caches import with_cache
from tests.support.model_state import state_of
from tests.support.several import IMAGE, IMAGE_TEXT, PACKED, build_several, inputs_of, maps_by_image, own_maps
from tests.support.zoo import build

PROBES = (Maps(resolution=None), SinkMass(), Received())
TEXT = torch.randint(3, 90, (2, 30), generator=torch.Generator().manual_seed(8))
STREAMED = ("llava", "gemma3", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.slow
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
                atol = 2e-5 if name == "gemma4" else 2e-6  # gemma4 does not scale its scores: they are larger
                np.testing.assert_allclose(ours[sequence], expected, atol=atol)


@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_the_tokens_of_an_image_are_known(name):
    given = inputs_of(name)
    record = measure(build_several(name), given, PROBES)
    np.testing.assert_array_equal(record.token_id, given["input_ids"])
    np.testing.assert_array_equal(record.is_image, given["input_ids"] == IMAGE)


@pytest.mark.slow
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


# --- where in the image, and visual sinks ----------------------------------------------------------------------------


GRIDS = {
    "llava": (4, 4),
    "paligemma": (4, 4),
}  # rows and columns of tokens; (2, 2) of the others, (1, 1) of mllama is no grid


@pytest.mark.parametrize("name", [name for name in IMAGE_TEXT if name != "mllama"])
def test_the_place_of_a_token_in_the_image_is_where_a_change_of_the_image_shows_most(name):
    model, given = build_several(name), inputs_of(name, 1)
    record, (rows, columns) = measure(model, given, [Received()]), GRIDS.get(name, (2, 2))
    at = [record[each].values[0] for each in ("image", "image_row", "image_column")]
    np.testing.assert_array_equal(at[0], np.where(record.is_image[0], 0, -1))
    assert [(row, column) for _, row, column in zip(*at, strict=True) if row >= 0] == [
        (row, column) for row in range(rows) for column in range(columns)
    ]
    patches = 4 // rows
    for token in np.flatnonzero(record.is_image[0]):
        row, column = at[1][token] * patches, at[2][token] * patches
        changed = changed_patches(given, slice(row, row + patches), slice(column, column + patches))
        moved = (embedded(model, changed) - embedded(model, given)).norm(dim=-1)[0]
        assert int(moved.argmax()) == token


def changed_patches(given, rows, columns):
    """The same with other pixels in some patches of 8 x 8, of 4 x 4 in all."""
    pixels = given["pixel_values"].clone()
    if pixels.dim() == 3 and given["pixel_values"].shape[1] == 16:  # patches in rows
        pixels[:, np.arange(16).reshape(4, 4)[rows, columns].ravel()] *= -20
    elif pixels.dim() == 2:  # blocks of 2 x 2 patches, one behind the other
        places = np.arange(16).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
        pixels[places[rows, columns].ravel()] *= -20
    else:
        pixels[..., 8 * rows.start : 8 * rows.stop, 8 * columns.start : 8 * columns.stop] *= -20
    return given | {"pixel_values": pixels}


@torch.no_grad()
def embedded(model, given):
    """The embeddings [1, token, dim] that the language model gets."""
    seen = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**given)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_the_grid_of_an_image_holds_what_its_tokens_receive(name):
    record = measure(build_several(name), inputs_of(name), PROBES)
    maps, rows = record.attention_map.values.astype(np.float64), GRIDS.get(name, (2, 2))[0]
    for sequence in (0, 1):
        tokens = np.flatnonzero(record.is_image[sequence])
        alpha = np.stack([maps[sequence, ..., key:, key].mean(-1) for key in tokens], -1)
        grid = image_grid(record, sequence)
        np.testing.assert_allclose(grid, alpha.reshape(*alpha.shape[:2], rows, -1), atol=1e-6)
        queries = np.arange(record.sizes["query"])
        null = np.mean([(1 / (queries[queries >= key] + 1)).mean() for key in tokens])
        assert grid.attrs["null"] == pytest.approx(null)


@pytest.mark.slow
def test_several_images_of_a_text_each_have_a_grid_and_of_unknown_ones_that_is_said():
    model, given = build_several("qwen2_vl"), inputs_of("qwen2_vl", 2)
    joined = given["input_ids"].reshape(1, -1)
    wide = torch.tensor([[1, 2, 8], [1, 4, 4]])
    one = given | {"input_ids": joined, "attention_mask": torch.ones_like(joined), "image_grid_thw": wide}
    record = measure(model, one | {"mm_token_type_ids": given["mm_token_type_ids"].reshape(1, -1)}, [Received()])
    assert image_grid(record, 0, 0).shape[2:] == (1, 4) and image_grid(record, 0, 1).shape[2:] == (2, 2)
    with pytest.raises(SinkscopeError, match="image=2 is not there: the text 0 has 2 images"):
        image_grid(record, 0, 2)
    with pytest.raises(SinkscopeError, match="sequence=1 is not in a record of 1 texts"):
        image_grid(record, 1)
    with pytest.raises(SinkscopeError, match="where its tokens are in the image is not known"):
        image_grid(measure(build_several("mllama"), inputs_of("mllama"), [Received()]))
    with pytest.raises(SinkscopeError, match="no key of this record is a token of an image"):
        image_grid(measure(model, TEXT, [Received()]))


@pytest.mark.parametrize("dimensions", [None, (3, 17)])
def test_visual_sinks_are_those_of_the_definition(dimensions):
    """Brute force over the hidden states that transformers shows, and the maps."""
    model, given = build_several("llava"), inputs_of("llava")
    record = measure(model, given, [*PROBES, SinkDimensions(dimensions)])
    with torch.no_grad():
        states = model(**given, output_hidden_states=True).hidden_states[1:3]  # what layers 1 and 2 read
    phi = torch.stack([state.abs() / state.pow(2).mean(-1, keepdim=True).sqrt() for state in states], 1)
    phi = (phi if dimensions is None else phi[..., list(dimensions)]).amax(-1).numpy()
    is_image = record.is_image.values
    threshold, mass, share = float(np.quantile(phi[:, :, is_image[0]], 0.7)), 0.3, 0.35
    found = visual_sinks(record, threshold, mass, share)
    assert bool(found.is_sink[:, 0].isnull().all())
    sinks = (phi >= threshold) & is_image[:, None]
    np.testing.assert_array_equal(found.is_sink[:, 1:].fillna(0), sinks)
    maps = record.attention_map.values.astype(np.float64)[:, 1:]
    on_images = np.stack([maps[s][..., is_image[s]].sum(-1).mean(-1) for s in range(2)])
    on_sinks = np.einsum("slhqk,slk->slhq", maps, sinks.astype(float)).mean(-1)
    np.testing.assert_allclose(found.image_mass[:, 1:], on_images, atol=1e-6)
    np.testing.assert_allclose(found.sink_share[:, 1:], on_sinks / on_images, atol=1e-6)
    heads = (on_images >= mass) & (on_sinks / on_images <= share)
    assert 0 < heads.sum() < heads.size
    np.testing.assert_array_equal(found.is_image_head[:, 1:], heads)
    table = visual_sinks_table(record, threshold, mass, share).set_index("layer").loc[1:]
    np.testing.assert_allclose(table.sinks, sinks.sum(-1).mean(0))
    np.testing.assert_allclose(table.image_heads, heads.sum(-1).mean(0))
    np.testing.assert_allclose(table.phi, phi[:, :, is_image[0]].max(-1).mean(0), rtol=1e-5)


def test_sink_dimensions_are_those_of_the_model():
    with pytest.raises(SinkscopeError, match="dimension 64 is out of range"):
        measure(build("llama"), TEXT, [SinkDimensions([64])])
    with pytest.raises(SinkscopeError, match="says not which"):
        SinkDimensions([])


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    [
        ("gemma3", Window(9), "lets some tokens see later ones"),
        ("gemma3", Evict(keys=(0,)), "lets some tokens see later ones"),
        ("qwen3_vl", SinkWindow(2, 9), "positions in two dimensions"),
    ],
)
def test_a_policy_is_refused_beside_images_that_are_more_than_tokens_in_a_row(name, policy, message):
    model, given = build_several(name), inputs_of(name)
    with pytest.raises(SinkscopeError, match=message), attached(model, policy=policy), torch.no_grad():
        model(**given)
    with attached(model, policy=policy), torch.no_grad():
        assert bool(model(TEXT).logits.isfinite().all())


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
