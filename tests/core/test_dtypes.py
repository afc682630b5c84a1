"""Half and double precision, and autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import capture
from tests.core.recorded import FULL, record_of
from tests.support.eager import eager_maps
from tests.support.zoo import build, inputs


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom", "gptj"])
def test_bfloat16_masses_are_close_to_float32_ones_and_exact_for_what_attention_saw(name):
    given = inputs(name)
    model = build(name, dtype=torch.bfloat16)
    with torch.no_grad(), capture(model, FULL) as scope:
        model(**given)
    record = scope.record
    assert record.attrs["dtype"] == "bfloat16"
    total = record.attention_map.values.sum(-1)
    if "virtual_sink_mass" in record:
        total += record.virtual_sink_mass.values
    np.testing.assert_allclose(total, 1, atol=1e-3)  # the same scores went into the sum and into each term
    with torch.no_grad(), capture(build(name), FULL) as exact:
        build_model = exact.model
        build_model(**given)
    layer = record.sink_mass[:, 0] - exact.record.sink_mass[:, 0]
    assert float(abs(layer).max()) < 0.15  # 3 digits of scores that reach 10


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "bloom", "gptj"])
def test_under_autocast_rows_still_sum_to_one(name):
    model, given = build(name), inputs(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), capture(model, FULL) as scope:
        model(**given)
    total = scope.record.attention_map.values.sum(-1)
    if "virtual_sink_mass" in scope.record:
        total += scope.record.virtual_sink_mass.values
    np.testing.assert_allclose(total, 1, atol=3e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon_rotary", "bloom"])
def test_float64_models(name):
    given = inputs(name)
    record = record_of(build(name, dtype=torch.float64), **given)
    np.testing.assert_allclose(record.attention_map, eager_maps(name, given), atol=2e-6)


@pytest.mark.parametrize("name", ["gptj", "codegen", "mpt", "bloom"])
def test_hidden_keys_have_no_logit_also_in_float16(name):
    record = record_of(build(name, dtype=torch.float16), **inputs(name))
    expected = ~np.tri(16, dtype=bool)
    np.testing.assert_array_equal(np.isnan(record.mean_logit.values), np.broadcast_to(expected, (2, 4, 16, 16)))
    assert float(record.mean_logit.min()) > -1000
