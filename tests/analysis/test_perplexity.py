from __future__ import annotations

import time

import numpy as np
import pytest

from sinkscope.analysis.intervals import block_length, resampled_means
from sinkscope.analysis.perplexity import ppl, ppl_table
from sinkscope.errors import SinkscopeError
from tests.support.loss_records import autoregressive, collapsing, loss_record


def gathered_means(parts, block, resamples, seed):
    """The circular block bootstrap as it is defined: every token of every block gathered, block by block."""
    random = np.random.default_rng(seed)
    runs = []
    for part in parts:
        size = min(block, len(part))
        for start in range(len(part)):
            runs.append((len(part) / size / len(part), [part[(start + step) % len(part)] for step in range(size)]))
    chance = np.array([share for share, _ in runs])
    count = round(chance.sum())
    means = []
    for _ in range(resamples):
        drawn = random.choice(len(runs), size=count, p=chance / chance.sum())
        means.append(np.mean(np.concatenate([np.array(runs[each][1]) for each in drawn]), axis=0))
    return np.array(means)


def test_perplexity_is_exp_of_the_mean_over_tokens_every_policy_scored():
    curve = collapsing(sampled=50)
    nll = curve["nll"].values.astype(np.float64)
    common = np.isfinite(nll).all(0)
    got = ppl(curve)
    np.testing.assert_allclose(got, [np.exp(each[common].mean()) for each in nll], rtol=1e-12)
    assert got.attrs["tokens_used"] == common.sum() == 100 and got.attrs["common"] == 1
    own = ppl(curve, common=False)
    np.testing.assert_allclose(own, np.exp(np.nanmean(nll, axis=(1, 2))), rtol=1e-12)
    assert own.attrs["tokens_used"] == [1278, 1278, 100, 1278]
    assert ppl(curve.sel(policy="dense", drop=False)).item() == pytest.approx(own.values[0])


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(60,), (40, 25), (30, 3, 9)])
def test_resamples_agree_with_a_bootstrap_that_gathers_every_token(lengths):
    parts = [autoregressive((2, each), 0.6, seed=each).T for each in lengths]
    got = resampled_means(parts, 5, 20000, np.random.default_rng(1))
    naive = gathered_means(parts, 5, 4000, seed=2)
    # 4,000 naive draws fix a mean to 1.6% of the spread and a spread to 1.1%: four standard errors.
    spread = naive.std(0)
    assert (np.abs(got.mean(0) - naive.mean(0)) < 0.07 * spread).all()
    np.testing.assert_allclose(got.std(0), spread, rtol=0.05)
    np.testing.assert_allclose(np.quantile(got, [0.025, 0.975], 0), np.quantile(naive, [0.025, 0.975], 0), atol=0.12)
    assert np.corrcoef(got.T)[0, 1] == pytest.approx(np.corrcoef(naive.T)[0, 1], abs=0.06)
    assert np.abs(got.mean(0) - np.concatenate(parts).mean(0)).max() < 0.05 * spread.max()


def test_every_resample_is_a_mean_of_whole_blocks_that_stay_in_their_sequence():
    parts = [np.array([[1.0], [1.0], [1.0], [1.0]]), np.array([[100.0], [100.0], [100.0], [100.0]])]
    got = resampled_means(parts, 2, 500, np.random.default_rng(0))[:, 0]
    assert set(np.round((got - 1) / 99 * 4, 9)) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_the_batches_bound_the_memory_and_not_the_result(monkeypatch):
    parts = [autoregressive((3, 200), 0.5, seed=0).T]
    whole = resampled_means(parts, 7, 100, np.random.default_rng(0))
    monkeypatch.setattr("sinkscope.analysis.intervals.BATCH_VALUES", 300)
    np.testing.assert_array_equal(resampled_means(parts, 7, 100, np.random.default_rng(0)), whole)


@pytest.mark.slow
def test_independent_losses_have_the_textbook_interval():
    nll = 3 + np.random.default_rng(0).normal(0, 1, size=(1, 1, 4000))
    row = ppl_table(loss_record(nll), block=1, resamples=8000).iloc[0]
    half = 1.96 * nll.std() / np.sqrt(nll.size)
    # 8,000 draws place a 2.5% point to about 2% of half the width.
    assert np.log(row["low"]) == pytest.approx(nll.mean() - half, abs=0.06 * half)
    assert np.log(row["high"]) == pytest.approx(nll.mean() + half, abs=0.06 * half)


def covered(correlation, block=None, trials=300, tokens=1500):
    """How often the intervals hold the true perplexity, and the true ratio of the window to the dense policy."""
    common = 3 + autoregressive((trials, tokens), correlation, seed=1)
    apart = autoregressive((trials, tokens), correlation, seed=2)
    worse = 2.3 * (np.arange(tokens) > 64)
    hits = []
    for base, extra in zip(common, apart, strict=True):
        curve = loss_record(np.stack([base, base + worse + 0.5 * extra])[:, None])
        table = ppl_table(curve, resamples=400, block=block)
        truths = (np.exp(3), np.exp(worse.mean()))
        bounds = (table.loc[0, ["low", "high"]], table.loc[1, ["ratio_low", "ratio_high"]])
        hits.append(
            [np.nan if low != low else low <= truth <= high for truth, (low, high) in zip(truths, bounds, strict=True)]
        )
    assert np.isfinite(hits).mean() > 0.95  # the others drift, by chance
    return np.nanmean(np.array(hits, float), axis=0)


