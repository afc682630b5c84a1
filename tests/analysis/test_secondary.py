"""Secondary sinks and rollout, against loops over hidden states and maps in float64, and on planted cases."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.hf.tiny import tiny_model
from sinkscope.reporting.purposes import say_secondary
from tests.support.naive_science import Heads, heads_of, tiny
from tests.support.synthetic import secondary_record
from tests.support.zoo import build

FAMILIES = ("llama", "mistral_sliding", "gpt_oss", "afmoe", "gemma3")


def _ids(tokens=40, batch=3):
    return torch.randint(3, 120, (batch, tokens), generator=torch.Generator().manual_seed(5))


def _by_hand(heads: Heads, row: int, parallel: float) -> dict[int, list[int]]:
    """Layers of each token's life in one text, step by step as the authors' code goes: {position: [layer]}."""
    hidden = heads.hidden
    norms = [float(np.linalg.norm(states[row, 0])) for states in (heads.embedded, *hidden)]
    steps = [after - before for before, after in pairwise(norms)]
    start = steps.index(max(steps))
    later = steps[start + 1 :]
    end = start + 1 + later.index(min(later)) if later and min(later) < 0 else len(hidden)
    lives: dict[int, list[int]] = {}
    for layer in range(start, end):
        first = hidden[layer][row, 0]
        for position, state in enumerate(hidden[layer][row][1:], start=1):
            if abs(first @ state) / np.linalg.norm(first) / np.linalg.norm(state) > parallel:
                lives.setdefault(position, []).append(layer)
    return lives


@pytest.mark.parametrize("name", FAMILIES)
def test_lives_are_those_of_the_definition_in_float64(name):
    model, ids = tiny(name), _ids()
    record = sinkscope.measure(model, ids, [sinkscope.FirstCosine(), sinkscope.Compression()])
    heads = heads_of(model, ids)
    found = sinkscope.secondary_sinks(record, parallel=0.25, short=0, spared=0)
    lives = {(row, position): layers for row in range(3) for position, layers in _by_hand(heads, row, 0.25).items()}
    assert dict(zip(zip(found["sequence"], found["position"], strict=True), found["lifetime"], strict=True)) == {
        place: len(layers) for place, layers in lives.items()
    }
    for row in found.itertuples():
        layers = lives[row.sequence, row.position]
        assert [row.birth, row.last] == [layers[0], layers[-1]]
    assert len(found)


def test_planted_tokens_are_what_they_were_made():
    table = sinkscope.secondary_sinks(secondary_record()).set_index("position")
    assert table.index.tolist() == [4, 7, 9]
    assert table["kind"].tolist() == ["primary", "secondary", "short"]
    assert table[["birth", "last", "lifetime"]].values.tolist() == [[3, 22, 20], [10, 17, 8], [5, 7, 3]]
    assert table["cosine"].tolist() == pytest.approx([1, -1, 1])
    assert table["importance"][7] == pytest.approx(0.5)
    assert table["null"][7] == pytest.approx(np.mean(1 / np.arange(8, 21)))
    assert table.attrs["rise"] == [3] and table.attrs["fall"] == [23]
    assert table.attrs["outside"] == pytest.approx(3 / (6 * 19))  # token 12
    assert table.attrs["secondary"] == 1 and np.isnan(table.attrs["secondary_low"])  # one text
    assert sinkscope.secondary_sinks(secondary_record(), short=8).set_index("position")["kind"][7] == "short"
    assert sinkscope.secondary_sinks(secondary_record(), spared=18).set_index("position")["kind"][7] == "primary"


@pytest.mark.parametrize("rise", (0, 1))
def test_a_state_that_is_long_from_the_first_layer_on_has_its_whole_life(rise):
    """Token 0 grows in layer `rise` and shrinks in layer 3, and token 7 is parallel to it meanwhile."""
    model, ids = tiny_model("llama"), _ids(tokens=20)
    spike = torch.zeros(model.config.hidden_size)
    spike[3] = 500.0
    for number, factor in ((rise, 1), (3, -1)):
        model.model.layers[number].register_forward_hook(lambda module, args, output, by=factor: grown(output, by))

    def grown(states, by):
        states = states.clone()
        states[:, [0, 7]] += by * spike
        return states

    probes = [sinkscope.FirstCosine(), sinkscope.Compression(), sinkscope.HiddenExtremes()]
    record = sinkscope.measure(model, ids, probes)
    found = sinkscope.secondary_sinks(record, short=0, spared=1)
    assert found.attrs["rise"] == [rise] * 3 and found.attrs["fall"] == [3] * 3
    own = found[found["position"] == 7]
    assert (own[["birth", "lifetime"]].values == (rise, 3 - rise)).all() and len(own) == 3
    life = sinkscope.spike_life(record, magnitude=100, ratio=10)
    assert (life[["rise", "fall", "step_up", "step_down"]].values == (rise, 2, rise, 3)).all() and len(life) == 6


def test_small_models_leave_undecided_what_the_numbers_of_the_authors_do_not_tell_apart():
    model = build("llama")
    record = sinkscope.measure(model, _ids(), [sinkscope.FirstCosine(), sinkscope.Compression()])
    found = sinkscope.secondary_sinks(record, parallel=0.25)
    assert len(found) and set(found["kind"]) == {"undecided"} and np.isnan(found.attrs["secondary"])
    assert "do not tell secondary sinks apart in a model of 2" in say_secondary(found)
    drawn = sinkscope.figures.secondary_sinks.describe(record, parallel=0.25)
    assert [mark.id for mark in drawn.panels[0].marks] == ["undecided"]


def test_a_record_without_its_first_token_is_refused():
    record = sinkscope.measure(build("llama"), _ids(), [sinkscope.FirstCosine(), sinkscope.Compression()])
    for read in (sinkscope.secondary_sinks, sinkscope.depth_table):
        with pytest.raises(SinkscopeError, match="begins at token 5"):
            read(record.isel(token=slice(5, None)))


def test_random_states_of_many_dimensions_have_no_secondary_sinks():
    """The null: directions are hardly ever parallel by chance."""
    random = np.random.default_rng(1).normal(size=(30, 200, 256))
    norms = np.linalg.norm(random, axis=-1)
    cosine = np.einsum("ltd,ld->lt", random, random[:, 0]) / norms / norms[:, :1]
    dims = ("sequence", "layer", "token")
    record = xr.Dataset(
        {"first_cosine": (dims, cosine[None]), "state_norm": (dims, norms[None])},
        {"sequence": [0], "layer": np.arange(30), "token": np.arange(200), "length": ("sequence", [200])},
    )
    table = sinkscope.secondary_sinks(record)
    assert len(table) == 0 and table.attrs["outside"] == 0
    with pytest.raises(SinkscopeError, match="nothing to draw"):
        sinkscope.figures.secondary_sinks(record)


def _rolled(maps: np.ndarray) -> np.ndarray:
    """Rollout of one text [layer, head, query, key], one entry at a time."""
    layers, _, tokens, _ = maps.shape
    before, found = np.eye(tokens), np.zeros((layers, tokens, tokens))
    for layer in range(layers):
        mixed = maps[layer].mean(0) + np.eye(tokens)
        for query in range(tokens):
            row = mixed[query] / sum(mixed[query])
            for key in range(tokens):
                found[layer, query, key] = sum(row[middle] * before[middle, key] for middle in range(tokens))
        before = found[layer]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_rollout_is_the_product_of_mean_maps_beside_the_residual(name):
    model, ids = tiny(name), _ids(tokens=18, batch=2)
    found = sinkscope.rollout(sinkscope.measure(model, ids, [sinkscope.Maps(resolution=None)]))
    maps = np.stack(heads_of(model, ids).maps, 1)
    for sequence in range(2):
        np.testing.assert_allclose(found[sequence], _rolled(maps[sequence]), rtol=1e-4, atol=1e-6)


def test_rollout_goes_to_a_sink_by_halves_whatever_its_value_and_texts_keep_their_lengths():
    maps = [np.zeros((3, 2, length, length)) for length in (6, 4)]
    for each in maps:
        each[..., 0] = 1.0
    found = sinkscope.rollout(sinkscope.from_maps(maps, first=1))
    for row, length in enumerate((6, 4)):
        later = found.isel(sequence=row, key=0, query=slice(1, length))
        np.testing.assert_allclose(later, np.broadcast_to(1 - 0.5 ** np.arange(1, 4), (length - 1, 3)).T)
    assert found.isel(sequence=1, query=slice(4, None)).isnull().all()
    uniform = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    np.testing.assert_allclose(found["null"], _rolled(np.broadcast_to(uniform, (3, 1, 6, 6)))[..., 0])


def test_maps_that_share_cells_or_lack_layers_are_refused():
    model, ids = build("llama"), _ids()
    for probe, said in (
        (sinkscope.Maps(resolution=16), "pooled"),
        (sinkscope.Maps(layers=[1], resolution=None), "all layers and heads"),
        (sinkscope.Maps(heads=[0], resolution=None), "all layers and heads"),
        (sinkscope.SinkMass(), "attention_map"),
    ):
        with pytest.raises(SinkscopeError, match=said):
            sinkscope.rollout(sinkscope.measure(model, ids, [probe, sinkscope.LogSumExp()]))


@pytest.mark.parametrize("name", ("qwen3_next", "recurrent_gemma"))
def test_rollout_of_a_model_that_mixes_tokens_without_attention_is_refused(name):
    record = sinkscope.measure(tiny_model(name), _ids(), [sinkscope.Maps(resolution=None)])
    with pytest.raises(SinkscopeError, match=r"layers 0, .* mix its tokens in another way"):
        sinkscope.rollout(record)


@pytest.mark.parametrize("given", [{"parallel": 1.0}, {"short": -1}, {"spared": 1.5}])
def test_settings_out_of_range_are_refused(given):
    with pytest.raises(SinkscopeError):
        sinkscope.secondary_sinks(secondary_record(), **given)
    with pytest.raises(SinkscopeError, match="FirstCosine"):
        sinkscope.secondary_sinks(secondary_record().drop_vars("first_cosine"))
    with pytest.raises(SinkscopeError, match="one layer"):
        sinkscope.secondary_sinks(secondary_record().isel(layer=[0]))
