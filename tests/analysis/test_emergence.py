"""The table of emergence against Student's formula written out, and the sentence where there are no intervals."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from sinkscope.analysis.lab import holm, t_interval
from sinkscope.errors import SinkscopeError
from sinkscope.lab import emergence_summary, emergence_table
from tests.support.training_records import emergence_record, language_record

QUANTILES = {3: 4.302652730, 4: 3.182446305, 10: 2.262157163}
"""Of Student's t at 97.5%, by number of values (tables: 2, 3 and 9 degrees of freedom)."""


def by_hand(values: list[float]) -> tuple[float, float, float]:
    count = len(values)
    mean = sum(values) / count
    half = QUANTILES[count] * math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return mean, mean - half, mean + half


@pytest.mark.parametrize("count", QUANTILES)
def test_intervals_are_student_s(count):
    values = np.random.default_rng(count).normal(size=(count, 2))
    for column in range(2):
        found = [each[column] for each in t_interval(values)]
        np.testing.assert_allclose(found, by_hand(values[:, column].tolist()), rtol=1e-8)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    values = np.random.default_rng(0).normal(size=(3, 4000))
    _, low, high = t_interval(values)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.015)  # 4 sigma of 4,000 tries


def test_rows_are_means_over_heads_and_seeds_with_differences_seed_by_seed():
    record = emergence_record(arms=("sigmoid", "softmax"), layers=2, heads=2)
    table = emergence_table(record, step=200).set_index(["arm", "quantity", "layer"])
    mass = record["bos_mass"].sel(step=200, layer=1, tokens="non-trigger").values.mean(-1)  # [arm, seed]
    row = table.loc[("sigmoid", "BOS mass of non-triggers", 1)]
    np.testing.assert_allclose(row[["mean", "low", "high"]].astype(float), by_hand(mass[0].tolist()), rtol=1e-6)
    difference = row[["difference", "difference_low", "difference_high"]].astype(float)
    np.testing.assert_allclose(difference, by_hand((mass[0] - mass[1]).tolist()), rtol=1e-6)
    ratio = (record["bos_value_norm"] / record["value_norm"]).sel(step=200, layer=0).values.mean(-1)
    found = table.loc[("softmax", "value norm of BOS / of others", 0), "mean"]
    assert found == pytest.approx(ratio[1].mean())
    assert np.isnan(table.loc[("softmax", "value norm of BOS / of others", 0), "difference"])


@pytest.mark.slow
def test_p_values_are_those_of_paired_t_tests_corrected_for_all_arms_of_a_quantity():
    arms = ("softmax", "softmax1", "sigmoid", "relu")
    record = emergence_record(arms=arms, seeds=8)
    own = record["bos_mass"].sel(step=400, layer=0, tokens="non-trigger").mean("head")
    table = emergence_table(record).set_index(["quantity", "arm"]).loc["BOS mass of non-triggers"]
    expected = {arm: ttest_rel(own.sel(arm=arm), own.sel(arm="softmax")).pvalue for arm in arms[1:]}
    ranked = sorted(expected, key=expected.get)
    worst = 0.0
    for rank, arm in enumerate(ranked):
        worst = max(worst, min(1.0, expected[arm] * (3 - rank)))
        assert table.loc[arm, ["p", "p_holm"]].tolist() == pytest.approx([expected[arm], worst])
    assert table.loc["softmax", ["p", "p_holm"]].isna().all()
    assert emergence_table(emergence_record(seeds=2))["p"].isna().all()


def test_holm_is_that_of_r():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") of R 4; one that is missing is not counted."""
    given = pd.Series([0.01, 0.04, np.nan, 0.03, 0.005])
    assert holm(given).tolist() == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)


def test_the_last_step_is_the_one_told_unless_another_is_asked_for():
    record = emergence_record()
    assert emergence_table(record).attrs["step"] == 400
    loss = record["loss"].sel(arm="softmax", step=400, tokens="all").values
    table = emergence_table(record).set_index(["arm", "quantity"])
    assert table.loc[("softmax", "loss"), "mean"] == pytest.approx(loss.mean())
    with pytest.raises(SinkscopeError, match="step=150 was not measured: give one of 0, 100"):
        emergence_table(record, step=150)


@pytest.mark.parametrize(("seeds", "said"), [(1, "1 seed, and 3 or more"), (2, "2 seeds, and 3 or more")])
def test_fewer_than_three_seeds_give_no_intervals_and_say_so(seeds, said):
    table = emergence_table(emergence_record(seeds=seeds))
    assert table["low"].isna().all() and table["high"].isna().all() and table["mean"].notna().all()
    assert said in table.attrs["intervals"]
    assert "95% t intervals over 4 seeds" in emergence_table(emergence_record(seeds=4)).attrs["intervals"]


def test_without_softmax_the_first_arm_is_what_others_are_compared_to():
    table = emergence_table(emergence_record(arms=("relu", "sigmoid")))
    assert table.attrs["baseline"] == "relu"
    assert set(table.loc[table["difference"].notna(), "arm"]) == {"sigmoid"}


@pytest.mark.slow
def test_the_summary_has_a_row_for_each_arm_and_layer_and_the_numbers_of_the_table():
    table = emergence_table(emergence_record(layers=2))
    summary = emergence_summary(table)
    assert summary[["arm", "layer"]].values.tolist() == [["softmax", 0], ["sigmoid", 0], ["softmax", 1], ["sigmoid", 1]]
    for _, row in table.iterrows():
        for _, shown in summary[summary["arm"] == row["arm"]].iterrows():
            if pd.isna(row["layer"]) or row["layer"] == shown["layer"]:
                assert shown[row["quantity"]] == f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    assert emergence_summary(emergence_table(emergence_record(seeds=2))).iloc[0]["loss"].count("(") == 0


def test_another_record_is_refused():
    with pytest.raises(SinkscopeError, match="not a record of emergence"):
        emergence_table(language_record({"softmax": 0.5}, {"softmax": 1.0}))


@pytest.mark.slow
def test_reading_a_record_needs_no_torch():
    code = (
        "import sys; from tests.support.training_records import emergence_record;"
        "from sinkscope.lab import emergence_table;"
        "from sinkscope import figures; figures.emergence(emergence_record()); emergence_table(emergence_record());"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_arm_to_compare_with_is_plain_softmax_whatever_it_is_called():
    record = emergence_record(("sink token", "sigmoid", "softmax"))
    expected = emergence_table(record)
    renamed = record.assign_coords(arm=["softmax", "relu", "as they all do it"])
    table = emergence_table(renamed)
    assert expected.attrs["baseline"] == "softmax" and table.attrs["baseline"] == "as they all do it"
    columns = ["difference", "difference_low", "difference_high"]
    np.testing.assert_array_equal(table[columns], expected[columns])


@pytest.mark.parametrize("coordinate", ["normaliser_kind", "has_sink_logit", "has_sink_token"])
def test_a_record_that_does_not_say_what_its_arms_are_is_refused(coordinate):
    with pytest.raises(SinkscopeError, match=f"{coordinate} is missing, as in records of older versions"):
        emergence_table(emergence_record().drop_vars(coordinate))
