from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.analysis.mass import value_drain
from sinkscope.errors import SinkscopeError
from tests.support.synthetic import synthetic_record


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(first=st.integers(1, 5), short=st.integers(2, 12), seed=st.integers(0, 99))
def test_ratio_equals_its_definition_in_loops(first, short, seed):
    lengths = [12, short]
    record = synthetic_record(2, 2, 2, 12, seed=seed).assign_coords(length=("sequence", lengths))
    for name in ("key_norm", "value_norm"):
        record[name][1, :, :, short:] = np.nan
    drain = value_drain(record, first)
    assert drain["value_ratio"].dims == ("layer", "kv_head")
    for name in ("value", "key"):
        norm = record[f"{name}_norm"].values.astype(float)
        for layer in range(2):
            for head in range(2):
                ratios = []
                for s, T in enumerate(lengths):
                    if first < T:
                        sinks = sum(norm[s, layer, head, p] for p in range(first)) / first
                        rest = sum(norm[s, layer, head, p] for p in range(first, T)) / (T - first)
                        ratios.append(sinks / rest)
                want = sum(ratios) / len(ratios)
                np.testing.assert_allclose(drain[f"{name}_ratio"].values[layer, head], want, rtol=1e-9)


def test_equal_norms_give_the_null_and_scaled_ones_the_scale():
    record = synthetic_record(2, 2, 2, 12)
    record["value_norm"][:] = 3.0
    record["key_norm"][:] = 3.0
    record["key_norm"][..., 0] = 1.5
    drain = value_drain(record)
    np.testing.assert_allclose(drain["value_ratio"], drain.attrs["null"])
    np.testing.assert_allclose(drain["key_ratio"], 0.5)


def test_the_planted_drain_is_seen_and_missing_heads_stay_missing():
    record = synthetic_record(3, 4, 2, 40)
    record["value_norm"][:, 1, 1] = np.nan
    drain = value_drain(record)
    assert np.isnan(drain["value_ratio"].values[1, 1])
    assert float(drain["value_ratio"].max()) < 0.2 < float(drain["key_ratio"].min())
    assert drain.attrs["first"] == 1 and drain.attrs["model"] == "synthetic"


def test_a_selected_layer_reads_the_same():
    record = synthetic_record(2, 3, 2, 12)
    whole, one = value_drain(record), value_drain(record.sel(layer=1))
    np.testing.assert_array_equal(one["value_ratio"].values, whole["value_ratio"].values[1:2])


@pytest.mark.parametrize(("first", "message"), [(0, "first=0"), (12, "first=12"), ("1", "first='1'")])
def test_bad_numbers_of_tokens_are_refused(first, message):
    with pytest.raises(SinkscopeError, match=message):
        value_drain(synthetic_record(1, 1, 1, 12), first)


def test_a_record_without_norms_names_the_probe():
    with pytest.raises(SinkscopeError, match=r"Norms\(\)"):
        value_drain(synthetic_record(1, 1, 1, 12).drop_vars("value_norm"))
