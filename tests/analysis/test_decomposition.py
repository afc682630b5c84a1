"""What each part of a sink takes back of the collapse, against the losses in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope.analysis.perplexity import (
    DECIDING,
    PARTS,
    collapse_table,
    is_decomposed,
    losses_from,
    policy_parts,
    ppl_table,
)
from sinkscope.errors import SinkscopeError
from sinkscope.record import first_evicted
from tests.support import experiments
from tests.support.loss_records import collapsing


def late_means(record) -> np.ndarray:
    """Mean loss of each policy over the tokens after the first eviction."""
    return record["nll"].values[:, :, 66:].astype(float).mean((1, 2))


def test_shares_are_of_the_gap_in_mean_loss_after_the_first_eviction():
    record = experiments.collapse()
    table, means = collapse_table(record), late_means(record)
    assert list(table["part"]) == list(PARTS)
    np.testing.assert_allclose(table["ppl"], np.exp(means), rtol=1e-6)
    np.testing.assert_allclose(table["ratio"], np.exp(means - means[0]), rtol=1e-6)
    np.testing.assert_allclose(table["recovered"], (means[-1] - means) / (means[-1] - means[0]), atol=1e-9)
    assert (table["tokens"] == 400 - 66).all()
    assert table["recovered"].iloc[0] == 1 and table["recovered"].iloc[-1] == 0 and table["recovered"].iloc[1] < 0


@pytest.mark.parametrize("block", [None, 8])
def test_the_intervals_of_the_ratios_are_those_of_ppl_table_and_the_shares_are_over_the_same(block):
    record = experiments.collapse()
    table = collapse_table(record, 500, 3, block)
    plain = ppl_table(losses_from(record, first_evicted(64)), experiments.PARTS[0], block, 500, 3)
    np.testing.assert_array_equal(table[["ratio_low", "ratio_high"]], plain[["ratio_low", "ratio_high"]])
    assert (table["recovered_low"] <= table["recovered"] + 1e-12).all()
    assert (table["recovered"] <= table["recovered_high"] + 1e-12).all()
    both = collapse_table(record.isel(policy=[0, 2, 4]), 500, 3, block)
    gap = np.log(both["ratio"].iloc[-1])
    # noise of 0.2 nats in each of 334 tokens: the share is known to sqrt(2) * 0.2 / sqrt(334) nats, twice that each way
    half = 1.96 * 2**0.5 * 0.2 / 334**0.5 / gap
    assert both["recovered_high"].iloc[1] - both["recovered_low"].iloc[1] == pytest.approx(2 * half, rel=0.6)


def test_without_a_collapse_there_is_no_gap_to_divide():
    table = collapse_table(experiments.collapse(lost=(0.0, 0.0, 0.0, 0.0, 0.0)))
    assert table[["recovered", "recovered_low", "recovered_high"]].isna().all().all()
    assert table["ratio"].notna().all()


def test_parts_are_found_whatever_their_order_and_others_left_out():
    record = experiments.collapse()
    shuffled = record.isel(policy=[4, 2, 0])
    assert list(collapse_table(shuffled)["part"]) == ["full sinks", "phantom, values zeroed", "window"]
    assert is_decomposed(shuffled) and not is_decomposed(collapsing())
    table = collapse_table(collapsing())  # of perplexity(): dense and re-computation are no part of it
    assert list(table["part"]) == ["full sinks", "window"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (experiments.collapse().isel(policy=[0, 1]), "no policy that is the window"),
        (experiments.collapse().isel(policy=[1, 4]), "no policy that is the full sinks"),
        (experiments.collapse(tokens=60), "no token comes after the first eviction from a cache of 64"),
        (experiments.collapse().drop_vars("nll"), "no nll"),
        (
            experiments.collapse().drop_vars("cache_size"),
            "does not say what its policies do",
        ),
        (experiments.collapse().assign_coords(cache_size=("policy", [64, 64, 64, 64, 128])), "64 and 128"),
    ],
)
def test_what_cannot_be_decomposed_is_refused_in_a_sentence(record, words):
    with pytest.raises(SinkscopeError, match=words):
        collapse_table(record)


def test_a_part_is_what_its_policy_does_whatever_it_is_called():
    record = experiments.collapse()
    expected = collapse_table(record)
    names = ["window 64", "sinks 4+60", "phantom sinks", "sinks 4+60, values zeroed", "full sinks"]
    renamed = record.assign_coords(policy=names)
    table = collapse_table(renamed)
    assert list(table["policy"]) == names
    assert table.drop(columns="policy").equals(expected.drop(columns="policy"))


@pytest.mark.parametrize(
    ("coordinate", "value"),
    [
        ("sink_bias", 1.0), ("positions", "original"), ("placement", "layer 3"), ("recomputed", 1),
        ("cache_size", -1), ("policy_kind", "HeavyHitters"),
    ],
)  # fmt: skip
def test_what_does_more_or_less_than_keep_sinks_is_no_part(coordinate, value):
    record = experiments.collapse()
    values = record[coordinate].values.tolist()
    changed = record.assign_coords({coordinate: ("policy", [values[0], values[1], value, *values[3:]])})
    assert policy_parts(changed) == [*list(PARTS)[:2], "", *list(PARTS)[3:]]


@pytest.mark.parametrize("coordinate", DECIDING)
def test_a_record_of_an_older_version_is_refused_and_nothing_guessed(coordinate):
    older = experiments.collapse().drop_vars(coordinate)
    for read in (collapse_table, is_decomposed, policy_parts):
        with pytest.raises(SinkscopeError, match=f"{coordinate} is missing, as in records of older versions"):
            read(older)
