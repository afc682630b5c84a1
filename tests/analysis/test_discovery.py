from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.analysis.discovery import discover
from sinkscope.analysis.importance import sink_rate
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


def test_heads_at_the_first_position_are_the_sink_rate_of_that_text():
    maps = synthetic_maps(3, 4, 3, 64, seed=2)
    record = from_maps(maps)
    found = discover(record, times_null=0).query("position == 0").set_index("sequence")
    assert len(found) > 0
    for s in found.index:
        assert found.loc[s, "heads"] == pytest.approx(sink_rate(record.isel(sequence=[s])).item())


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
