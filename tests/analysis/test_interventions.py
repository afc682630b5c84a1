"""The table of interventions against formulas written out here."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sinkscope.analysis.interventions import intervention_table
from sinkscope.analysis.perplexity import ppl_table
from sinkscope.errors import SinkscopeError

START = 16
RATIO = ["ratio", "ratio_low", "ratio_high"]


def record_of(nll, mass=None, names=None, controls=None, same=None) -> xr.Dataset:
    """Losses [policy, sequence, token] and mass [policy, sequence, layer, head] as `run_interventions` gives them."""
    nll = np.array(nll, np.float32)
    nll[..., : START + 1] = np.nan
    names = ["nothing", "evict sinks", "evict random"][: len(nll)] if names is None else names
    controls = ["", "evict random", ""][: len(nll)] if controls is None else controls
    mass = np.zeros((*nll.shape[:2], 1, 1)) if mass is None else np.array(mass, np.float32)
    return xr.Dataset(
        {
            "nll": (("policy", "sequence", "token"), nll),
            "sink_mass": (("policy", "sequence", "layer", "head"), mass),
        },
        coords={
            "policy": names, "control": ("policy", controls),
            "same_tokens": ("policy", [1] * len(nll) if same is None else same),
            "layer": np.arange(mass.shape[2]), "head": np.arange(mass.shape[3]),
        },
        attrs={"kind": "interventions", "model": "some/model", "start": START},
    )  # fmt: skip


def drawn(effect: float, control: float, sequences: int, tokens: int, seed: int, noise: float = 0.3) -> np.ndarray:
    """Losses whose differences to the baseline have these means, in nats; all far more alike than the tokens are."""
    random = np.random.default_rng(seed)
    base = random.gamma(1.0, 2.6, (sequences, tokens))
    shifts = np.array([0.0, effect, control])[:, None, None]
    return base + shifts + random.normal(0, noise, (3, sequences, tokens)) * (np.arange(3) > 0)[:, None, None]


def test_perplexities_ratios_and_mass_are_their_formulas():
    random = np.random.default_rng(0)
    nll = drawn(0.4, 0.1, 3, 90, seed=1)
    nll[:, 1, 80:] = np.nan  # a shorter text
    mass = random.random((3, 3, 4, 5)).astype(np.float32)
    table = intervention_table(record_of(nll, mass), resamples=50).set_index("intervention")
    means = [np.nanmean(each[:, START + 1 :].astype(np.float32), dtype=np.float64) for each in nll]
    np.testing.assert_allclose(table["ppl"], np.exp(means), rtol=1e-6)
    np.testing.assert_allclose(table["ratio"], np.exp(np.array(means) - means[0]), rtol=1e-6)
    assert table.loc["evict sinks", "over_control"] == pytest.approx(np.exp(means[1] - means[2]), rel=1e-6)
    np.testing.assert_allclose(table["sink_mass"], mass.mean((1, 2, 3)), rtol=1e-6)
    assert set(table["tokens"]) == {2 * (90 - START - 1) + 80 - START - 1}
    assert table.loc["nothing", RATIO].tolist() == [1, 1, 1]


@pytest.mark.slow
def test_nine_in_ten_paired_intervals_and_more_hold_an_effect_of_known_size():
    """Nominally 95%, of 100 data sets, where a text does not drift by chance; 4 standard errors are 9%."""

    def holds(low, truth, high):
        return np.nan if np.isnan(low) else low <= truth <= high

    found = []
    for seed in range(100):
        rows = intervention_table(record_of(drawn(0.05, 0.0, 2, 150, seed)), resamples=200).set_index("intervention")
        effect, control = rows.loc["evict sinks"], rows.loc["evict random"]
        found.append(
            [
                holds(effect.ratio_low, np.exp(0.05), effect.ratio_high),
                holds(control.ratio_low, 1.0, control.ratio_high),
                holds(effect.over_control_low, np.exp(0.05), effect.over_control_high),
                np.log(effect.ratio_high / effect.ratio_low),
                np.log(effect.high / effect.low),
            ]
        )
    *covered, paired, own = np.nanmean(found, axis=0)
    assert all(0.86 <= each <= 0.99 for each in covered), covered
    tokens = 2 * (150 - START - 1)
    half = stats.t.ppf(0.975, 7) * 0.3 / tokens**0.5  # of eight batches of the differences, not of the losses
    assert paired == pytest.approx(2 * half, rel=0.1)
    assert own > 5 * paired


def test_the_mass_has_an_interval_over_three_texts_and_none_over_fewer():
    """Student's t of three texts; two are too few."""
    each = np.array([[0.4, 0.5, 0.45], [0.1, 0.1, 0.1], [0.41, 0.31, 0.39]])
    mass = each[..., None, None] + np.array([-0.05, 0.05])[:, None]
    nll = drawn(0.1, 0.0, 3, 60, seed=0)
    three = intervention_table(record_of(nll, mass)).set_index("intervention")
    low, high = stats.t.interval(0.95, 2, each.mean(1), stats.sem(each, axis=1) + 1e-12)
    np.testing.assert_allclose(
        three[["mass_low", "sink_mass", "mass_high"]], np.stack([low, each.mean(1), high], 1), atol=1e-6
    )
    two = intervention_table(record_of(nll[:, :2], mass[:, :2]))
    assert two[["mass_low", "mass_high"]].isna().all(axis=None)
    one = intervention_table(record_of(nll[:, :1], mass[:, :1]), resamples=500)
    assert one[["mass_low", "mass_high"]].isna().all(axis=None) and one["sink_mass"].notna().all()
    assert one[["low", "high", "ratio_low"]].notna().all(axis=None)  # those of losses are over tokens


