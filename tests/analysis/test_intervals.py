from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sinkscope.analysis.intervals import interval
from sinkscope.errors import SinkscopeError


def test_bounds_are_those_of_students_t_as_scipy_has_them():
    values = np.random.default_rng(4).normal(5.0, 1.0, size=(7, 3))
    got = interval(xr.DataArray(values, dims=("sequence", "layer")), confidence=0.9)
    low, high = stats.t.interval(0.9, 6, values.mean(0), stats.sem(values, axis=0))
    np.testing.assert_allclose(got["mean"], values.mean(0))
    np.testing.assert_allclose(got["lower"], low)
    np.testing.assert_allclose(got["upper"], high)
    assert got.attrs["bounds"] == "90% t interval over 7 sequences" and "note" not in got.attrs


@pytest.mark.parametrize("count", [4, 8, 16])
@pytest.mark.parametrize(
    ("draw", "truth", "ends"),
    [
        (lambda random, size: random.normal(5.0, 2.0, size), 5.0, {}),
        (lambda random, size: random.lognormal(size=size), np.exp(0.5), {"at_least": 0}),
        (lambda random, size: random.gamma(2.0, size=size), 2.0, {"at_least": 0}),
        (lambda random, size: random.beta(0.5, 5, size), 0.5 / 5.5, {"at_least": 0, "at_most": 1}),
        (lambda random, size: 1 - random.beta(0.5, 5, size), 5 / 5.5, {"at_least": 0, "at_most": 1}),
    ],
    ids=["normal", "lognormal", "gamma", "near zero", "near one"],
)
def test_nineteen_in_twenty_intervals_hold_the_mean_however_skewed(draw, truth, ends, count):
    """8,000 samples fix a share of 95% to 0.25%; percentiles of a bootstrap hold 68% (lognormal, 4) to 92%."""
    values = draw(np.random.default_rng(count), (count, 8000))
    got = interval(xr.DataArray(values, dims=("sequence", "trial")), **ends)
    covered = float(((got["lower"] <= truth) & (got["upper"] >= truth)).mean())
    assert 0.925 <= covered <= 0.975, covered


@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("zeros", [0.25, 0.5, 0.75])
def test_shares_of_which_many_are_zero_are_held_by_intervals_that_still_say_something(zeros, count):
    """Where all are zero, bounds have no width and say nothing. With the logarithms' largest spread instead of the
    values' own, half of the intervals over 16, half of them zero, were wider than 0.69."""
    random = np.random.default_rng(count)
    values = np.where(random.random((count, 4000)) < zeros, 0.0, random.beta(0.5, 5, (count, 4000)))
    got = interval(xr.DataArray(values, dims=("sequence", "trial")), at_least=0, at_most=1)
    known, truth = (values > 0).any(0), (1 - zeros) * 0.5 / 5.5
    covered = float(((got["lower"] <= truth) & (got["upper"] >= truth)).values[known].mean())
    assert 0.925 <= covered <= 0.975, covered
    assert count < 16 or float((got["upper"] - got["lower"]).median()) < 0.5


def test_zero_is_not_above_zero_where_no_end_was_stated():
    """Plain t, as scipy has it, and on a logarithmic scale once zero is said to be the end."""
    values = np.append(np.random.default_rng(5).exponential(size=9), 0.0)
    table = xr.DataArray(values, dims="sequence")
    low, high = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    got = interval(table)
    assert got["lower"].item() == pytest.approx(low) and got["upper"].item() == pytest.approx(high)
    assert "logarithmic" not in got.attrs["bounds"] and "logarithmic" in interval(table, at_least=0).attrs["bounds"]
    assert "logarithmic" in interval(table[:-1]).attrs["bounds"]


@pytest.mark.slow
def test_skewed_values_have_the_interval_of_a_bootstrap_from_the_lognormal_of_their_spread():
    """An independent studentised bootstrap, one sample at a time."""
    values = np.random.default_rng(3).lognormal(0, 0.8, 12)
    got = interval(xr.DataArray(values, dims="sequence"), at_least=0)
    mean, error = values.mean(), stats.sem(values)
    spread = np.std(np.log(values), ddof=1) * (1 + 2 / 12)
    random, drawn = np.random.default_rng(9), []
    for _ in range(20_000):
        sample = random.lognormal(0, spread, 12)
        drawn.append((np.log(sample.mean()) - spread**2 / 2) * sample.mean() / stats.sem(sample))
    low, high = np.quantile(drawn, [0.025, 0.975])
    # 10,000 and 20,000 draws fix a 2.5% quantile to some 2%, and the table of spreads is interpolated
    assert np.log(got["lower"].item()) == pytest.approx(np.log(mean) - high * error / mean, abs=0.05)
    assert np.log(got["upper"].item()) == pytest.approx(np.log(mean) - low * error / mean, abs=0.08)
    assert "logarithmic scale" in got.attrs["bounds"]


def test_a_text_that_is_there_twice_does_not_narrow_an_interval():
    values = np.random.default_rng(0).normal(size=(5, 3))
    once = interval(xr.DataArray(values, dims=("sequence", "layer")))
    twice = interval(xr.DataArray(np.concatenate([values, values]), dims=("sequence", "layer")))
    for name in ("mean", "lower", "upper"):
        np.testing.assert_allclose(twice[name], once[name])
    assert twice.attrs["n"] == 5
    said = xr.DataArray([1.0, 2.0, 3.0, 3.1, 3.2], dims="sequence", coords={"same_text": ("sequence", [0, 1, 2, 2, 2])})
    got = interval(said)
    assert got.attrs["n"] == 3 and got["mean"].item() == pytest.approx(2.46)
    assert got["upper"] - got["lower"] > interval(said.drop_vars("same_text"))["upper"] - got["lower"]


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
    for name in ("lower", "upper"):
        assert got[name].values[1] == pytest.approx(alone[name].item(), rel=1e-12)
    assert got.attrs["n"] == 6


def test_the_same_seed_gives_the_same_bounds_of_skewed_values_whatever_else_is_there():
    table = xr.DataArray(np.random.default_rng(2).exponential(size=(5, 3)), dims=("sequence", "layer"))
    first, again = interval(table, at_least=0), interval(table, at_least=0)
    xr.testing.assert_identical(first, again)
    assert not first["lower"].equals(interval(table, seed=1, at_least=0)["lower"])
    xr.testing.assert_identical(
        interval(table.isel(layer=[1]), at_least=0).drop_attrs(), first.isel(layer=[1]).drop_attrs()
    )


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
    assert "no width" in same.attrs["note"]
    two = interval(xr.DataArray([2.0, 3.0], dims="sequence"))
    assert two["mean"].item() == 2.5 and two["lower"].isnull() and "fewer than 3 sequences" in two.attrs["note"]
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


def test_bounds_of_a_share_stay_within_it():
    share = xr.DataArray([0.9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-8, 1e-9, 1e-9], dims="sequence")
    found = interval(share, at_least=0.0, at_most=1.0)
    assert 0.0 <= float(found["lower"]) < float(found["mean"]) < float(found["upper"]) <= 1.0


def test_values_that_are_not_there_or_infinite_have_no_bounds_and_a_note_says_why():
    nothing = interval(xr.DataArray(np.full(6, np.nan), dims="sequence"))
    assert np.isnan(nothing["lower"]) and nothing.attrs["note"] == "no sequence has a value"
    infinite = interval(xr.DataArray([1.0, 2.0, np.inf, 3.0], dims="sequence"))
    assert np.isnan(infinite["upper"]) and infinite.attrs["note"] == "no bounds where a value is infinite"
