from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.analysis.importance import sink_rate, sink_rate_curve
from sinkscope.analysis.maps import from_maps
from sinkscope.analysis.mass import uniform_importance
from sinkscope.errors import SinkscopeError
from tests.analysis import naive
from tests.analysis.ragged import planted_maps, ragged_maps, several_lengths, uniform_maps
from tests.support.synthetic import synthetic_maps, synthetic_record


def gu_sink_metric(attention: np.ndarray, epsilon: float, k: int) -> float:
    """The published metric of one text, [layer, head, T, T], k from 1, in vector algebra (Gu et al. 2024)."""
    T = attention.shape[-1]
    from_k = (np.arange(1, T + 1) >= k).astype(float)
    alpha = np.einsum("lhik,i->lhk", attention, from_k)[..., k - 1] / (T - k + 1)
    return float((alpha > epsilon).mean())


def test_the_published_metric_at_64_tokens_over_many_sequences():
    """Sink_1^0.3 with T = 64: the mean over sequences of the fraction of heads."""
    maps = synthetic_maps(sequences=6, layers=6, heads=4, tokens=64, seed=3)
    rate = sink_rate(from_maps(maps, bos="yes"))
    want = np.mean([gu_sink_metric(one, 0.3, 1) for one in maps])
    assert 0.1 < want < 0.9
    assert rate.item() == pytest.approx(want, rel=1e-12)
    assert rate.dims == () and rate.attrs["epsilon"] == 0.3 and rate.attrs["T"] == 64
    assert rate.attrs["bos"] == "yes" and rate.attrs["position"] == 0 and rate.attrs["sequences"] == 6
    assert rate.attrs["null_alpha"] == pytest.approx(naive.harmonic(64) / 64)
    assert rate.attrs["null_rate"] == 0.0
    assert sink_rate(from_maps(maps), epsilon=0.07).attrs["null_rate"] == 1.0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(lengths=several_lengths, heads=st.integers(1, 3), causal=st.booleans(), data=st.data())
def test_sink_rate_equals_its_definition_in_loops(lengths, heads, causal, data):
    position = data.draw(st.integers(0, max(lengths) - 1))
    epsilon = data.draw(st.floats(0.02, 0.95))
    maps = ragged_maps(lengths, 2, heads, causal=causal)
    want = naive.sink_rate(maps, epsilon, position, causal)
    record = from_maps(maps, first=1)
    rate = sink_rate(record, epsilon, position)
    assert rate.item() == pytest.approx(want, rel=1e-12)
    reached = [T for T in lengths if position < T]
    nulls = [naive.alpha(naive.uniform_matrix(T, causal), position, causal) for T in reached]
    assert rate.attrs["null_alpha"] == pytest.approx(sum(nulls) / len(nulls), rel=1e-12)
    assert rate.attrs["T"] == max(reached) and rate.attrs["T_shortest"] == min(reached)
    if position == 0:
        assert sink_rate(record.drop_vars("received"), epsilon).item() == rate.item()
        assert sink_rate(record.drop_vars("sink_mass"), epsilon).item() == pytest.approx(rate.item())


@pytest.mark.parametrize("position", [0, 2, 7])
def test_a_planted_sink_has_rate_one_and_no_other_key_has(position):
    record = from_maps(planted_maps(16, position))
    assert sink_rate(record, 0.99, position).item() == 1.0
    other = 15 if position < 15 else 0
    assert sink_rate(record, 0.3, other).item() == 0.0


@pytest.mark.parametrize("causal", [True, False])
def test_uniform_heads_pass_exactly_up_to_the_null(causal):
    record = from_maps(uniform_maps(32, causal))
    null = sink_rate(record).attrs["null_alpha"]
    assert null == pytest.approx(naive.harmonic(32) / 32 if causal else 1 / 32)
    assert sink_rate(record, null * 0.999).item() == 1.0
    assert sink_rate(record, null * 1.001).item() == 0.0


def test_heads_a_layer_lacks_are_left_out():
    maps = synthetic_maps(2, 2, 3, 16)
    record = from_maps(maps).drop_vars("received")
    record["sink_mass"][:, 0, 2] = np.nan
    present = [gu_heads(maps, s, layer, head) for s in range(2) for layer in range(2) for head in range(3)]
    kept = [value for number, value in enumerate(present) if number % 6 != 2]
    assert sink_rate(record).item() == pytest.approx(sum(kept) / len(kept))


def gu_heads(maps, s, layer, head):
    return naive.alpha(maps[s, layer, head], 0) > 0.3