def test_every_effect_has_its_control_below_it_and_shared_ones_are_shown_again():
    nll = drawn(0.3, 0.0, 2, 60, seed=2)[[0, 1, 1, 2, 2, 1]]
    nll[2] += 0.2
    names = ["nothing", "evict sinks", "evict recent", "evict random", "cut 4 behind the sinks", "alone"]
    controls = ["", "evict random", "evict random", "", "", ""]
    table = intervention_table(record_of(nll, names=names, controls=controls), resamples=60)
    assert list(zip(table.intervention, table.role, strict=True)) == [
        ("nothing", "baseline"),
        ("evict sinks", "effect"),
        ("evict random", "control"),
        ("evict recent", "effect"),
        ("evict random", "control"),
        ("cut 4 behind the sinks", "effect"),
        ("alone", "effect"),
    ]
    again = table[table.intervention == "evict random"]
    assert again.iloc[0].drop("role").equals(again.iloc[1].drop("role"))
    assert table["over_control"].notna().tolist() == [False, True, False, True, False, False, False]
    over = table.loc[[1, 3], "over_control"].to_numpy()
    np.testing.assert_allclose(over, table.loc[[1, 3], "ratio"] / table.loc[2, "ratio"], rtol=1e-9)
    assert over[1] / over[0] == pytest.approx(np.exp(0.2), rel=1e-5)


@pytest.mark.parametrize("block", [None, 12])
def test_the_interval_over_the_control_is_that_of_a_pair_over_the_same_batches_or_blocks(block):
    record = record_of(drawn(0.3, 0.05, 2, 200, seed=3))
    table = intervention_table(record, 100, 5, block)
    pair = ppl_table(record.sel(policy=["evict sinks", "evict random"]), "evict random", block, 100, 5)
    over = table.loc[1, ["over_control", "over_control_low", "over_control_high"]].tolist()
    assert over == pair.loc[0, RATIO].tolist() and over[1] < over[0] < over[2]