@pytest.mark.slow
def test_intervals_hold_the_known_perplexity_of_correlated_losses_and_its_known_ratio():
    """Nominally 95%; of blocks 93% for such short texts, as of any percentile bootstrap. 3 standard errors are 4%."""
    held = covered(0.5)
    assert (held >= 0.91).all() and (held <= 0.99).all()
    blocks = covered(0.5, block="auto")
    assert (blocks >= 0.89).all() and (blocks <= 0.99).all()
    assert (covered(0.5, block=1) < 0.82).all()  # one by one: too narrow, which is why there are blocks and batches


def test_pairing_cancels_what_makes_a_text_hard():
    table = ppl_table(collapsing(tokens=1500), baseline="dense").set_index("policy")
    unpaired = table["high"] / table["low"]
    paired = table["ratio_high"] / table["ratio_low"]
    assert np.log(paired["sinks 4+60"]) < 0.2 * np.log(unpaired["sinks 4+60"])
    assert table.loc["dense", ["ratio", "ratio_low", "ratio_high"]].tolist() == [1, 1, 1]
    assert table.loc["window 64", "ratio_low"] > 5
    np.testing.assert_allclose(table["ratio"], table["ppl"] / table["ppl"]["dense"])


def test_the_tokens_before_a_cache_is_full_keep_their_share():
    """Losses constant on either side have one mean whatever the blocks: how many lie before is no accident."""
    nll = np.where(np.arange(1000) > 64, 5.0, 2.0)[None, None]
    row = ppl_table(loss_record(nll, ["window 64"])).iloc[0]
    assert row["low"] == pytest.approx(row["ppl"], rel=1e-9) and row["high"] == pytest.approx(row["ppl"], rel=1e-9)


@pytest.mark.slow
def test_the_automatic_block_is_near_the_best_one_for_a_known_correlation():
    """Of an AR(1) the best circular block is (6 (rho / (1 - rho^2))^2 n)^(1/3): Politis and White 2004, section 3."""
    found = [block_length([autoregressive((8000,), 0.7, seed=each)[:, None]]) for each in range(20)]
    best = (6 * (0.7 / (1 - 0.49)) ** 2 * 8000) ** (1 / 3)
    assert np.median(found) == pytest.approx(best, rel=0.25)
    independent = block_length([np.random.default_rng(0).normal(size=(8000, 2))])
    assert independent == 20  # n^(1/3)
    assert block_length([np.ones((400, 1))]) == 8 and block_length([np.ones((3, 1))]) == 1


@pytest.mark.slow
def test_five_policies_of_sixteen_thousand_tokens_take_seconds_even_without_blocks():
    nll = np.random.default_rng(0).gamma(1, 2.7, size=(4, 1, 16384))
    for block in (None, "auto", 1):
        start = time.perf_counter()
        ppl_table(loss_record(nll), block=block)
        assert time.perf_counter() - start < 15  # 0.2 s and 1.5 s; the machine may be busy


def test_the_table_holds_the_settings_and_the_same_seed_gives_the_same_table():
    curve = collapsing(sampled=60)
    table = ppl_table(curve, block=3, resamples=200, seed=5)
    assert list(table.columns) == [
        "policy", "sinks", "cache_size", "ppl", "low", "high", "tokens", "ratio", "ratio_low", "ratio_high",
        "drift", "ratio_drift",
    ]  # fmt: skip
    assert table.attrs["baseline"] == "recompute 64" and table.attrs["model"] == "some/model"
    assert [table.attrs[name] for name in ("block", "resamples", "seed", "tokens_used")] == [3, 200, 5, 120]
    assert table.equals(ppl_table(curve, block=3, resamples=200, seed=5))
    assert not table.equals(ppl_table(curve, block=3, resamples=200, seed=6))
    np.testing.assert_allclose(table["ppl"], ppl(curve), rtol=1e-12)
    assert ppl_table(curve.sel(policy=["window 64", "dense"])).attrs["baseline"] == "dense"
    assert ppl_table(curve.sel(policy="window 64")).attrs["baseline"] == "window 64"


def test_one_token_has_no_interval_and_an_infinite_loss_spoils_its_own_policy_only():
    one = np.full((2, 1, 9), np.nan)
    one[:, 0, 3] = 1.0
    assert ppl_table(loss_record(one))[["low", "high"]].isna().all(axis=None)
    curve = collapsing()
    clean = ppl_table(curve, block=9)
    curve["nll"][1, 0, 300] = np.inf
    spoiled = ppl_table(curve, block=9)
    assert np.isinf(spoiled["ppl"][1]) and np.isnan(spoiled["low"][1]) and np.isnan(spoiled["ratio_high"][1])
    np.testing.assert_allclose(spoiled.iloc[[0, 2, 3], 3:].astype(float), clean.iloc[[0, 2, 3], 3:].astype(float))
    assert ppl_table(curve)["low"].notna().sum() == 3


def test_bad_records_and_settings_are_refused_in_a_sentence():
    curve = collapsing(tokens=100)
    with pytest.raises(SinkscopeError, match="no nll"):
        ppl(curve.rename(nll="loss"))
    for options, message in (
        ({"baseline": "full"}, "baseline='full' is not a policy.*dense"),
        ({"block": 0}, "block=0"),
        ({"resamples": 0}, "resamples=0"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(SinkscopeError, match=message):
            ppl_table(curve, **options)
    with pytest.raises(SinkscopeError, match="block=90 leaves fewer than two blocks in 99 tokens"):
        ppl_table(curve.sel(policy="dense").isel(sequence=[0]), block=90)
    apart = np.full((2, 1, 10), np.nan)
    apart[0, 0, :5], apart[1, 0, 5:] = 1.0, 1.0
    with pytest.raises(SinkscopeError, match=r"no token is scored by every policy \(dense 5, window 64 5\)"):
        ppl(loss_record(apart))
