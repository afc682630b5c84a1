"""Probes beyond what every family shows: pooling, small tiles, chosen layers and heads, parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope.attention.layer as layer_module
from sinkscope import (
    ALL,
    DistanceProfile,
    Entropy,
    FirstCosine,
    Maps,
    MeanLogits,
    Norms,
    Received,
    SinkMass,
    SinkscopeError,
    capture,
    figures,
    measure,
)
from sinkscope.attention.attend import attend
from sinkscope.attention.layer import FusedLayer
from sinkscope.attention.masks import CausalMask, FullMask
from tests.support.eager import distance_profile, eager_maps, hidden_states
from tests.support.zoo import build, inputs


def record_of(name, probes, tokens=40, batch=2):
    model, given = build(name), inputs(name, batch, tokens)
    with torch.no_grad(), capture(model, probes) as scope:
        model(**given)
    return scope.record


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral_sliding", "bert", "bloom"])
@pytest.mark.parametrize(("entries", "columns"), [(1, 1), (60, 7), (1000, 16)])
def test_any_tiling_gives_the_same(monkeypatch, name, entries, columns):
    probes = (Received(), Entropy(), DistanceProfile(), Maps(resolution=7), SinkMass())
    whole = record_of(name, probes)
    monkeypatch.setattr(layer_module, "TILE_ENTRIES", entries)
    monkeypatch.setattr(layer_module, "TILE_COLUMNS", columns)
    tiled = record_of(name, probes)
    for variable in whole.data_vars:
        np.testing.assert_allclose(tiled[variable], whole[variable], atol=1e-5, err_msg=variable)


@pytest.mark.parametrize("pool", ["mass", "max"])
@pytest.mark.parametrize("resolution", [1, 3, 7, 8, 40, 64])
def test_pooled_maps_equal_pooling_the_whole_map(pool, resolution):
    maps = eager_maps("llama", inputs("llama"))
    record = record_of("llama", [Maps(resolution=resolution, pool=pool)])
    cells = min(40, resolution)
    cell_of = [position * cells // 40 for position in range(40)]
    expected = np.zeros((*maps.shape[:3], cells, cells))
    for query in range(40):
        for key in range(40):
            cell = (..., cell_of[query], cell_of[key])
            if pool == "mass":
                expected[cell] += maps[..., query, key] / cell_of.count(cell_of[query])
            else:
                expected[cell] = np.maximum(expected[cell], maps[..., query, key])
    np.testing.assert_allclose(record.attention_map, expected, atol=1e-5)
    assert record.map_query.values.tolist() == [cell_of.index(cell) for cell in range(cells)]


def test_chosen_layers_and_heads_are_those_of_the_whole_map():
    whole = record_of("gemma3", [Maps(resolution=None)])
    some = record_of("gemma3", [Maps(layers=[4, 1], heads=[3, 0], resolution=None), SinkMass()])
    assert some.sizes["layer"] == 6 and some.sizes["head"] == 4
    for layer in range(6):
        for head in range(4):
            found = some.attention_map.sel(layer=layer, head=head)
            if layer in (1, 4) and head in (0, 3):
                np.testing.assert_array_equal(found, whole.attention_map.sel(layer=layer, head=head))
            else:
                assert bool(found.isnull().all())


def test_a_planted_sink_takes_everything_and_uniform_keys_share_evenly():
    tokens = 60
    query = torch.ones(1, 2, tokens, 8)
    for planted, key in (
        (False, torch.zeros(1, 2, tokens, 8)),
        (True, torch.cat([torch.full((1, 2, 1, 8), 100.0), torch.zeros(1, 2, tokens - 1, 8)], 2)),
    ):
        _, lse = attend(query, key, key, scale=1.0)
        layer = FusedLayer(lse=lse, query=query, key=key, value=key, mask=CausalMask(), scale=1.0)
        mass = SinkMass(first=1).observe(layer)["sink_mass"][0, 0, :, 0].numpy()
        totals = {}
        for probe in (Received(), Entropy(), DistanceProfile()):
            total = probe.start(layer)
            for tile in layer.tiles():
                probe.add(total, layer, tile)
            totals |= {name: array[0, 0].numpy() for name, array in probe.finish(total, layer).items()}
        seen = np.arange(1, tokens + 1)
        if planted:
            np.testing.assert_allclose(mass, 1, atol=1e-6)
            np.testing.assert_allclose(totals["entropy"], 0, atol=1e-5)
            np.testing.assert_allclose(totals["received"], [tokens] + [0] * (tokens - 1), atol=1e-4)
            np.testing.assert_allclose(totals["distance_mass"], 1, atol=1e-5)
        else:
            np.testing.assert_allclose(mass, 1 / seen, rtol=1e-5)
            np.testing.assert_allclose(totals["entropy"], np.log(seen), atol=1e-5)
            harmonic = np.cumsum(1 / seen)
            np.testing.assert_allclose(totals["received"], harmonic[-1] - np.append(0, harmonic[:-1]), rtol=1e-5)
            np.testing.assert_allclose(totals["distance_mass"], totals["received"], rtol=1e-5)


def test_distance_is_absolute_where_attention_looks_ahead():
    query, key, value = torch.randn(3, 1, 2, 23, 8, generator=torch.Generator().manual_seed(0)).unbind()
    _, lse = attend(query, key, value, FullMask())
    layer = FusedLayer(lse=lse, query=query, key=key, value=value, mask=FullMask(), scale=8**-0.5)
    total = DistanceProfile().start(layer)
    for tile in layer.tiles():
        DistanceProfile().add(total, layer, tile)
    maps = (query.double() @ key.double().transpose(-1, -2) * 8**-0.5).softmax(-1).numpy()
    np.testing.assert_allclose(total, distance_profile(maps), atol=1e-5)


def test_mean_logits_and_norms_are_those_of_the_queries_keys_and_values():
    model, given = build("gpt_neox"), inputs("gpt_neox")
    states = {}

    def keep(module, query, key, value, attention_mask, scaling=None, **_):
        states[module.layer_idx] = tuple(state.double() for state in (query, key, value))
        scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~attention_mask, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("keep_states", keep)
    AttentionMaskInterface.register(
        "keep_states", lambda *a, **k: sdpa_mask(*a, **(k | {"allow_is_causal_skip": False}))
    )
    with torch.no_grad():
        model.set_attn_implementation("keep_states")
        model(**given)
        model.set_attn_implementation("sdpa")
    record = measure(model, given["input_ids"], [MeanLogits(12), Norms()])
    for layer, (query, key, value) in states.items():
        logits = (query @ key.transpose(-1, -2) * 16**-0.5)[..., :12, :12].mean(0)
        expected = np.where(np.tri(12, dtype=bool), logits, np.nan)
        np.testing.assert_allclose(record.mean_logit[layer], expected, atol=1e-5)
        np.testing.assert_allclose(record.key_norm[:, layer], key.norm(dim=-1), rtol=1e-5)
        np.testing.assert_allclose(record.value_norm[:, layer], value.norm(dim=-1), rtol=1e-5)


def test_mean_logits_of_short_texts_leave_the_rest_empty():
    model = build("llama")
    texts = [torch.arange(5, 12), torch.arange(20, 50)]
    record = measure(model, texts, [MeanLogits(10)])
    alone = [measure(model, text, [MeanLogits(10)]).mean_logit for text in texts]
    np.testing.assert_allclose(record.mean_logit[..., :7, :7], (alone[0] + alone[1])[..., :7, :7] / 2, atol=1e-5)
    np.testing.assert_allclose(record.mean_logit[..., 7:, :], alone[1][..., 7:, :], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinkMass(first=0), "first >= 1"),
        (lambda: MeanLogits(tokens=0), "tokens >= 1"),
        (lambda: Maps(resolution=0), "resolution >= 1"),
        (lambda: Maps(pool="median"), '"mass" or "max"'),
        (lambda: capture(build("llama"), [Maps(layers=[2])]), "layers 0 to 1"),
        (lambda: record_of("llama", [Maps(layers=[-1])]), "layers 0 to 1"),
        (lambda: Maps(heads=[(0, 1)]), "no list of different whole numbers"),
        (lambda: Maps(layers=[1], heads=[0, 0]), "no list of different whole numbers"),
        (lambda: record_of("llama", [Maps(heads=[4])]), "heads 0 to 3"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


def test_pooled_maps_need_one_length_and_one_forward():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    with pytest.raises(SinkscopeError, match="one length"):
        measure(model, [ids[0], ids[1, :30]], [Maps(resolution=20)])
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad(), pytest.raises(SinkscopeError, match="in one forward pass"), capture(model, ALL[-1:]):
        model(ids[:, :20], cache=cache)
        model(ids[:, 20:], cache=cache)


def test_first_cosine_is_the_cosine_of_hidden_states_and_its_figure_the_share_beyond_a_bound():
    record = record_of("llama", [FirstCosine()])
    states = hidden_states("llama", inputs("llama"))
    lengths = np.linalg.norm(states, axis=-1)
    cosines = np.einsum("sltd,sld->slt", states, states[:, :, 0]) / (lengths * lengths[:, :, :1])
    np.testing.assert_allclose(record.first_cosine[:, :-1], cosines, atol=1e-5)
    parallel = float(np.median(abs(cosines[:, 0, 1:])))
    line = figures.first_cosine(record, parallel).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata()[:-1], (abs(cosines[:, :, 1:]) > parallel).mean((0, 2)))
    with pytest.raises(SinkscopeError, match=r"parallel=1\.5 is no cosine"):
        figures.first_cosine(record, 1.5)
    with pytest.raises(SinkscopeError, match=r"first_cosine needs first_cosine.*FirstCosine\(\)"):
        figures.first_cosine(record_of("llama", [SinkMass()]))


def test_first_cosine_is_refused_where_a_forward_pass_goes_on_with_a_text():
    model, ids = build("llama"), inputs("llama", 1, 8)["input_ids"]
    sentence = "FirstCosine sets each token beside the first of its text, which this forward pass"
    with capture(model, [FirstCosine()]) as scope, pytest.raises(SinkscopeError, match=sentence):
        model.generate(ids, max_new_tokens=3, do_sample=False)
    assert scope.record.sizes["token"] == 8  # the prompt, which was read in one
    with torch.no_grad():
        cache = model(ids).past_key_values  # filled outside the scope
        with capture(model, [FirstCosine()]), pytest.raises(SinkscopeError, match=sentence):
            model(ids, past_key_values=cache)
