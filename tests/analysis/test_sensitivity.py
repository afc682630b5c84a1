"""Headlines against length, threshold and BOS, from the maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sinkscope.analysis.sensitivity import mass_by_length, sensitivity_table
from sinkscope.errors import SinkscopeError
from tests.support.loss_records import collapsing
from tests.support.synthetic import synthetic_maps, synthetic_record

SIZE = (5, 3, 2, 80)


def test_the_mass_of_a_prefix_its_null_and_the_share_above_it():
    maps, found = synthetic_maps(*SIZE), mass_by_length(synthetic_record(*SIZE))
    assert found["length"].values.tolist() == [16, 64, 80]
    for length in (16, 64, 80):
        each = maps[..., 1:length, 0].mean((1, 2, 3))
        own = found.sel(length=length)
        null = np.mean(1 / np.arange(2, length + 1))
        assert own["mass"] == pytest.approx(each.mean(), rel=1e-5) and own["null"] == pytest.approx(null)
        assert own["above"] == pytest.approx((each.mean() - null) / (1 - null), rel=1e-5)
        assert own["times_null"] == pytest.approx(each.mean() / null, rel=1e-5)
        bounds = stats.t.interval(0.95, 4, each.mean(), stats.sem(each))
        np.testing.assert_allclose([own["lower"], own["upper"]], bounds, rtol=1e-4)


def test_uniform_attention_lies_nowhere_above_the_null():
    from sinkscope.analysis.maps import from_maps

    uniform = np.tril(np.ones((4, 2, 2, 64, 64)))
    found = mass_by_length(from_maps(uniform / uniform.sum(-1, keepdims=True)))
    np.testing.assert_allclose(found["above"], 0, atol=1e-6)
    np.testing.assert_allclose(found["times_null"], 1, rtol=1e-6)


@pytest.mark.slow
def test_the_table_varies_one_thing_at_a_time():
    record, short = synthetic_record(*SIZE), synthetic_record(4, 3, 2, 40, seed=1)
    other = synthetic_record(3, 3, 2, 40, seed=2).assign_attrs(bos="no")
    table = sensitivity_table(record, short, other)
    assert set(zip(table["headline"], table["varied"], strict=True)) == {
        ("mass", "T"), ("mass", "BOS"), ("sink rate", "T"), ("sink rate", "epsilon"), ("sink rate", "BOS"),
    }  # fmt: skip
    alpha = synthetic_maps(*SIZE)[..., 0].mean(-1)
    for _, row in table[(table["varied"] == "epsilon")].iterrows():
        assert row["value"] == pytest.approx((alpha > float(row["level"])).mean(), abs=1e-6)
    bos = table[(table["headline"] == "mass") & (table["varied"] == "BOS")]
    assert bos["level"].tolist() == ["with, T = 40", "without, T = 40"]
    expected = [synthetic_maps(4, 3, 2, 40, seed=1)[:3], synthetic_maps(3, 3, 2, 40, seed=2)]
    np.testing.assert_allclose(bos["value"], [maps[..., 1:, 0].mean() for maps in expected], rtol=1e-5)
    assert "BOS" not in set(sensitivity_table(record)["varied"])


@pytest.mark.slow
def test_a_threshold_of_ones_own_is_that_of_the_table():
    record = synthetic_record(*SIZE)
    table = sensitivity_table(record, epsilon=0.15)
    alpha = synthetic_maps(*SIZE)[..., 0].mean(-1)
    rates = table[(table["headline"] == "sink rate") & (table["varied"] == "T")].set_index("level")["value"]
    assert rates["80"] == pytest.approx((alpha > 0.15).mean(), abs=1e-6)
    assert "0.15" in set(table["level"]) and table.attrs["epsilon"] == 0.15


@pytest.mark.slow
def test_other_texts_in_the_place_of_those_without_bos_are_refused():
    record, short = synthetic_record(*SIZE), synthetic_record(4, 3, 2, 40)
    other = short.assign_coords(token_id=short["token_id"] + 1)
    with pytest.raises(SinkscopeError, match="other_bos holds other tokens than short"):
        sensitivity_table(record, short, other)
    with pytest.raises(SinkscopeError, match="other_bos has the sequence 9, and short has not"):
        sensitivity_table(record, short, short.assign_coords(sequence=[0, 1, 2, 9]))


def with_bos(losses):
    """The same texts with a token in front, and as many tokens; every window costs 0.4 nats less after the eviction."""
    ids = np.roll(losses["token_id"].values, 1, axis=1)
    ids[:, 0] = 99
    nll = np.roll(losses["nll"].values, 1, axis=2)
    nll[1, :, 66:] -= 0.4
    nll[..., :2] = np.nan
    return losses.assign(nll=losses["nll"].copy(data=nll)).assign_coords(token_id=(("sequence", "token"), ids))


def losses_of_texts(sequences=5, tokens=200):
    record = collapsing(sequences, tokens, seed=3).assign_attrs(model="synthetic")
    ids = np.random.default_rng(0).integers(0, 90, (sequences, tokens))
    return record.assign_coords(token_id=(("sequence", "token"), ids), sequence=np.arange(sequences))


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_the_collapse_with_and_without_a_token_in_front_is_that_of_its_losses(turned):
    """By scipy, of mean differences in loss; whose records have the token in front is seen from the tokens."""
    losses = losses_of_texts()
    pair = (losses, with_bos(losses))
    table = sensitivity_table(synthetic_record(*SIZE), None, None, 0.3, *(pair[::-1] if turned else pair))
    rows = table[(table["headline"] == "collapse") & (table["varied"] == "BOS")].set_index("level")
    levels = ["without, T = 200", "with, T = 200"]
    assert rows.index.tolist() == (levels[::-1] if turned else levels)
    for level, record in zip(levels, pair, strict=True):
        nll = record["nll"].values.astype(np.float64)[..., 66:]
        apart = (nll[1] - nll[3]).mean(-1)
        bounds = stats.t.interval(0.95, 4, apart.mean(), stats.sem(apart))
        found = rows.loc[level, ["value", "low", "high"]].astype(float)
        np.testing.assert_allclose(found, np.exp([apart.mean(), *bounds]), rtol=1e-5)
    said = table.attrs["bounds"]
    assert said.startswith("mass and sink rate: ") and said.endswith("; collapse: 95% t intervals over 5 sequences")
    assert rows.loc["with, T = 200", "value"] < 0.75 * rows.loc["without, T = 200", "value"]


@pytest.mark.slow
def test_losses_with_another_bos_are_of_the_same_texts_and_policies():
    record, losses = synthetic_record(*SIZE), losses_of_texts()
    other = with_bos(losses)
    part = sensitivity_table(record, losses=losses, other_losses=other.isel(sequence=[1, 3, 4]))
    one = sensitivity_table(record, losses=losses.isel(sequence=[1, 3, 4]), other_losses=other.isel(sequence=[1, 3, 4]))
    values = [
        each[(each["headline"] == "collapse") & (each["varied"] == "BOS")]["value"].tolist() for each in (part, one)
    ]
    assert values[0] == values[1] and len(values[0]) == 2
    with pytest.raises(
        SinkscopeError, match="losses is of another, and record of synthetic: give records of one model"
    ):
        sensitivity_table(record, losses=losses.assign_attrs(model="another"))
    with pytest.raises(SinkscopeError, match="other_losses are set beside losses, and there are none"):
        sensitivity_table(record, other_losses=other)
    with pytest.raises(SinkscopeError, match=r"window and sinks are .* in losses and none in other_losses"):
        sensitivity_table(record, losses=losses, other_losses=other.isel(policy=[0, 1]))
    with pytest.raises(SinkscopeError, match="other_losses holds other tokens than losses"):
        sensitivity_table(record, losses=losses, other_losses=other.assign_coords(token_id=other["token_id"] + 1))
    with pytest.raises(SinkscopeError, match="other_losses has the sequence 7, and losses has not"):
        sensitivity_table(record, losses=losses, other_losses=other.assign_coords(sequence=[0, 1, 2, 3, 7]))


@pytest.mark.parametrize("length", [1, 81, 2.5])
def test_a_length_that_is_no_prefix_is_refused(length):
    with pytest.raises(SinkscopeError, match="length="):
        mass_by_length(synthetic_record(*SIZE), lengths=[length])
