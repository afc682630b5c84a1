"""Every probe on every family, against the model's own eager maps in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import ALL, Maps, capture
from tests.support.eager import (
    distance_profile,
    eager_maps,
    entropy,
    hidden_states,
    left_padded,
    stack_ragged,
    without_padding,
)
from tests.support.zoo import DECODERS, ENCODERS, VISION, build, inputs

FAMILIES = [*DECODERS, *ENCODERS]
PADDED = [name for name in FAMILIES if name not in VISION]
PROBES = (*ALL[:-1], Maps(resolution=None))
# float32 models against float64 ones: the scores of GPT-Neo are unscaled and reach 20, where rounding is 2e-6
MASS, SUMS = 1e-5, 1e-4


def measured(name, given):
    model = build(name)
    with torch.no_grad(), capture(model, PROBES) as scope:
        model(**given, **({"use_cache": True} if name in DECODERS else {}))
    return scope.record


def assert_close(found, expected, tolerance):
    found = np.asarray(found)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.nanmax(np.abs(found - expected)) < tolerance


def assert_probes_match(record, maps, virtual):
    real = ~np.isnan(maps[..., 0])
    filled = np.nan_to_num(maps)
    tokens = maps.shape[-1]
    assert_close(record.attention_map, maps, 2 * MASS)
    assert_close(record.sink_mass, np.where(real[..., None], filled[..., :4], np.nan), MASS)
    assert_close(record.entropy, np.where(real, entropy(filled), np.nan), SUMS)
    assert_close(record.received, np.where(real, filled.sum(-2), np.nan), SUMS)
    assert_close(record.distance_mass, np.where(real, distance_profile(filled), np.nan), SUMS)
    corner = filled[..., :16, :16]
    np.testing.assert_allclose(record.mean_probability.fillna(0), corner.mean(0), atol=MASS)
    assert record.sizes["token"] == tokens
    if virtual:
        missing = np.where(real, 1 - filled.sum(-1), np.nan)
        assert_close(record.virtual_sink_mass, missing, MASS)
    else:
        assert "virtual_sink_mass" not in record


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_probes_equal_brute_force_on_float64_maps(name):
    given = inputs(name)
    record = measured(name, given)
    maps = eager_maps(name, given)
    assert_probes_match(record, maps, virtual=name == "gpt_oss")
    assert record.causal == int(name in DECODERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PADDED)
def test_left_padding_is_as_if_it_were_not_there(name):
    padding = [7, 0]
    given = left_padded(inputs(name), padding)
    record = measured(name, _accepted(name, given))
    rows = [eager_maps(name, without_padding(given, row, length)) for row, length in enumerate(padding)]
    assert_probes_match(record, stack_ragged(rows, 40), virtual=name == "gpt_oss")
    assert record.length.values.tolist() == [33, 40]
    assert record.token_id.values[0, :33].tolist() == given["input_ids"][0, 7:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "falcon_alibi"])
def test_hidden_extremes_equal_those_of_the_hidden_states(name):
    given = inputs(name)
    record = measured(name, given)
    magnitude = np.abs(hidden_states(name, given))
    layers = magnitude.shape[1]
    largest = record.activation_max.values[:, :layers]
    np.testing.assert_allclose(largest, magnitude.max(-1), rtol=1e-4)
    chosen = np.take_along_axis(magnitude, record.activation_dimension.values[:, :layers, :, None], -1)[..., 0]
    np.testing.assert_allclose(chosen, magnitude.max(-1), rtol=1e-4)
    # torch's median is the lower of the two middle values
    flat = np.sort(magnitude.reshape(*magnitude.shape[:2], -1), -1)
    expected = flat[..., (flat.shape[-1] - 1) // 2]
    np.testing.assert_allclose(record.activation_median.values[:, :layers, 0], expected, rtol=1e-3)


def _accepted(name, given):
    """The inputs without positions where a family derives them from the mask or has none."""
    if name in ("mpt", "bloom", "falcon_alibi", "opt"):
        given = {key: value for key, value in given.items() if key != "position_ids"}
    return given
