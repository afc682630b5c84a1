"""Policies of any class, also one that is written here, ablated beside the factorial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

import sinkscope
from sinkscope import (
    Dense,
    HeavyHitters,
    SinkscopeError,
    SinkWindow,
    StaticPolicy,
    Window,
    ablate,
    ablation_table,
    perplexity,
    run_ablation,
)
from tests.experiments.ablating import COMBINATION, EXACT

FACTORS = dict(sinks=(0, 4), cache_size=(16, 24), resamples=50, progress=False)


@dataclass(frozen=True, repr=False)
class OneSink(StaticPolicy):
    """Written outside the package, registered nowhere."""

    size: int = 12

    def sees(self, query, key):
        return (query - key < self.size) | (key == 0)

    @property
    def description(self):
        return f"one sink of {self.size}"


PHANTOM = SinkWindow(4, 12, values="zeroed", label="full sinks")
OTHERS = [OneSink(), PHANTOM, Dense(), HeavyHitters(16, 8)]


@pytest.mark.slow
def test_their_losses_are_those_of_perplexity_over_the_tokens_of_all_rows(model, ids):
    table = ablate(model, ids, policies=OTHERS, **FACTORS)
    assert len(table) == 2 * 2 + 4
    nll = perplexity(model, ids, OTHERS, progress=False)["nll"].values[:, :, 5:].astype(float)
    beside = table[table["kind"] == ""]
    np.testing.assert_allclose(beside["ppl"], np.exp(nll.mean((1, 2))), rtol=1e-12)
    np.testing.assert_allclose(beside["ppl_evicted"], np.exp(nll[:, :, 21:].mean((1, 2))), rtol=1e-12)  # of 24 tokens


@pytest.mark.slow
def test_rows_carry_name_kind_and_what_is_kept(model, ids):
    beside = ablate(model, ids, policies=OTHERS, **FACTORS).tail(4)
    columns = ["policy", "policy_kind", "sinks", "cache_size", "positions", "kind"]
    assert beside[columns].values.tolist() == [
        ["one sink of 12", "tests.experiments.test_own_policies.OneSink", 0, -1, "original", ""],
        ["full sinks", "SinkWindow", 4, 16, "cache", ""],
        ["dense", "Dense", 0, -1, "original", ""],
        ["H2O 8+8", "HeavyHitters", 0, 16, "original", ""],
    ]


@pytest.mark.slow
def test_ratios_are_to_the_most_sinks_of_the_same_cache_or_of_the_largest(model, ids):
    table = ablate(model, ids, policies=OTHERS, **FACTORS)
    most = table[(table["sinks"] == 4) & (table["kind"] == "first")].set_index("cache_size")["ppl"]
    expected = table["ppl"].tail(4).to_numpy() / most.loc[[24, 16, 24, 16]].to_numpy()
    np.testing.assert_allclose(table["ratio"].tail(4), expected, rtol=1e-12)


@pytest.mark.slow
def test_the_factorial_is_the_same_beside_others(model, ids):
    alone, beside = ablate(model, ids, **FACTORS), ablate(model, ids, policies=PHANTOM, **FACTORS)
    pd.testing.assert_frame_equal(alone[EXACT], beside[EXACT].iloc[: len(alone)])


@pytest.mark.slow
def test_a_policy_that_is_a_combination_too_is_run_once(model, ids, forwards):
    table = ablate(model, ids, policies=[SinkWindow(4, 12)], **FACTORS, block=128)
    assert forwards.count == 4 and table["cell"].tolist() == [0, 1, 2, 3, 1]


@pytest.mark.slow
def test_cells_of_one_s_own_are_kept_and_run_in_workers(model, ids, forwards, tmp_path):
    first = ablate(model, ids, policies=OTHERS, folder=tmp_path, **FACTORS)
    done = forwards.count
    pd.testing.assert_frame_equal(first, ablate(model, ids, policies=OTHERS, folder=tmp_path, **FACTORS))
    assert forwards.count == done and len(list(tmp_path.iterdir())) == 8
    there = ablate(model, ids, policies=OTHERS, n_jobs=2, **FACTORS)
    pd.testing.assert_frame_equal(first[EXACT], there[EXACT])


@pytest.mark.slow
def test_the_record_gives_the_table_again_when_it_was_saved(model, ids, tmp_path):
    options = {name: value for name, value in FACTORS.items() if name != "resamples"}
    record = run_ablation(model, ids, policies=OTHERS, kinds=("first", "random"), text="made up", **options)
    assert record.attrs["kind"] == "ablation" and record.attrs["text"] == "made up"
    again = sinkscope.open_record(sinkscope.save_record(record, tmp_path / "ablation.nc"))
    pd.testing.assert_frame_equal(ablation_table(again, 50), ablation_table(record, 50))
    table = ablate(model, ids, policies=OTHERS, kinds=("first", "random"), **FACTORS)
    pd.testing.assert_frame_equal(table[EXACT], ablation_table(record, 50)[EXACT])
    assert not ablation_table(record, 50).duplicated([*COMBINATION, "policy"]).any()


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        (["dense"], "'dense' is not a policy"),
        ([Dense], "is not a policy; give instances"),
        ([Window(8), Window(8)], "two of the policies have one name"),
        (
            [SinkWindow(4, 12, values="zeroed", label="sinks 4+12")],
            "two policies that differ are called 'sinks 4\\+12'",
        ),
        ([Window(88)], "evicts nothing from a cache of 88"),
    ],
)
def test_what_cannot_stand_beside_is_refused_before_anything_runs(model, ids, forwards, policies, words):
    with pytest.raises(SinkscopeError, match=words):
        ablate(model, ids, policies=policies, **FACTORS)
    assert forwards.count == 0


def test_another_record_is_no_ablation(model, ids):
    with pytest.raises(SinkscopeError, match="not one of an ablation"):
        ablation_table(perplexity(model, ids, [Dense()], progress=False))
