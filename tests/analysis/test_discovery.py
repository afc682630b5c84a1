from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sinkscope.analysis.discovery import discover, recurrence_table
from sinkscope.analysis.importance import sink_rate, sink_rate_curve
from sinkscope.analysis.maps import from_maps
from sinkscope.errors import SinkscopeError
from tests.analysis import naive
from tests.analysis.ragged import planted_maps, ragged_maps, uniform_maps
from tests.support.synthetic import synthetic_maps, synthetic_record, synthetic_texts

COLUMNS = ["sequence", "position", "token_text", "kind", "heads", "importance", "null", "times_null"]


def test_first_token_and_planted_delimiter_are_found_and_nothing_else():
    found = discover(synthetic_record(4, 5, 3, 64))
    assert list(found.columns) == COLUMNS
    for s, texts in enumerate(synthetic_texts(4, 64)):
        rows = found[found["sequence"] == s].set_index("kind")
        assert sorted(rows.index) == ["delimiter", "first"]
        assert rows.loc["first", "position"] == 0 and rows.loc["first", "token_text"] == "<s>"
        assert rows.loc["delimiter", "position"] == texts.index(",")
        assert rows.loc["delimiter", "token_text"] == ","


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 24), min_size=1, max_size=2),
    epsilon=st.floats(0.05, 0.6),
    times_null=st.floats(0.0, 4.0),
    queries=st.integers(1, 10),
    causal=st.booleans(),
)
def test_rows_are_those_of_the_definition_in_loops(lengths, epsilon, times_null, queries, causal):
    maps = ragged_maps(lengths, causal=causal)
    found = discover(from_maps(maps), epsilon, times_null, top=None, queries=queries)
    want = {}
    for s, T in enumerate(lengths):
        uniform = naive.uniform_matrix(T, causal)
        for key in range(T):
            alphas = [naive.alpha(matrix, key, causal) for layer in maps[s] for matrix in layer]
            null, mean = naive.alpha(uniform, key, causal), sum(alphas) / len(alphas)
            seen_by = T - key if causal else T
            heads = sum(alpha > epsilon for alpha in alphas) / len(alphas)
            if heads > 0 and mean >= times_null * null and seen_by >= queries:
                want[s, key] = (heads, mean, null, mean / null)
    assert {(row.sequence, row.position) for row in found.itertuples()} == set(want)
    for row in found.itertuples():
        numbers = (row.heads, row.importance, row.null, row.times_null)
        np.testing.assert_allclose(numbers, want[row.sequence, row.position], rtol=3e-6)
    for _, rows in found.groupby("sequence"):
        order = list(zip(-rows["heads"], -rows["importance"], strict=True))
        assert order == sorted(order)


@pytest.mark.parametrize("causal", [True, False])
def test_uniform_attention_has_no_sinks(causal):
    assert len(discover(from_maps(uniform_maps(64, causal)), epsilon=0.01)) == 0


def test_heads_that_look_only_nearby_have_no_sinks():
    """Each query gives all to itself, or to the token before: the last keys have a large alpha."""
    T = 64
    to_itself = np.eye(T)
    to_previous = np.eye(T, k=-1)
    to_previous[0, 0] = 1
    record = from_maps(np.stack([to_itself, to_previous])[None])
    assert len(discover(record)) == 0
    late = discover(record, queries=1)
    assert len(late) > 0 and late["position"].min() > T - 16


@pytest.mark.parametrize("position", [0, 5, 40])
def test_a_planted_sink_is_found_in_every_head_against_its_own_null(position):
    found = discover(from_maps(planted_maps(64, position)))
    row = found[found["position"] == position].iloc[0]
    assert row["heads"] == 1.0 and row["importance"] == 1.0
    assert row["null"] == pytest.approx(naive.alpha(naive.uniform_matrix(64), position))
    assert row["kind"] == ("first" if position == 0 else "other") and row["token_text"] == ""


@pytest.mark.slow
def test_heads_at_the_first_position_are_the_sink_rate_of_that_text():
    maps = synthetic_maps(3, 4, 3, 64, seed=2)
    record = from_maps(maps)
    found = discover(record, times_null=0).query("position == 0").set_index("sequence")
    assert len(found) > 0
    for s in found.index:
        assert found.loc[s, "heads"] == pytest.approx(sink_rate(record.isel(sequence=[s])).item())


@pytest.mark.slow
def test_a_text_shorter_than_sixteen_is_judged_at_its_first_token_alone():
    record = from_maps(planted_maps(10, 0))
    assert discover(record)["position"].tolist() == [0]
    assert len(discover(from_maps(planted_maps(10, 1)))) == 0
    assert discover(from_maps(planted_maps(10, 1)), queries=5)["position"].tolist() == [1]


def test_top_limits_the_rows_of_each_sequence():
    record = synthetic_record(3, 5, 3, 64)
    everything = discover(record, epsilon=0.05, times_null=0, top=None)
    two = discover(record, epsilon=0.05, times_null=0, top=2)
    assert (everything.groupby("sequence").size() > 2).all() and (two.groupby("sequence").size() == 2).all()
    for s, rows in two.groupby("sequence"):
        assert rows["position"].tolist() == everything[everything["sequence"] == s]["position"].tolist()[:2]


def test_without_received_the_first_keys_alone_are_judged():
    record = synthetic_record(2, 5, 3, 64)
    some = discover(record.drop_vars("received"))
    assert some.attrs["from"] == "sink_mass" and (some["position"] < 4).all() and 0 in some["position"].values


def test_attributes_and_an_empty_table_keep_their_form():
    found = discover(synthetic_record(1, 5, 3, 64), epsilon=0.99)
    assert len(found) == 0 and list(found.columns) == COLUMNS
    assert found.attrs["epsilon"] == 0.99 and found.attrs["model"] == "synthetic"