def test_shuffling_heads_or_layers_changes_no_rate():
    maps = synthetic_maps(2, 3, 4, 20)
    shuffled = maps[:, ::-1][:, :, [3, 1, 0, 2]]
    assert sink_rate(from_maps(shuffled)).item() == sink_rate(from_maps(maps)).item()


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(4, 14), min_size=1, max_size=3), data=st.data())
def test_the_curve_is_the_metric_of_each_prefix(lengths, data):
    """Causal maps: cutting the text is the same as cutting the queries."""
    position = data.draw(st.integers(0, 2))
    maps = ragged_maps(lengths)
    prefixes = sorted({data.draw(st.integers(position + 1, max(lengths))), max(lengths)})
    epsilons = [0.1, 0.3, 0.8]
    curve = sink_rate_curve(from_maps(maps, first=3), epsilons, prefixes, position)
    assert curve["rate"].dims == ("length", "epsilon")
    for row, length in enumerate(prefixes):
        shorter = naive.prefix(maps, length)
        assert curve["sequences"][row] == len(shorter)
        null = uniform_importance(length, position)
        assert float(curve["null_alpha"][row]) == pytest.approx(null, rel=1e-12)
        for column, epsilon in enumerate(epsilons):
            want = naive.sink_rate(shorter, epsilon, position)
            assert float(curve["rate"][row, column]) == pytest.approx(want, rel=1e-12)


@pytest.mark.slow
def test_the_curve_passes_through_the_sink_rate_and_its_bounds_enclose_it():
    record = synthetic_record(16, 5, 3, 40, seed=5)
    curve = sink_rate_curve(record)
    assert curve["length"].values.tolist() == [16, 32, 40]
    assert len(curve["epsilon"]) == 19 and {0.3, 0.8} <= set(curve["epsilon"].values)
    rate = curve["rate"].sel(length=40)
    for epsilon in (0.3, 0.8):
        assert float(rate.sel(epsilon=epsilon)) == pytest.approx(sink_rate(record, epsilon).item())
    assert (curve["lower"] <= curve["rate"]).all() and (curve["rate"] <= curve["upper"]).all()
    assert (np.diff(rate) <= 0).all()
    assert curve.attrs["bos"] == "yes" and curve.attrs["confidence"] == 0.95 and curve.attrs["model"] == "synthetic"


@pytest.mark.parametrize("count", [1, 2, 8, 15])
def test_a_few_sequences_have_a_curve_without_bounds_and_it_says_why(count):
    curve = sink_rate_curve(synthetic_record(count, 2, 2, 20))
    assert curve["rate"].notnull().all() and curve["lower"].isnull().all() and curve["upper"].isnull().all()
    assert f"{count} sequence" in curve.attrs["bounds"] and "fewer than 16" in curve.attrs["note"]


def test_an_encoder_has_only_its_whole_texts():
    maps = ragged_maps([12, 12, 9], causal=False)
    record = from_maps(maps)
    curve = sink_rate_curve(record, [0.3])
    assert curve["length"].values.tolist() == [9, 12] and curve["sequences"].values.tolist() == [1, 2]
    np.testing.assert_allclose(curve["null_alpha"], [1 / 9, 1 / 12])
    assert float(curve["rate"][1, 0]) == pytest.approx(naive.sink_rate(maps[:2], 0.3, causal=False))
    with pytest.raises(SinkscopeError, match="encoder"):
        sink_rate_curve(record, lengths=[10])


RECORD = synthetic_record(2, 1, 2, 20)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.3, 30, float("nan"), "0.3", None])
def test_epsilon_outside_the_open_unit_interval_is_refused(epsilon):
    with pytest.raises(SinkscopeError, match="epsilon="):
        sink_rate(RECORD, epsilon)
    with pytest.raises(SinkscopeError, match="epsilon="):
        sink_rate_curve(RECORD, [0.3, epsilon])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sink_rate(RECORD, position=20), "position=20"),
        (lambda: sink_rate(RECORD, position=-1), "position=-1"),
        (lambda: sink_rate(RECORD, position=0.5), "position=0.5"),
        (lambda: sink_rate(RECORD.drop_vars("received"), position=9), r"SinkMass\(first=10\)"),
        (lambda: sink_rate(RECORD.drop_vars(["sink_mass", "received"])), r"SinkMass"),
        (lambda: sink_rate_curve(RECORD, position=4), r"SinkMass\(first=5\)"),
        (lambda: sink_rate_curve(RECORD, lengths=[21]), "length=21"),
        (lambda: sink_rate_curve(RECORD, lengths=[3], position=3), "length=3"),
        (lambda: sink_rate_curve(RECORD, lengths=[0]), "length=0"),
        (lambda: sink_rate_curve(RECORD, lengths=[]), "holds no number"),
        (lambda: sink_rate_curve(RECORD, epsilons=[]), "holds no number"),
        (lambda: sink_rate_curve(RECORD.drop_vars("sink_mass")), "SinkMass"),
    ],
)
def test_what_the_record_cannot_give_is_refused(call, message):
    with pytest.raises(SinkscopeError, match=message):
        call()


def test_a_record_whose_heads_are_all_missing_is_refused():
    with pytest.raises(SinkscopeError, match="no attention"):
        sink_rate(RECORD.assign(sink_mass=RECORD["sink_mass"] * np.nan))
