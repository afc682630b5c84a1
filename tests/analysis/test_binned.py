"""Mean sink mass by predictability, with its interval."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope.analysis.predictability import mean_mass_by_bin, predictability_bins
from sinkscope.errors import SinkscopeError
from tests.support import experiments


def test_means_are_those_of_the_queries_in_each_bin_and_lie_in_their_intervals():
    record = experiments.predictability()
    found = mean_mass_by_bin(record, bins=5, start=16)
    mass = record["sink_mass"].values[..., 0].astype(float).mean((1, 2))[:, 16:].ravel()
    order = np.argsort(record["next_entropy"].values[:, 16:].ravel(), kind="stable")
    np.testing.assert_allclose(found["mean"], [mass[piece].mean() for piece in np.array_split(order, 5)], rtol=1e-6)
    assert (found["lower"] < found["mean"]).all() and (found["mean"] < found["upper"]).all()
    for name in ("sink_mass", "null", "middle"):
        np.testing.assert_array_equal(found[name], predictability_bins(record, bins=5, start=16)[name])


@pytest.mark.slow
def test_intervals_of_independent_queries_are_as_wide_as_the_textbook_says():
    record, random = (
        experiments.predictability(sequences=4, layers=1, heads=1, tokens=500),
        np.random.default_rng(0),
    )
    mass = random.normal(0.5, 0.1, record["sink_mass"].shape).astype(np.float32)
    found = mean_mass_by_bin(record.assign(sink_mass=(record["sink_mass"].dims, mass)), bins=4, start=100, block=4)
    half = 1.96 * 0.1 / 400**0.5  # 4 texts x 400 queries in 4 bins
    # 1,000 resamples of 400 blocks fix a width to some 5%; four bins of them.
    np.testing.assert_allclose(found["upper"] - found["lower"], 2 * half, rtol=0.2)


def test_a_constant_mass_has_an_interval_of_no_width():
    record = experiments.predictability()
    flat = record.assign(sink_mass=0 * record["sink_mass"] + 0.25)
    found = mean_mass_by_bin(flat, bins=3, start=16, block=8)
    for name in ("mean", "lower", "upper"):
        np.testing.assert_allclose(found[name], 0.25, rtol=1e-6)


def test_a_record_of_something_else_is_refused():
    with pytest.raises(SinkscopeError, match=r"sinkscope\.predictability"):
        mean_mass_by_bin(experiments.forced())