def test_an_intervention_over_other_tokens_has_no_ratio_and_changes_no_other_row():
    nll = drawn(0.3, 0.0, 2, 300, seed=4)
    trend = np.broadcast_to(np.linspace(9, 1, 300), (2, 300))
    names = ["nothing", "evict sinks", "evict random", "repeat one token", "shuffle all tokens"]
    controls = ["", "evict random", "", "shuffle all tokens", ""]
    both = record_of([*nll, trend, trend[:, ::-1]], names=names, controls=controls, same=[1, 1, 1, 0, 0])
    table, alone = intervention_table(both), intervention_table(record_of(nll))
    assert table.iloc[:3].equals(alone) and table.attrs["bounds"] == alone.attrs["bounds"]
    assert table.loc[3:, [*RATIO, "over_control", "over_control_low"]].isna().all(axis=None)
    assert table.loc[3, "ppl"] == pytest.approx(np.exp(trend[0, START + 1 :].mean()), rel=1e-5)
    assert table.loc[3:, ["low", "high"]].isna().all(axis=None)  # losses with a trend drift
    steady = np.random.default_rng(0).normal(3, 1, (2, 2, 300))
    other = record_of([*nll, *steady], names=names, controls=controls, same=[1, 1, 1, 0, 0])
    assert intervention_table(other).loc[3:, ["low", "high"]].notna().all(axis=None)


def test_it_says_how_it_was_made():
    table = intervention_table(record_of(drawn(0.3, 0.0, 1, 60, seed=0)))
    given = {name: table.attrs[name] for name in ("model", "start", "over", "baseline", "confidence")}
    assert given == {
        "model": "some/model", "start": START, "over": "batches", "baseline": "nothing", "confidence": 0.95,
    }  # fmt: skip
    assert table.attrs["bounds"] == "95% t intervals over 8 batches of one text, which say nothing of other texts"


@pytest.mark.parametrize(
    "spoil",
    [lambda record: record.drop_vars("control"), lambda record: record.sel(policy=["evict sinks", "evict random"])],
)
def test_a_record_of_something_else_is_refused(spoil):
    with pytest.raises(SinkscopeError, match=r"make one with sinkscope\.run_interventions"):
        intervention_table(spoil(record_of(drawn(0.3, 0.0, 1, 60, seed=0))))


def with_draws(nll, draw_nll, removed=None, names=None, controls=None) -> xr.Dataset:
    """A record whose rows with draws are the means of `draw_nll` [policy, draw, sequence]."""
    record = record_of(nll, names=names, controls=controls)
    draws = np.isfinite(draw_nll).all(2).sum(1)
    record = record.assign_coords(draws=("policy", draws)).assign(draw_nll=(("policy", "draw", "sequence"), draw_nll))
    return record if removed is None else record.assign(removed_mass=(("policy", "sequence"), removed))


def drawn_controls(random, sequences: int, tokens: int, draws: int, apart: float, texts: float = 0.0, effect=0.1):
    """Losses of a baseline, an effect and a control that differs by text and, by `apart`, from draw to draw."""
    base = random.gamma(1.0, 2.6, (sequences, tokens))
    own = random.normal(0, apart, (draws, sequences)) + random.normal(0, texts, sequences)
    noise = random.normal(0, 0.3, (2, sequences, tokens))
    nll = np.stack([base, base + effect + noise[0], base + own.mean(0)[:, None] + noise[1]])
    late = nll[..., START + 1 :].mean(-1)
    draw_nll = np.full((3, draws, sequences), np.nan)
    draw_nll[:2, 0] = late[:2]
    draw_nll[2] = late[2] + own - own.mean(0)
    return nll, draw_nll


