from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sinkscope.analysis.intervals import interval
from sinkscope.errors import SinkscopeError


def naive_percentile_bootstrap(values, confidence, resamples, seed):
    """Efron's percentile interval, one resample at a time."""
    random = np.random.default_rng(seed)
    means = sorted(float(np.mean(random.choice(values, size=len(values)))) for _ in range(resamples))
    return np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])


def test_bounds_agree_with_a_plain_bootstrap():
    values = np.random.default_rng(4).gamma(2.0, size=40)
    got = interval(xr.DataArray(values, dims="sequence"), resamples=8000)
    low, high = naive_percentile_bootstrap(values, 0.95, 8000, seed=9)
    # Two independent bootstraps of 8000 differ by a few hundredths of the interval's width.
    width = high - low
    assert got["mean"].item() == pytest.approx(values.mean(), rel=1e-12)
    assert got["lower"].item() == pytest.approx(low, abs=0.05 * width)
    assert got["upper"].item() == pytest.approx(high, abs=0.05 * width)


def test_nine_in_ten_intervals_hold_a_known_normal_mean():
    """400 samples of 30 from N(5, 2): nominally 90%, a little less with 30; 3 standard errors are 4.5%."""
    samples = np.random.default_rng(0).normal(5.0, 2.0, size=(30, 400))
    got = interval(xr.DataArray(samples, dims=("sequence", "trial")), confidence=0.9, resamples=600)
    covered = float(((got["lower"] <= 5.0) & (got["upper"] >= 5.0)).mean())
    assert 0.84 <= covered <= 0.945
    width = float((got["upper"] - got["lower"]).mean())
    assert width == pytest.approx(2 * 1.645 * 2.0 / np.sqrt(30), rel=0.06)


def test_every_element_is_resampled_from_its_own_values_that_are_there():
    values = np.random.default_rng(1).normal(size=(6, 4))
    values[4:, 1] = np.nan
    values[1:, 2] = np.nan
    values[:, 3] = np.nan
    table = xr.DataArray(values, dims=("sequence", "layer"), coords={"layer": [3, 5, 7, 9]})
    got = interval(table)
    assert got["layer"].values.tolist() == [3, 5, 7, 9]
    np.testing.assert_allclose(got["mean"], [values[:, 0].mean(), values[:4, 1].mean(), values[0, 2], np.nan])
    assert got["lower"].isnull().values.tolist() == got["upper"].isnull().values.tolist() == [False, False, True, True]
    alone = interval(table.isel(sequence=slice(4), layer=1))
    assert got["lower"].values[1] == alone["lower"].item() and got["upper"].values[1] == alone["upper"].item()
    assert got.attrs["n"] == 6


def test_the_same_seed_gives_the_same_bounds_whatever_the_memory():
    table = xr.DataArray(np.random.default_rng(2).normal(size=(5, 3)), dims=("sequence", "layer"))
    first, again = interval(table), interval(table)
    xr.testing.assert_identical(first, again)
    assert not first["lower"].equals(interval(table, seed=1)["lower"])
    with pytest.MonkeyPatch.context() as patch:
        for most in (100, 4000):  # columns one by one, and two at once
            patch.setattr("sinkscope.analysis.intervals.BATCH_VALUES", most)
            xr.testing.assert_identical(interval(table), first)


def test_more_resamples_than_memory_should_hold_are_refused():
    with pytest.raises(SinkscopeError, match=r"resamples=1000000000 is more than 100,000: give less"):
        interval(xr.DataArray(np.ones(5), dims="sequence"), resamples=10**9)


def test_any_dimension_in_any_order_and_no_others():
    values = np.random.default_rng(3).normal(size=(2, 7, 3))
    table = xr.DataArray(values, dims=("layer", "draw", "head"), coords={"length": ("draw", np.arange(7))})
    got = interval(table, dim="draw")
    assert got["mean"].dims == ("layer", "head") and "length" not in got.coords
    np.testing.assert_allclose(got["mean"], values.mean(1))
    assert interval(table.isel(layer=0, head=0), dim="draw")["lower"].dims == ()


def test_constant_values_have_bounds_of_no_width_and_one_value_has_none():
    same = interval(xr.DataArray(np.ones(5), dims="sequence"))
    assert same["lower"].item() == same["mean"].item() == same["upper"].item() == 1.0
    one = interval(xr.DataArray([2.0], dims="sequence"))
    assert one["mean"].item() == 2.0 and one["lower"].isnull() and one["upper"].isnull()
    assert one.attrs["n"] == 1


def test_attributes_hold_the_procedure_and_the_provenance():
    table = xr.DataArray([1.0, 2.0], dims="sequence", attrs={"model": "m"})
    got = interval(table, confidence=0.9, resamples=100, seed=3)
    assert got.attrs["model"] == "m"
    assert {name: got.attrs[name] for name in ("confidence", "resamples", "seed", "n")} == {
        "confidence": 0.9,
        "resamples": 100,
        "seed": 3,
        "n": 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": "head"}, "dim='head'"),
        ({"confidence": 95}, "confidence=95"),
        ({"resamples": 0}, "resamples=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(SinkscopeError, match=message):
        interval(xr.DataArray([1.0, 2.0], dims="sequence"), **options)
