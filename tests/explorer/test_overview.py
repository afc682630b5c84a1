"""Thumbnails and rankings of all heads, against eager attention maps in float64 and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import Maps, capture
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.overview import THUMBNAIL, saved_overview, thumbnails
from sinkscope.explorer.pixels import FAINTEST, RANKINGS
from sinkscope.explorer.results import SavedMaps
from tests.explorer.references import CONFIGURATIONS, FAMILIES, defined, everything, first, reader, text
from tests.support.eager import eager_maps, entropy
from tests.support.zoo import build, inputs


def overview(name: str = "llama", configuration: Configuration | None = None, tokens: int = 60):
    return everything(reader(name, tokens), configuration or Configuration())["overview"][0]


def check_thumbnails(units: np.ndarray, maps: np.ndarray) -> None:
    """Bytes [unit, row, column] against maps [unit, query, key] with 0 where a key is not seen."""
    length, side = maps.shape[-1], min(THUMBNAIL, maps.shape[-1])
    cell = np.arange(length) * side // length
    largest = np.zeros((len(maps), side, side))
    for query in range(length):
        for key in range(length):
            place = (slice(None), cell[query], cell[key])
            largest[place] = np.maximum(largest[place], maps[:, query, key])
    logs = np.log10(np.maximum(largest, 10**FAINTEST))
    shown = FAINTEST + (units.astype(float) - 1) * -FAINTEST / 254
    assert units.shape == largest.shape and units.dtype == np.uint8
    np.testing.assert_array_equal(units == 0, largest == 0)
    assert np.abs(shown - logs)[units > 0].max() < -FAINTEST / 254 * 0.55


def check_scores(scores: dict[str, np.ndarray], maps: np.ndarray) -> None:
    """Scores by name, against maps [unit, query, key]."""
    readers = maps.shape[-1] - np.arange(maps.shape[-1])
    np.testing.assert_allclose(scores["mass"], maps[:, 1:, :4].sum(-1).mean(-1), atol=1e-5)
    np.testing.assert_allclose(scores["entropy"], entropy(maps).mean(-1), atol=1e-4)
    np.testing.assert_allclose(scores["peak"], (maps.sum(-2) / readers).max(-1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "mpt", "gpt2"])
def test_thumbnails_and_scores_of_the_model_as_it_is_equal_eager_attention(name):
    found, maps = overview(name), eager_maps(name, {"input_ids": text()[None]})[0]
    maps = maps.reshape(-1, 60, 60)
    check_thumbnails(found.units, maps)
    check_scores(found.scores, maps)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sinks", "chosen in a layer", "sinks gone from a window", "softmax1"])
def test_thumbnails_and_scores_under_a_configuration_equal_the_definition(case):
    configuration, definition = CONFIGURATIONS[case]
    found, maps = overview("llama", configuration), np.nan_to_num(defined("llama", definition)[1].reshape(8, 60, 60))
    check_thumbnails(found.units, maps)
    check_scores(found.scores, maps)
    assert found.configuration == configuration


@pytest.mark.slow
def test_longer_texts_are_pooled_by_the_largest_value():
    maps = eager_maps("llama", {"input_ids": text(150)[None]})[0].reshape(8, 150, 150)
    check_thumbnails(overview(tokens=150).units, maps)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_the_value_score_is_the_norm_of_the_first_value_over_the_mean_of_the_others(name):
    model, values = build(name), []
    for path, module in model.named_modules():
        if path.endswith("v_proj"):
            module.register_forward_hook(lambda *given: values.append(given[2][0].view(60, -1, 16)))
        if path.endswith("query_key_value"):  # gpt_neox: query, key and value of each head side by side
            module.register_forward_hook(lambda *given: values.append(given[2][0].view(60, 4, 3, 16)[:, :, 2]))
    with torch.no_grad():
        model(text()[None])
    norms = torch.stack(values).norm(dim=-1)  # [layer, token, kv_head]
    ratio = (norms[:, 0] / norms[:, 1:].mean(1)).repeat_interleave(4 // norms.shape[-1], -1)
    np.testing.assert_allclose(overview(name).scores["value"], ratio.flatten(), rtol=1e-4)


def test_every_ranking_but_that_by_layer_has_scores():
    assert set(overview().scores) == set(RANKINGS) - {"layer"}


def test_a_newer_request_is_asked_for_before_every_layer():
    asked = []
    thumbnails(first(reader(), Configuration()).maps.layers, lambda: asked.append(1))
    assert len(asked) == 2

    def stop():
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        thumbnails(first(reader(), Configuration()).maps.layers, stop)


def record(tokens: int, **options):
    model = build("llama")
    with torch.no_grad(), capture(model, [Maps(**options)]) as scope:
        model(**inputs("llama", 1, tokens))
    return scope.record


def test_saved_maps_of_single_tokens_are_ranked_by_the_mass_on_the_first_tokens():
    saved = record(60, resolution=None)
    found, maps = saved_overview(SavedMaps(saved)), saved.attention_map.values[0].reshape(8, 60, 60)
    check_thumbnails(found.units, maps)
    assert set(found.scores) == {"mass"}
    np.testing.assert_allclose(found.scores["mass"], maps[:, 1:, :4].sum(-1).mean(-1), atol=1e-6)


def test_saved_maps_that_were_pooled_do_not_know_the_mass_on_the_first_tokens():
    found = saved_overview(SavedMaps(record(200, resolution=64)))
    assert found.scores == {} and found.units.shape == (8, 64, 64)
