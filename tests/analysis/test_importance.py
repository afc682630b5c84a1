from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.analysis.importance import importance
from sinkscope.analysis.maps import from_maps
from sinkscope.analysis.mass import uniform_importance
from sinkscope.errors import SinkscopeError
from tests.analysis import naive
from tests.analysis.ragged import planted_maps, ragged_maps, several_lengths, uniform_maps
from tests.support.synthetic import synthetic_maps, synthetic_record

FLOAT32 = {"rtol": 3e-6, "atol": 1e-7}  # `received` is stored in float32


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(lengths=several_lengths, heads=st.integers(1, 3), causal=st.booleans())
def test_importance_equals_its_definition_in_loops(lengths, heads, causal):
    maps = ragged_maps(lengths, 2, heads, causal=causal)
    alpha = importance(from_maps(maps, first=1))
    assert alpha.dims == ("sequence", "layer", "head", "key") and alpha.attrs["from"] == "received"
    for s, T in enumerate(lengths):
        uniform = naive.uniform_matrix(T, causal)
        for key in range(max(lengths)):
            inside = key < T
            for layer in range(2):
                for head in range(heads):
                    want = naive.alpha(maps[s][layer, head], key, causal) if inside else math.nan
                    np.testing.assert_allclose(alpha.values[s, layer, head, key], want, **FLOAT32)
            null = naive.alpha(uniform, key, causal) if inside else math.nan
            np.testing.assert_allclose(alpha["null"].values[s, key], null, rtol=1e-12)
            queries = (T - key if causal else T) if inside else 0
            assert alpha["queries"].values[s, key] == queries


@pytest.mark.parametrize("causal", [True, False])
def test_without_received_the_first_keys_come_from_sink_mass(causal):
    record = from_maps(ragged_maps([12, 7], causal=causal), first=4)
    whole, first = importance(record), importance(record.drop_vars("received"))
    assert first.sizes["key"] == 4 and first.attrs["from"] == "sink_mass"
    np.testing.assert_allclose(first, whole.isel(key=slice(4)), **FLOAT32)
    np.testing.assert_allclose(first["null"], whole["null"].isel(key=slice(4)), rtol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_uniform_attention_gives_exactly_the_null_at_every_key(causal):
    alpha = importance(from_maps(uniform_maps(30, causal)))
    for key in range(30):
        assert alpha["null"].values[0, key] == pytest.approx(uniform_importance(30, key, causal), rel=1e-12)
        np.testing.assert_allclose(alpha.values[..., key], alpha["null"].values[0, key], **FLOAT32)
    if causal:
        assert float(alpha["null"][0, 0]) == pytest.approx(naive.harmonic(30) / 30)


@pytest.mark.parametrize("position", [0, 3, 9])
def test_a_planted_sink_has_importance_one(position):
    assert (importance(from_maps(planted_maps(10, position))).values[..., position] == 1).all()


def test_only_measured_queries_count():
    """A cache was filled with 5 tokens before the scope was attached; one layer was left out by its probe."""
    maps = synthetic_maps(1, 2, 2, 12)
    record = from_maps(maps)
    received = maps[:, :, :, 5:].sum(-2)
    record["received"][:] = received
    record["sink_mass"][:, :, :, :5] = np.nan
    record["entropy"][:, :, :, :5] = np.nan
    record["sink_mass"][:, 1] = np.nan
    for each in (record, record.drop_vars("sink_mass"), record.drop_vars("entropy")):
        alpha = importance(each)
        for key in (0, 4, 5, 8, 11):
            queries = range(max(key, 5), 12)
            want = sum(maps[0, 1, 0, i, key] for i in queries) / len(queries)
            np.testing.assert_allclose(alpha.values[0, 1, 0, key], want, **FLOAT32)
            null = sum(1 / (i + 1) for i in queries) / len(queries)
            assert float(alpha["null"][0, key]) == pytest.approx(null)


def test_layers_that_began_at_different_queries_are_each_divided_by_their_own():
    maps = synthetic_maps(1, 2, 1, 10)
    record = from_maps(maps).drop_vars("received")
    record["sink_mass"][:, 1, :, :4] = np.nan
    alpha = importance(record).values
    np.testing.assert_allclose(alpha[0, 0, 0, 0], maps[0, 0, 0, :, 0].mean(), **FLOAT32)
    np.testing.assert_allclose(alpha[0, 1, 0, 0], maps[0, 1, 0, 4:, 0].mean(), **FLOAT32)


def test_a_record_without_attention_names_the_probe():
    with pytest.raises(SinkscopeError, match=r"Received\(\)"):
        importance(synthetic_record(1, 1, 1, 8).drop_vars(["received", "sink_mass"]))
