"""Maps of single heads, live and saved, against the definition in float64, eager attention and the record itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import (
    ALL,
    Maps,
    SinkMass,
    SinkscopeError,
    attached,
    capture,
    from_maps,
    measure,
    open_record,
    perplexity,
    save_record,
)
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.results import HeadMaps, SavedMaps, Unit
from tests.explorer.references import CONFIGURATIONS, FAMILIES, TOKENS, defined, first, reader, text
from tests.support.eager import eager_maps
from tests.support.zoo import build, inputs


def whole(maps: HeadMaps, unit: int, kind: str = "probabilities") -> np.ndarray:
    everything = slice(0, maps.cells)
    return getattr(maps, kind)(unit, everything, everything)


def stacked(maps: HeadMaps, kind: str = "probabilities") -> np.ndarray:
    """[unit, query, key]."""
    return np.stack([whole(maps, unit, kind) for unit in range(len(maps.units))])


# --- live -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_maps_of_every_head_equal_the_definition_and_are_nan_exactly_where_a_key_is_not_seen(case):
    configuration, definition = CONFIGURATIONS[case]
    _, weights, scores = defined("llama", definition)
    maps = first(reader(), configuration).maps
    assert maps.units == [Unit(layer, head) for layer in range(2) for head in range(4)]
    expected = weights.reshape(8, TOKENS, TOKENS)
    np.testing.assert_array_equal(np.isnan(stacked(maps)), np.isnan(expected))
    np.testing.assert_allclose(stacked(maps), expected, atol=2e-5)
    logits, expected = stacked(maps, "logits"), scores.reshape(8, TOKENS, TOKENS)
    acting = np.isfinite(expected).any((1, 2))  # the reference notes scores where the configuration acts
    np.testing.assert_allclose(logits[acting], expected[acting], atol=1e-4)
    np.testing.assert_array_equal(np.isnan(logits), np.isnan(stacked(maps)))


@pytest.mark.parametrize("name", [*FAMILIES, "mpt", "bloom", "gptj", "gpt2"])
def test_dense_maps_equal_eager_attention(name):
    model = reader(name)
    maps = stacked(first(model, Configuration()).maps)
    expected = eager_maps(name, {"input_ids": text()[None]})[0].reshape(maps.shape)
    np.testing.assert_allclose(np.nan_to_num(maps), expected, atol=2e-5)
    seen = np.isfinite(maps)
    assert (expected[~seen] == 0).all()
    assert seen[:, np.arange(TOKENS), np.arange(TOKENS)].all() and not (seen & ~np.tri(TOKENS, dtype=bool)).any()


@pytest.mark.parametrize("case", ["weaker sinks of a window", "sigmoid over sinks"])
@pytest.mark.parametrize("name", FAMILIES[1:])
def test_maps_of_every_family_equal_what_the_maps_probe_measures(name, case):
    configuration, model = CONFIGURATIONS[case][0], build(name)
    maps = stacked(first(reader(name), configuration).maps)
    slots = dict(
        policy=configuration.policy_slot, normaliser=configuration.normaliser_slot, probes=[Maps(resolution=None)]
    )
    with torch.no_grad(), attached(model, **slots) as scope:
        model(text()[None])
    expected = scope.record.attention_map.values[0].reshape(maps.shape)
    np.testing.assert_allclose(np.nan_to_num(maps), expected, atol=1e-5)


def test_probabilities_are_what_softmax_makes_of_the_logits_with_a_learned_sink():
    maps, sinks = first(reader("gpt_oss"), Configuration()).maps, []
    for layer in build("gpt_oss").model.layers:
        sinks += layer.self_attn.sinks.tolist()
    logits = stacked(maps, "logits")
    exponentials = np.exp(np.where(np.isnan(logits), -np.inf, logits).astype(float))
    total = exponentials.sum(-1, keepdims=True) + np.exp(sinks)[:, None, None]
    np.testing.assert_allclose(np.nan_to_num(stacked(maps)), exponentials / total, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "case"),
    [("mpt", "dense"), *((name, "sinks") for name in FAMILIES)]
    + [("llama", case) for case in CONFIGURATIONS if case not in ("sinks", "softmax")],
)
def test_a_part_of_a_map_is_cut_from_the_whole(name, case):
    maps = first(reader(name), CONFIGURATIONS[case][0]).maps
    for kind in ("probabilities", "logits"):
        complete = whole(maps, 5, kind)
        for rows, columns in ((slice(7, 8), slice(0, 60)), (slice(30, 47), slice(2, 31)), (slice(59, 60), slice(3, 4))):
            part = getattr(maps, kind)(5, rows, columns)
            np.testing.assert_allclose(part, complete[rows, columns], atol=1e-5)


# --- saved ------------------------------------------------------------------------------------------------------------


def record_of(name: str = "llama", tokens: int = 30, *probes):
    model = build(name)
    with torch.no_grad(), capture(model, list(probes) or [Maps(resolution=None)]) as scope:
        model(**inputs(name, 1, tokens))
    return scope.record


def test_a_saved_record_shows_its_maps_with_later_keys_not_seen(tmp_path):
    record = record_of()
    maps = SavedMaps(open_record(save_record(record, tmp_path / "maps.nc")))
    expected = np.where(np.tri(30, dtype=bool), record.attention_map.values[0].reshape(8, 30, 30), np.nan)
    np.testing.assert_array_equal(stacked(maps), expected)
    assert (maps.first, maps.length, maps.cells) == (0, 30, 30) and maps.units[5] == Unit(1, 1)
    with pytest.raises(SinkscopeError, match="logits need the model"):
        whole(maps, 0, "logits")


def test_an_encoder_sees_later_keys():
    record = record_of("bert")
    np.testing.assert_array_equal(stacked(SavedMaps(record)), record.attention_map.values[0].reshape(8, 30, 30))


def test_maps_of_chosen_heads_are_the_only_ones_there():
    record = record_of("llama", 30, SinkMass(), Maps(layers=[1], heads=[0, 3], resolution=None))
    maps = SavedMaps(record)
    assert maps.units == [Unit(1, 0), Unit(1, 3)]
    expected = record.attention_map.sel(sequence=0, layer=1, head=3).values
    np.testing.assert_array_equal(np.nan_to_num(whole(maps, 1)), expected)


def test_a_selected_layer_or_head_is_enough():
    record = record_of()
    one = SavedMaps(record.isel(sequence=0).sel(layer=1, head=2))
    assert one.units == [Unit(1, 2)]
    np.testing.assert_array_equal(whole(one, 0), whole(SavedMaps(record), 6))


def test_of_several_texts_the_first_is_shown_as_long_as_it_is():
    maps = [np.tril(np.full((1, 2, tokens, tokens), 0.01)) for tokens in (5, 9)]
    shown = SavedMaps(from_maps(maps))
    assert (shown.cells, shown.length) == (5, 5)
    np.testing.assert_allclose(np.nan_to_num(stacked(shown)), maps[0][0], atol=1e-7)


@pytest.mark.parametrize("tokens", [64, 65, 100, 130])
def test_pooled_maps_know_the_tokens_of_their_cells(tokens):
    record = record_of("llama", tokens, Maps(resolution=64))
    maps = SavedMaps(record)
    assert (maps.cells, maps.length) == (64, tokens)
    assert maps.starts.tolist() == [-(-cell * tokens // 64) for cell in range(64)]


@pytest.mark.parametrize(("query", "begin"), [(40, 29), (5, 0)])
def test_the_saved_map_of_a_window_stands_where_it_stood(query, begin):
    reading = first(reader(), Configuration(policy="recompute", window=12), query)
    record = from_maps(np.nan_to_num(stacked(reading.maps)).reshape(2, 4, query + 1 - begin, -1))
    places = np.arange(begin, query + 1)
    record = record[["attention_map"]].assign_coords(map_query=places, map_key=places, length=("sequence", [60]))
    maps = SavedMaps(record)
    assert (maps.first, maps.length) == (begin, query + 1 - begin)
    np.testing.assert_allclose(stacked(maps), stacked(reading.maps), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: measure(build("llama"), text()[None], probes=[SinkMass()]),
        lambda: perplexity(build("llama"), text()[None]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
def test_a_record_without_maps_says_how_to_make_one(make):
    with pytest.raises(SinkscopeError, match=r"no attention maps; measure with the probe sinkscope.Maps"):
        SavedMaps(make())


def test_a_record_of_all_probes_shows_its_pooled_maps():
    record = record_of("llama", 100, *ALL)
    assert SavedMaps(record).cells == record.sizes["map_query"]
