"""Headlines against length, threshold and BOS, from the maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sinkscope.analysis.sensitivity import mass_by_length, sensitivity_table
from sinkscope.errors import SinkscopeError
from tests.support.synthetic import synthetic_maps, synthetic_record

SIZE = (5, 3, 2, 80)


def test_the_mass_of_a_prefix_its_null_and_the_share_above_it():
    maps, found = synthetic_maps(*SIZE), mass_by_length(synthetic_record(*SIZE))
    assert found["length"].values.tolist() == [16, 64, 80]
    for length in (16, 64, 80):
        each = maps[..., 1:length, 0].mean((1, 2, 3))
        own = found.sel(length=length)
        null = np.mean(1 / np.arange(2, length + 1))
        assert own["mass"] == pytest.approx(each.mean(), rel=1e-5) and own["null"] == pytest.approx(null)
        assert own["above"] == pytest.approx((each.mean() - null) / (1 - null), rel=1e-5)
        assert own["times_null"] == pytest.approx(each.mean() / null, rel=1e-5)
        bounds = stats.t.interval(0.95, 4, each.mean(), stats.sem(each))
        np.testing.assert_allclose([own["lower"], own["upper"]], bounds, rtol=1e-4)


def test_uniform_attention_lies_nowhere_above_the_null():
    from sinkscope.analysis.maps import from_maps

    uniform = np.tril(np.ones((4, 2, 2, 64, 64)))
    found = mass_by_length(from_maps(uniform / uniform.sum(-1, keepdims=True)))
    np.testing.assert_allclose(found["above"], 0, atol=1e-6)
    np.testing.assert_allclose(found["times_null"], 1, rtol=1e-6)


def test_the_table_varies_one_thing_at_a_time():
    record, short = synthetic_record(*SIZE), synthetic_record(4, 3, 2, 40, seed=1)
    other = synthetic_record(3, 3, 2, 40, seed=2).assign_attrs(bos="no")
    table = sensitivity_table(record, short, other)
    assert set(zip(table["headline"], table["varied"], strict=True)) == {
        ("mass", "T"), ("mass", "BOS"), ("sink rate", "T"), ("sink rate", "epsilon"), ("sink rate", "BOS"),
    }  # fmt: skip
    alpha = synthetic_maps(*SIZE)[..., 0].mean(-1)
    for _, row in table[(table["varied"] == "epsilon")].iterrows():
        assert row["value"] == pytest.approx((alpha > float(row["level"])).mean(), abs=1e-6)
    bos = table[(table["headline"] == "mass") & (table["varied"] == "BOS")]
    assert bos["level"].tolist() == ["with, T = 40", "without, T = 40"]
    expected = [synthetic_maps(4, 3, 2, 40, seed=1)[:3], synthetic_maps(3, 3, 2, 40, seed=2)]
    np.testing.assert_allclose(bos["value"], [maps[..., 1:, 0].mean() for maps in expected], rtol=1e-5)
    assert "BOS" not in set(sensitivity_table(record)["varied"])


def test_a_threshold_of_ones_own_is_that_of_the_table():
    record = synthetic_record(*SIZE)
    table = sensitivity_table(record, epsilon=0.15)
    alpha = synthetic_maps(*SIZE)[..., 0].mean(-1)
    rates = table[(table["headline"] == "sink rate") & (table["varied"] == "T")].set_index("level")["value"]
    assert rates["80"] == pytest.approx((alpha > 0.15).mean(), abs=1e-6)
    assert "0.15" in set(table["level"]) and table.attrs["epsilon"] == 0.15


def test_other_texts_in_the_place_of_those_without_bos_are_refused():
    record, short = synthetic_record(*SIZE), synthetic_record(4, 3, 2, 40)
    other = short.assign_coords(token_id=short["token_id"] + 1)
    with pytest.raises(SinkscopeError, match="other_bos holds other tokens than short"):
        sensitivity_table(record, short, other)
    with pytest.raises(SinkscopeError, match="other_bos has the sequence 9, and short has not"):
        sensitivity_table(record, short, short.assign_coords(sequence=[0, 1, 2, 9]))


@pytest.mark.parametrize("length", [1, 81, 2.5])
def test_a_length_that_is_no_prefix_is_refused(length):
    with pytest.raises(SinkscopeError, match="length="):
        mass_by_length(synthetic_record(*SIZE), lengths=[length])