def test_the_interval_over_draws_is_that_of_t_within_texts():
    """Of one text: scipy's. Of several: errors of the texts' means add up, with degrees of freedom of Satterthwaite."""
    nll, draws = drawn_controls(np.random.default_rng(0), 1, 200, 20, 0.1)
    table = intervention_table(with_draws(nll, draws))
    low, high = stats.t.interval(0.95, 19, draws[1, 0, 0] - draws[2, :, 0].mean(), stats.sem(draws[2, :, 0]))
    np.testing.assert_allclose(table.loc[1, ["over_draws_low", "over_draws_high"]].tolist(), np.exp([low, high]), 1e-6)
    low, high = stats.t.interval(0.95, 19, draws[2, :, 0].mean() - draws[0, 0, 0], stats.sem(draws[2, :, 0]))
    np.testing.assert_allclose(
        table.loc[2, ["ratio_draws_low", "ratio_draws_high"]].tolist(), np.exp([low, high]), 1e-6
    )
    assert table["draws"].tolist() == [1, 1, 20] and table.attrs["draws"] == 20
    nll, draws = drawn_controls(np.random.default_rng(1), 3, 60, 4, 0.1)
    table = intervention_table(with_draws(nll, draws))
    squares = draws[2].var(0, ddof=1) / 4 / 9
    freedom = squares.sum() ** 2 / (squares**2).sum() * 3
    half = stats.t.ppf(0.975, freedom) * squares.sum() ** 0.5
    over = table.loc[1, ["over_draws_low", "over_control", "over_draws_high"]].astype(float)
    np.testing.assert_allclose(np.log(over.tolist()), np.log(over.iloc[1]) + half * np.array([-1, 0, 1]), atol=1e-6)


def test_of_two_rows_with_draws_those_of_one_number_are_compared():
    """As many tokens drawn for effect and control alike: what both share is no difference."""
    nll, draws = drawn_controls(np.random.default_rng(2), 2, 100, 6, 0.1)
    draws[1] = draws[2] + 0.3
    table = intervention_table(with_draws(nll, draws))
    over = table.loc[1, ["over_draws_low", "over_control", "over_draws_high"]].astype(float)
    assert over.iloc[2] / over.iloc[0] == pytest.approx(1, abs=1e-6)
    draws[1, 4:] = np.nan  # not as many: by themselves
    apart = intervention_table(with_draws(nll, draws)).loc[1]
    assert apart["over_draws_high"] / apart["over_draws_low"] > 1.1


def test_texts_given_twice_do_not_narrow_an_interval_though_each_has_draws_of_its_own():
    """As random controls differ from one copy to the other, texts go by what is not drawn."""
    random = np.random.default_rng(4)
    nll, draws = drawn_controls(random, 5, 80, 6, 0.3, texts=0.1)
    mass = random.uniform(0.3, 0.5, (3, 5, 1, 1))
    names = {"token_id": (("sequence", "token"), random.integers(0, 999, (5, 80)))}
    one = with_draws(nll, draws).assign(sink_mass=(("policy", "sequence", "layer", "head"), mass))
    one, again = one.assign_coords(names), nll.copy()
    again[2] += random.normal(0, 0.3, (5, 1))
    other = one.assign(nll=one["nll"].copy(data=record_of(again)["nll"].values))
    other["sink_mass"][2] += 0.05
    tables = [intervention_table(each) for each in (one, xr.concat([one, other], "sequence"))]
    assert "over 5 sequences (of 10, those that share passages as one)" in tables[1].attrs["bounds"]
    columns = [*RATIO, "sink_mass", "mass_low", "mass_high"]
    for row in (0, 1):
        np.testing.assert_allclose(*(each.loc[row, columns].astype(float) for each in tables), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("sequences", "tokens", "draws"), [(1, 400, 20), (2, 200, 10), (8, 60, 2), (8, 60, 20)])
def test_nineteen_in_twenty_intervals_hold_an_effect_over_a_control_that_differs_by_draw(sequences, tokens, draws):
    """Of one or two texts over batches and draws, of eight over texts. 300 sets fix 95% to 1.3%; 4 of that are 5%."""
    held = []
    for seed in range(300):
        nll, each = drawn_controls(np.random.default_rng(seed), sequences, tokens, draws, 0.2)
        row = intervention_table(with_draws(nll, each), resamples=20).iloc[1]
        low, high = row.over_control_low, row.over_control_high
        held.append(np.nan if np.isnan(low) else low <= np.exp(0.1) <= high)
    assert 0.90 <= np.nanmean(held) <= 0.99, np.nanmean(held)


