"""Sink mass against predictability: Spearman's correlation by scipy, bins by a sort."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from sinkscope.analysis.predictability import predictability_bins, predictability_table, sides
from sinkscope.errors import SinkscopeError
from tests.support.loss_records import autoregressive

MEASURES = ("next_loss", "next_entropy")


def record_of(mass, entropy, loss=None, lengths=None) -> xr.Dataset:
    """Mass [sequence, layer, head, query, sink] and what is known of the next token [sequence, query]."""
    mass, entropy = np.array(mass, np.float32), np.array(entropy, np.float32)
    loss = entropy[:, ::-1].copy() if loss is None else np.array(loss, np.float32)
    sequences, layers, heads, queries = mass.shape[:4]
    lengths = [queries] * sequences if lengths is None else lengths
    for text, length in enumerate(lengths):
        mass[text, :, :, length:], entropy[text, length:], loss[text, length - 1 :] = np.nan, np.nan, np.nan
    return xr.Dataset(
        {
            "sink_mass": (("sequence", "layer", "head", "query", "sink"), mass),
            "next_loss": (("sequence", "query"), loss),
            "next_entropy": (("sequence", "query"), entropy),
        },
        coords={
            "sequence": range(sequences), "layer": range(layers), "head": range(heads), "query": range(queries),
            "length": ("sequence", lengths),
        },
        attrs={"kind": "predictability", "model": "some/model"},
    )  # fmt: skip


def drawn(seed: int = 0, lengths=(120, 90, 120), sinks: int = 2) -> xr.Dataset:
    """Mass and entropy that fall together; in steps, so that there are ties."""
    random = np.random.default_rng(seed)
    entropy = random.gamma(2.0, 1.0, (len(lengths), 120)).round(1)
    mass = random.random((len(lengths), 2, 3, 120, sinks)) - 0.05 * entropy[:, None, None, :, None]
    return record_of(mass.round(2), entropy, lengths=list(lengths))


def test_correlations_are_those_of_scipy_in_each_text_ties_and_all():
    record = drawn()
    table = predictability_table(record, start=20, resamples=20)
    mass = record.sink_mass.values.sum(-1)
    for row in table.itertuples():
        last = {"next_loss": 1, "next_entropy": 0}[row.measure]
        found = []
        for text, length in enumerate(record.length.values):
            late = slice(20, length - last)
            found.append(spearmanr(mass[text, row.layer, row.head, late], record[row.measure][text, late]).statistic)
        assert row.correlation == pytest.approx(np.mean(found), abs=1e-6)
    assert len(table) == 2 * 2 * 3 and table.low.lt(table.correlation).all() and table.high.gt(table.correlation).all()
    np.testing.assert_allclose(
        table.query("measure == 'next_loss'").sink_mass, np.nanmean(mass[..., 20:], (0, 3)).ravel(), rtol=1e-5
    )


def test_the_null_is_what_the_place_of_a_query_alone_explains():
    random = np.random.default_rng(1)
    entropy = 5 - np.log(np.arange(1, 101)) + random.normal(0, 0.5, (2, 100))  # falls along the text, as it does
    record = record_of(random.random((2, 1, 2, 100, 1)), entropy)
    table = predictability_table(record, start=10, resamples=20)
    for measure, last in (("next_entropy", 0), ("next_loss", 1)):
        places = np.arange(10, 100 - last)
        known = [spearmanr(1 / (places + 1), record[measure][text, places]).statistic for text in range(2)]
        found = table.loc[table.measure == measure, "null"].to_numpy()
        np.testing.assert_allclose(found, np.mean(known), atol=1e-9)
    assert table.query("measure == 'next_entropy'")["null"].min() > 0.5


def test_an_even_head_has_the_correlation_of_the_null():
    entropy = np.random.default_rng(2).random((2, 80))
    even = np.broadcast_to(1 / np.arange(1, 81), (2, 1, 1, 80))[..., None]
    row = predictability_table(record_of(even, entropy), start=4, resamples=20).iloc[1]
    assert row["correlation"] == pytest.approx(row["null"], abs=1e-9)


@pytest.mark.parametrize(("correlation", "memory"), [(0.5, 0.0), (0.3, 0.8), (0.0, 0.5)])
def test_intervals_of_series_that_remember_hold_a_known_correlation(correlation, memory):
    """240 heads over 6 records, nominally 95%. Blocks of a text this short are few, which narrows intervals a little;
    4 standard errors are 6% where heads share nothing, and they share their entropies."""
    truth, held = 6 / np.pi * np.arcsin(correlation / 2), []  # of two normal variables
    for seed in range(6):
        entropy = autoregressive((2, 300), memory, seed)
        own = autoregressive((2, 1, 40, 300), memory, seed + 100)
        mass = correlation * entropy[:, None, None] + (1 - correlation**2) ** 0.5 * own
        rows = predictability_table(record_of(mass[..., None], entropy), start=1, resamples=300)
        rows = rows[rows["measure"] == "next_entropy"]
        held += ((rows["low"] <= truth) & (truth <= rows["high"])).tolist()
    assert 0.85 <= np.mean(held) <= 0.99


def test_p_agrees_with_the_interval_and_q_is_that_of_benjamini_and_hochberg():
    random = np.random.default_rng(5)
    entropy = random.normal(size=(4, 200))
    strength = np.linspace(-0.4, 0.4, 30)[:, None]
    mass = strength * entropy[:, None, None] + random.normal(size=(4, 1, 30, 200))
    table = predictability_table(record_of(mass[..., None], entropy), start=1)
    assert set(sides(table)) == {"below", "neither", "above"}
    for _, rows in table.groupby("measure"):
        kinds = sides(rows)
        assert ((rows["p"] < 0.05) == kinds.isin(["below", "above"])).all()
        ordered = rows.sort_values("p", ascending=False)
        rank = np.arange(len(rows), 0, -1)
        expected = np.minimum.accumulate(ordered["p"].to_numpy() * len(rows) / rank)
        np.testing.assert_allclose(ordered["q"], np.minimum(expected, 1))
    assert predictability_table(record_of(mass[..., None], entropy), start=1, block=9, resamples=9)["q"].isna().all()


@pytest.mark.slow
def test_unrelated_heads_are_seldom_discoveries():
    """Forty heads that share nothing with the entropy: at 5% false discoveries, in 1 of 20 records any is told."""
    told = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        table = predictability_table(record_of(random.random((2, 1, 40, 120, 1)), random.random((2, 120))), start=1)
        told.append((table[table["measure"] == "next_entropy"]["q"] <= 0.05).any())
    assert sum(told) <= 6  # a binomial of 40 at 0.05 has more in 1 of 100


def test_short_texts_have_intervals_of_some_width():
    """A block is a tenth of a text at most: one as long as the text would always give the same mean."""
    rows = predictability_table(drawn(lengths=(40,)), start=1, block=64, resamples=200)
    assert (rows["high"] - rows["low"] > 0.1).all()


def test_a_head_that_never_varies_has_none_and_spoils_no_other():
    record = drawn()
    spoiled = record.copy(deep=True)
    spoiled.sink_mass[:, 0, 1] = 0.25
    spoiled.sink_mass[1, 1, 2] = 0.25  # in one text only: the others tell
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before, after = (predictability_table(each, start=20, resamples=30) for each in (record, spoiled))
    constant = (after.layer == 0) & (after["head"] == 1)
    assert after[constant][["correlation", "low", "high"]].isna().all(axis=None)
    other = ~constant & ~((after.layer == 1) & (after["head"] == 2))
    assert after[other].drop(columns="q").equals(before[other].drop(columns="q"))  # among how many is in q
    assert after[~constant].notna().all(axis=None)


def test_texts_too_short_are_left_out():
    record = drawn(lengths=(120, 22, 120))
    table = predictability_table(record, start=20, resamples=30)
    alone = predictability_table(record.isel(sequence=[0, 2]), start=20, resamples=30)
    np.testing.assert_allclose(table["correlation"], alone["correlation"], atol=1e-12)


def test_parts_of_a_record_have_the_numbers_of_the_whole():
    record = drawn()
    table = predictability_table(record, start=20, resamples=30)
    for part, rows in (
        (record.sel(layer=1), table[table["layer"] == 1]),
        (record.sel(head=2), table[table["head"] == 2]),
    ):
        found = predictability_table(part, start=20, resamples=30)
        np.testing.assert_allclose(found["correlation"], rows["correlation"], atol=1e-12)
        assert found[["layer", "head"]].to_numpy().tolist() == rows[["layer", "head"]].to_numpy().tolist()
    one = predictability_table(record.sel(sequence=0), start=20, resamples=30)
    assert one.equals(predictability_table(record.sel(sequence=[0]), start=20, resamples=30))


@pytest.mark.parametrize("measure", MEASURES)
def test_bins_are_equal_pieces_of_the_sorted_queries(measure):
    record = drawn()
    found = predictability_bins(record, measure, bins=7, start=20)
    at, places, mass = [], [], []
    for text, length in enumerate(record.length.values):
        for query in range(20, length - (measure == "next_loss")):
            at.append(float(record[measure][text, query]))
            places.append(query)
            mass.append(record.sink_mass.values[text, :, :, query].sum(-1))
    order = sorted(range(len(at)), key=at.__getitem__)
    for number, piece in enumerate(np.array_split(order, 7)):
        np.testing.assert_allclose(
            found["sink_mass"].isel(bin=number), np.mean([mass[one] for one in piece], axis=0), rtol=1e-5
        )
        assert float(found["null"][number]) == pytest.approx(np.mean([2 / (places[one] + 1) for one in piece]))
        assert float(found["middle"][number]) == pytest.approx(np.median([at[one] for one in piece]))
    assert found.attrs["model"] == "some/model" and found.sizes["bin"] == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: predictability_table(drawn().drop_vars("next_entropy")), r"sinkscope\.predictability"),
        (lambda: predictability_table(drawn().drop_vars("sink_mass")), "SinkMass"),
        (lambda: predictability_table(drawn(), start=118), "no text has three queries from start=118 on"),
        (lambda: predictability_table(drawn(), start=0), "start=0"),
        (lambda: predictability_table(drawn(), block=0), "block=0"),
        (lambda: predictability_table(drawn(), resamples=0), "resamples=0"),
        (lambda: predictability_table(drawn(), seed=-1), "seed=-1"),
        (lambda: predictability_bins(drawn(), "loss"), "measure='loss' is unknown: give one of next_loss"),
        (lambda: predictability_bins(drawn(), bins=1), "bins=1"),
        (lambda: predictability_bins(drawn(), start=119, bins=5), "2 queries do not fill 5 bins"),
    ],
)
def test_what_cannot_be_told_is_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()