@pytest.mark.parametrize(
    "options", [{"epsilon": 1.2}, {"times_null": -1}, {"times_null": "2"}, {"top": 0}, {"queries": 0}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(SinkscopeError, match=next(iter(options))):
        discover(synthetic_record(1, 1, 1, 20), **options)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 20), min_size=2, max_size=3),
    epsilons=st.lists(st.floats(0.05, 0.6), min_size=1, max_size=3, unique=True),
    times_null=st.floats(0.0, 3.0),
    queries=st.integers(1, 8),
)
def test_recurrence_of_positions_is_that_of_the_listings_text_by_text(lengths, epsilons, times_null, queries):
    maps = ragged_maps(lengths)
    record = from_maps(maps)
    found = recurrence_table(record, "position", epsilons, times_null, queries)
    want = {}
    for epsilon in epsilons:
        for position in range(max(lengths)):
            can_tell = [s for s, T in enumerate(lengths) if T - position >= queries]
            each = [discover(from_maps(maps[s : s + 1]), epsilon, times_null, None, queries) for s in can_tell]
            want[position, epsilon] = (sum(position in rows["position"].values for rows in each), len(can_tell))
    listed = {position for (position, _), (texts, _) in want.items() if texts}
    assert set(found["position"]) == listed
    for row in found.itertuples():
        assert (row.texts, row.of) == want[row.position, row.epsilon] and row.share == row.texts / row.of
        exact = stats.binomtest(row.texts, row.of).proportion_ci(method="exact")
        np.testing.assert_allclose([row.low, row.high], [exact.low, exact.high], atol=1e-9)
    for epsilon in epsilons:
        flips = sum(0 < texts < of for (_, each), (texts, of) in want.items() if each == epsilon)
        assert found.attrs["flips"][f"{epsilon:g}"] == flips


@pytest.mark.slow
def test_recurrence_of_heads_is_counted_text_by_text_and_flips_beside_the_rate():
    maps = ragged_maps([12, 12, 9, 15])
    record, epsilon = from_maps(maps), 0.3
    found = recurrence_table(record, "head", [0.1, epsilon, 0.5]).set_index(["layer", "head", "epsilon"])
    flips = 0
    for layer in range(maps[0].shape[0]):
        for head in range(maps[0].shape[1]):
            alphas = np.array([naive.alpha(each[layer, head], 0, True) for each in maps])
            for threshold in (0.1, epsilon, 0.5):
                if (layer, head, threshold) in found.index:
                    row = found.loc[(layer, head, threshold)]
                    assert (row.texts, row.of) == ((alphas > threshold).sum(), 4)
                    assert row.alpha == pytest.approx(alphas.mean(), rel=1e-5)
                    assert row.alpha_sd == pytest.approx(alphas.std(ddof=1), rel=1e-4)
                else:
                    assert not (alphas > 0.1).any()
            flips += 0 < (alphas > epsilon).sum() < 4
    rate, curve = sink_rate(record, epsilon), sink_rate_curve(record, [epsilon], [9])
    heads = maps[0].shape[0] * maps[0].shape[1]
    assert (rate.attrs["flips"], rate.attrs["heads"]) == (flips, heads)
    assert int(curve["heads"][0]) == heads and "flips" not in sink_rate(from_maps(maps[:1])).attrs
    cut = [np.array([[naive.alpha(m[:9, :9], 0, True) for m in layer] for layer in each]) > epsilon for each in maps]
    assert int(curve["flips"][0, 0]) == (np.any(cut, 0) & ~np.all(cut, 0)).sum()


@pytest.mark.slow
def test_a_planted_sink_that_is_there_on_six_of_eight_texts_comes_up_on_six():
    """And a threshold above what was planted finds it on none; a text that is there twice counts once."""
    maps = [uniform_maps(40 + s).copy() for s in range(8)]
    for each in maps[:6]:
        each[:, :, 5:] *= 0.4
        each[:, :, 5:, 5] += 0.6
    found = recurrence_table(from_maps(maps), epsilons=[0.3, 0.5, 0.9]).set_index(["position", "epsilon"])
    assert found.loc[(5, 0.3), ["texts", "of"]].tolist() == [6, 8] and found.loc[(5, 0.9), "texts"] == 0
    assert found.attrs["flips"] == {"0.3": 1, "0.5": 1, "0.9": 0} and found.attrs["texts"] == 8
    assert found.index[0][0] == 5
    twice = recurrence_table(from_maps([*maps, *maps]), epsilons=[0.3]).set_index("position")
    once = found.xs(0.3, level="epsilon")
    assert twice.loc[5, ["texts", "of", "low"]].tolist() == once.loc[5, ["texts", "of", "low"]].tolist()


@pytest.mark.slow
def test_recurrence_over_one_text_is_refused_and_so_are_other_words():
    one = uniform_maps(20)
    for record in (from_maps([one]), from_maps([one, one, one])):  # the same text three times
        with pytest.raises(SinkscopeError, match="recurrence is over texts, and the record has one"):
            recurrence_table(record)
    two = from_maps(ragged_maps([10, 12]))
    for options, message in (
        ({"by": "token"}, "by='token'"),
        ({"epsilons": []}, "holds no threshold"),
        ({"epsilons": [0.3, 1.0]}, "epsilon"),
        ({"epsilons": [np.nan]}, "epsilon"),
        ({"queries": 0}, "queries"),
        ({"by": "head", "position": 40}, "position=40"),
    ):
        with pytest.raises(SinkscopeError, match=message):
            recurrence_table(two, **options)