def test_the_effect_for_each_unit_of_mass_is_fiellers_ratio_over_texts():
    """By its definition: the interval holds the ratios r for which t of (loss - r mass) is small."""
    random = np.random.default_rng(3)
    mass = np.stack([np.full(6, np.nan), random.uniform(0.3, 0.5, 6), np.full(6, 0.05)])
    base = random.gamma(1.0, 2.6, (6, 80))
    nll = np.stack([base, base + 2.5 * mass[1][:, None] + random.normal(0, 0.3, (6, 80)), base])
    table = intervention_table(with_draws(nll, np.full((3, 1, 6), np.nan), mass)).set_index("intervention")
    late = nll[..., START + 1 :].astype(np.float32).astype(float).mean(-1)
    loss, row = late[1] - late[0], table.loc["evict sinks"]
    assert row.removed_mass == pytest.approx(mass[1].mean()) and np.isnan(table.loc["nothing", "removed_mass"])
    assert row.per_mass == pytest.approx(loss.mean() / mass[1].mean(), rel=1e-5)
    for bound in (row.per_mass_low, row.per_mass_high):
        left = loss - bound * mass[1]
        assert abs(left.mean() / stats.sem(left)) == pytest.approx(stats.t.ppf(0.975, 5), rel=1e-4)
    assert table.loc["evict random", "per_mass"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [1, 2])
def test_over_batches_the_effect_for_each_unit_of_mass_is_that_of_the_ratio(sequences):
    """The mass of these texts is known; that of one is a constant, which rounding does not make drift."""
    known = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        mass = np.stack([np.full(sequences, np.nan), random.uniform(0.3, 0.5, sequences), np.full(sequences, 0.05)])
        record = with_draws(drawn(0.4, 0.1, sequences, 200, seed), np.full((3, 1, sequences), np.nan), mass)
        row = intervention_table(record).set_index("intervention").loc["evict sinks"]
        found = row[["per_mass", "per_mass_low", "per_mass_high"]].astype(float)
        np.testing.assert_allclose(found, np.log(row[RATIO].astype(float)) / mass[1].mean(), rtol=1e-6)
        known += np.isfinite(found).all()
    assert known >= 17  # of 20, of which one in a hundred drifts by chance


def test_two_draws_say_too_little_of_others_for_an_interval_over_draws():
    nll, draws = drawn_controls(np.random.default_rng(0), 8, 60, 2, 0.1)
    table = intervention_table(with_draws(nll, draws))
    assert (
        table[["ratio_draws_low", "over_draws_high"]].isna().all(axis=None) and table["over_control_low"].notna().any()
    )


@pytest.mark.parametrize(
    ("effect", "noise", "verdict"),
    [(0.0, 0.02, "equal"), (0.0, 1.0, "open"), (0.3, 0.1, "higher"), (-0.3, 0.1, "lower"), (0.01, 0.01, "equal")],
)
def test_a_verdict_of_equal_needs_the_whole_interval_within_the_margin(effect, noise, verdict):
    """So small a difference that all of its interval lies within 2% is none, though it may be told from 1."""
    nll = drawn(effect, 0.0, 1, 400, seed=1, noise=noise)
    table = intervention_table(record_of(nll))
    low, high = table.loc[1, ["over_control_low", "over_control_high"]]
    assert table["verdict"].tolist() == ["", verdict, ""] and table.attrs["same"] == 1.02
    assert (verdict == "equal") == (low >= 1 / 1.02 and high <= 1.02)


def test_without_an_interval_there_is_no_verdict():
    trend = drawn(0.3, 0.0, 1, 300, seed=0)
    trend[1] += np.linspace(-2, 2, 300)  # it drifts
    assert intervention_table(record_of(trend))["verdict"].tolist() == ["", "", ""]
