"""Forced mass against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sinkscope.analysis.mass import amplification, eviction_by_layer
from sinkscope.errors import SinkscopeError
from tests.support.synthetic import synthetic_maps

NORMS = ("output_norm", "change_norm", "lost_denominator", "lost_value")
COLUMNS = {"change": "change_norm", "lost_denominator": "lost_denominator", "lost_value": "lost_value"}
LENGTHS = (30, 24, 30)


def record_of(sequences: int = 3) -> tuple[xr.Dataset, np.ndarray]:
    """As `EvictionEffect((0, 1))` gives it, and the maps it is of; the second text is shorter."""
    maps, random = synthetic_maps(sequences, 3, 2, 30), np.random.default_rng(0)
    mass = maps[..., :2].sum(-1)
    hidden = np.arange(30) < 2
    hidden = hidden | (np.arange(30) >= np.array(LENGTHS[:sequences])[:, None, None, None])
    dims = ("sequence", "layer", "head", "query")
    with np.errstate(divide="ignore"):
        found = {"log_amplification": -np.log1p(-mass)} | {name: random.lognormal(size=mass.shape) for name in NORMS}
    return xr.Dataset(
        {name: (dims, np.where(hidden, np.nan, values)) for name, values in found.items()},
        coords={
            "sequence": range(sequences), "layer": [0, 1, 2], "head": [0, 1], "query": range(30),
            "length": ("sequence", list(LENGTHS[:sequences])),
        },
        attrs={"model": "some/model"},
    ), maps  # fmt: skip


def test_amplification_is_the_geometric_mean_of_what_one_over_the_rest_is():
    record, maps = record_of()
    factors = 1 / np.maximum(1 - maps[..., :2].sum(-1), 1e-12)  # the first two queries see nothing else
    expected = np.empty((3, 2))
    for layer, head in np.ndindex(3, 2):
        seen = np.concatenate([factors[text, layer, head, 2:length] for text, length in enumerate(LENGTHS)])
        expected[layer, head] = seen.prod() ** (1 / len(seen))
    found = amplification(record)
    assert found.dims == ("layer", "head") and found.attrs["model"] == "some/model"
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found < np.nanmean(factors[..., 2:], axis=(0, 3))).all()  # which a few queries would decide


def test_parts_of_a_record_have_the_numbers_of_the_whole():
    record, _ = record_of()
    whole = amplification(record)
    np.testing.assert_allclose(amplification(record.sel(layer=1)).values, whole.values[[1]])
    np.testing.assert_allclose(amplification(record.sel(head=0)).values, whole.values[:, [0]])
    table = eviction_by_layer(record, resamples=50)
    one = eviction_by_layer(record.sel(layer=2), resamples=50)
    np.testing.assert_allclose(one.to_numpy(), table.to_numpy()[[2]])
    head = eviction_by_layer(record.sel(head=1), resamples=50)
    np.testing.assert_allclose(head.to_numpy(), eviction_by_layer(record.sel(head=[1]), resamples=50).to_numpy())
    text = eviction_by_layer(record.sel(sequence=1), resamples=50)
    np.testing.assert_allclose(text.to_numpy(), eviction_by_layer(record.sel(sequence=[1]), resamples=50).to_numpy())


def test_layers_have_mean_norms_over_mean_norms():
    record, _ = record_of()
    table = eviction_by_layer(record, resamples=50)
    per_text = {name: np.nanmean(record[name].values, axis=(2, 3)) for name in ("log_amplification", *NORMS)}
    np.testing.assert_array_equal(table["layer"], [0, 1, 2])
    np.testing.assert_allclose(table["amplification"], np.exp(per_text["log_amplification"].mean(0)))
    for column, name in COLUMNS.items():
        np.testing.assert_allclose(table[column], (per_text[name] / per_text["output_norm"]).mean(0))


def test_intervals_are_over_texts():
    """Student's t over texts, of the amplification on its logarithm, as scipy has it; one text has none."""
    record, _ = record_of(3)
    record = record.assign({name: 3 + record[name] for name in NORMS})  # a spread that is no skew
    table = eviction_by_layer(record)
    per_text = {name: np.nanmean(record[name].values, axis=(2, 3)) for name in ("log_amplification", *NORMS)}
    ratios = {column: per_text[name] / per_text["output_norm"] for column, name in COLUMNS.items()}
    for column, values in {"amplification": per_text["log_amplification"], **ratios}.items():
        assert (values.std(0, ddof=1) < 0.25 * values.mean(0)).all()
        bounds = stats.t.interval(0.95, 2, values.mean(0), stats.sem(values, axis=0))
        for name, bound in zip(("low", "high"), bounds, strict=True):
            np.testing.assert_allclose(table[f"{column}_{name}"], np.exp(bound) if column == "amplification" else bound)
    parts = ratios["lost_denominator"] - ratios["lost_value"]
    np.testing.assert_allclose(table["difference"], parts.mean(0))
    bounds = stats.t.interval(0.95, 2, parts.mean(0), stats.sem(parts, axis=0))  # paired
    np.testing.assert_allclose(table[["difference_low", "difference_high"]].T, bounds)
    assert eviction_by_layer(record_of(1)[0]).filter(like="_low").isna().all(axis=None)


def test_what_was_not_measured_is_named():
    record, _ = record_of()
    with pytest.raises(SinkscopeError, match="EvictionEffect"):
        amplification(record.drop_vars("log_amplification"))
    with pytest.raises(SinkscopeError, match="no norms"):
        eviction_by_layer(record.drop_vars("lost_value"))
