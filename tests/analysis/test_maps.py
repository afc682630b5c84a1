from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.analysis.importance import importance
from sinkscope.analysis.maps import from_maps
from sinkscope.analysis.mass import sink_mass
from sinkscope.errors import SinkscopeError
from tests.analysis import naive
from tests.analysis.ragged import ragged_maps
from tests.support.synthetic import softmax, synthetic_maps, synthetic_record

FLOAT32 = {"rtol": 2e-6, "atol": 1e-7}  # variables are stored in float32
SCHEMA = {
    "sink_mass": ("sequence", "layer", "head", "query", "sink"),
    "log_sum_exp": ("sequence", "layer", "head", "query"),
    "received": ("sequence", "layer", "head", "key"),
    "entropy": ("sequence", "layer", "head", "query"),
    "distance_mass": ("sequence", "layer", "head", "distance"),
    "attention_map": ("sequence", "layer", "head", "map_query", "map_key"),
    "mean_logit": ("layer", "head", "corner_query", "corner_key"),
    "mean_probability": ("layer", "head", "corner_query", "corner_key"),
    "key_norm": ("sequence", "layer", "kv_head", "token"),
    "value_norm": ("sequence", "layer", "kv_head", "token"),
    "activation_max": ("sequence", "layer", "token"),
    "activation_median": ("sequence", "layer", "token"),
    "activation_dimension": ("sequence", "layer", "token"),
}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    causal=st.booleans(),
    data=st.data(),
)
def test_every_variable_equals_its_definition_in_loops(lengths, heads, causal, data):
    first = data.draw(st.integers(1, max(lengths)))
    maps = ragged_maps(lengths, layers=2, heads=heads, causal=causal)
    record = from_maps(maps, first=first)
    # A single token is causal whatever was meant.
    both_sides = not causal and max(lengths) > 1
    assert record.attrs["causal"] == int(not both_sides)
    assert record["length"].values.tolist() == lengths
    longest = max(lengths)
    for s, T in enumerate(lengths):
        for layer in range(2):
            for head in range(heads):
                a = maps[s][layer, head]
                at = record.isel(sequence=s, layer=layer, head=head)
                for i in range(longest):
                    want = [a[i, j] if j < T else 0.0 for j in range(first)] if i < T else [math.nan] * first
                    np.testing.assert_allclose(at["sink_mass"].values[i], want, **FLOAT32)
                    inside = i < T
                    np.testing.assert_allclose(
                        at["entropy"].values[i], naive.entropy(a[i]) if inside else math.nan, **FLOAT32
                    )
                    np.testing.assert_allclose(
                        at["received"].values[i], naive.received(a, i) if inside else math.nan, **FLOAT32
                    )
                    np.testing.assert_allclose(
                        at["distance_mass"].values[i],
                        naive.distance_mass(a, i, both_sides) if inside else math.nan,
                        **FLOAT32,
                    )
                np.testing.assert_allclose(at["attention_map"].values[:T, :T], a, **FLOAT32)
                assert (
                    np.isnan(at["attention_map"].values[T:]).all() and np.isnan(at["attention_map"].values[:, T:]).all()
                )
    assert "virtual_sink_mass" not in record


def test_mean_probability_is_the_mean_over_the_sequences_that_reach_so_far():
    lengths = [20, 5]
    maps = ragged_maps(lengths)
    mean = from_maps(maps)["mean_probability"].values
    assert mean.shape == (2, 2, 16, 16)
    for i in range(16):
        for j in range(16):
            those = [one[1, 0, i, j] for one, T in zip(maps, lengths, strict=True) if max(i, j) < T]
            want = math.nan if j > i else sum(those) / len(those)
            np.testing.assert_allclose(mean[1, 0, i, j], want, **FLOAT32)


def test_long_texts_get_a_pooled_map_of_mean_mass():
    T = 520
    logits = np.random.default_rng(0).normal(size=(1, 1, T, T))
    logits[..., np.triu(np.ones((T, T), dtype=bool), 1)] = -np.inf
    maps = softmax(logits)
    record = from_maps(maps)
    pooled, starts = record["attention_map"].values[0, 0, 0], record["map_query"].values.tolist()
    assert pooled.shape == (64, 64) and starts[0] == 0 and record["attention_map"].attrs["pool"] == "mass"
    np.testing.assert_array_equal(record["map_key"], starts)
    ends = [*starts[1:], T]
    for row, column in ((0, 0), (5, 2), (63, 0), (63, 63), (3, 40)):
        queries = range(starts[row], ends[row])
        keys = range(starts[column], ends[column])
        want = sum(float(maps[0, 0, i, j]) for i in queries for j in keys) / len(queries)
        np.testing.assert_allclose(pooled[row, column], want, **FLOAT32)
    np.testing.assert_allclose(pooled.sum(-1), 1.0, rtol=1e-5)  # 64 float32 additions


def test_pooled_maps_of_shorter_sequences_stop_where_the_text_does():
    long, short = np.zeros((1, 1, 600, 600)), np.zeros((1, 1, 30, 30))
    long[..., 0] = short[..., 0] = 1.0
    record = from_maps([long, short])
    cells = int((record["map_query"].values < 30).sum())
    pooled = record["attention_map"].values[1, 0, 0]
    np.testing.assert_array_equal(pooled[:cells, 0], 1.0)
    assert np.isnan(pooled[cells:]).all() and np.isnan(pooled[:, cells:]).all()


def test_rows_below_one_are_mass_on_a_virtual_sink():
    maps = synthetic_maps(1, 2, 2, 9)
    gate = np.random.default_rng(1).uniform(0.2, 1.0, maps.shape[:-1])
    record = from_maps(maps * gate[..., None])
    np.testing.assert_allclose(record["virtual_sink_mass"], 1 - gate, rtol=1e-5, atol=1e-6)


def test_rounding_of_bfloat16_rows_is_not_a_virtual_sink_nor_an_error():
    maps = synthetic_maps(1, 2, 2, 40)
    kept_bits = maps.astype(np.float32).view(np.uint32)
    rounded = ((kept_bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    assert abs(rounded.sum(-1) - 1).max() > 1e-4
    assert "virtual_sink_mass" not in from_maps(rounded)


def test_tokens_may_be_texts_or_ids_once_or_per_sequence():
    maps = synthetic_maps(2, 1, 1, 3)
    assert from_maps(maps, ["a", "b", "c"], first=1)["token_text"].values.tolist() == [["a", "b", "c"]] * 2
    assert from_maps(maps, np.array([5, 6, 7]), first=1)["token_id"].values.tolist() == [[5, 6, 7]] * 2
    per_sequence = from_maps(list(ragged_maps([3, 2])), [["a", "b", "c"], ["d", "e"]], first=1)
    assert per_sequence["token_text"].values.tolist() == [["a", "b", "c"], ["d", "e", ""]]
    ids = from_maps(list(ragged_maps([3, 2])), [np.array([1, 2, 3]), [4, 5]], first=1)["token_id"]
    assert ids.values.tolist() == [[1, 2, 3], [4, 5, -1]] and ids.dtype == np.int64
    assert "token_id" not in from_maps(maps, first=1) and "token_text" not in from_maps(maps, first=1)


@pytest.mark.slow
def test_a_tuple_is_one_array_per_layer_and_a_list_one_per_sequence():
    maps = synthetic_maps(3, 2, 2, 6)
    whole = from_maps(maps).drop_attrs()
    xr.testing.assert_identical(from_maps(tuple(maps[:, layer] for layer in range(2))).drop_attrs(), whole)
    xr.testing.assert_identical(from_maps(list(maps)).drop_attrs(), whole)
    xr.testing.assert_identical(from_maps(maps.tolist()).drop_attrs(), whole)
    with pytest.raises(SinkscopeError, match="give a tuple"):
        from_maps([maps[:1, 0], maps[:1, 1]])


def test_attributes_and_provenance_are_kept():
    record = from_maps(synthetic_maps(1, 1, 1, 5), list("abcde"), model="mine", bos="yes", trained=True)
    assert record.attrs["model"] == "mine" and record.attrs["bos"] == "yes" and record.attrs["trained"] == 1
    noted = {"causal", "tokens", "sequences", "tokens_sha256", "python", "date", "sinkscope"}
    assert noted <= set(record.attrs)
    other = from_maps(synthetic_maps(1, 1, 1, 5), list("abcdf"))
    assert other.attrs["tokens_sha256"] != record.attrs["tokens_sha256"]
    assert all(isinstance(value, (str, int, float)) for value in record.attrs.values())


def test_the_synthetic_record_follows_the_schema():
    record = synthetic_record(2, 3, 2, 20)
    assert {name: record[name].dims for name in record} == SCHEMA
    for name, values in record.items():
        assert values.dtype == (np.int32 if name == "activation_dimension" else np.float32), name
    assert record["token_text"].dims == record["token_id"].dims == ("sequence", "token")


GOOD = synthetic_maps(1, 1, 2, 5)
NEGATIVE = GOOD.copy()
NEGATIVE[0, 0, 0, 4, 0] = -0.1
UNKNOWN = GOOD.copy()
UNKNOWN[0, 0, 0, 4, 0] = np.nan


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (GOOD[0, 0, 0], {}, "2 dimensions"),
        (GOOD[None], {}, "6 dimensions"),
        (np.zeros((0, 1, 1, 4, 4)), {}, "empty"),
        ([GOOD[0], GOOD[0][..., :4, :]], {}, "not both"),
        (UNKNOWN, {}, "layer 0 hold NaN"),
        (NEGATIVE, {}, "below zero"),
        (GOOD * 1.01, {}, "sums to 1.01"),
        (GOOD.astype(complex), {}, "complex"),
        ("maps.npy", {}, "not real numbers"),
        ([[1.0], [1.0, 2.0]], {}, "numpy cannot read"),
        (None, {}, "not real numbers"),
        (GOOD, {"first": 6}, "first=6"),
        (GOOD, {"first": 0}, "first=0"),
        (GOOD, {"first": 1.5}, "first=1.5"),
        (GOOD, {"tokens": ["a"] * 4}, "has 4 tokens, but its maps have 5"),
        (GOOD, {"tokens": "abcde"}, "one string"),
        (GOOD, {"tokens": [["a"] * 5] * 2}, "2 lists for 1 sequences"),
        (GOOD, {"tokens": ["a", 1, "b", 2, "c"]}, "mix"),
        (GOOD, {"tokens": [1, 2, 3, 4, -1]}, "negative"),
        (GOOD, {"tokens": 7}, "of type int"),
        (GOOD, {"tokens": [0.5] * 5}, "mix"),
        (GOOD, {"note": [1, 2]}, "attribute note="),
        ([GOOD[0], GOOD[0][:, :1]], {}, "different numbers of layers and heads"),
        ((GOOD[0], GOOD[0][:, :1]), {}, "different shapes"),
    ],
)
def test_bad_maps_are_refused_in_one_sentence(array, options, message):
    with pytest.raises(SinkscopeError, match=message) as error:
        from_maps(array, **options)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_maps_of_cross_attention_have_keys_of_their_own():
    """Against attention that is spread evenly, and against sums in float64 over maps with other numbers."""
    generator = np.random.default_rng(4)
    maps = [generator.dirichlet(np.ones(keys), (2, 3, queries)) for queries, keys in ((5, 9), (7, 4))]
    record = from_maps(maps, first=3)
    assert record.length.values.tolist() == [5, 7] and record.key_length.values.tolist() == [9, 4]
    assert record.attrs["causal"] == 0 and "distance_mass" not in record
    for sequence, each in enumerate(maps):
        queries, keys = each.shape[-2:]
        own = record.isel(sequence=sequence)
        np.testing.assert_allclose(own.attention_map[..., :queries, :keys], each, atol=1e-6)
        np.testing.assert_allclose(own.received[..., :keys], each.sum(-2), atol=1e-5)
        np.testing.assert_allclose(own.sink_mass[..., :queries, :], each[..., :3], atol=1e-6)
        assert bool(own.received[..., keys:].isnull().all()) and bool(own.sink_mass[..., queries:, :].isnull().all())
    even = from_maps(np.full((1, 1, 6, 8), 1 / 8))
    assert float(sink_mass(even)[0, 0]) == pytest.approx(0.5) == sink_mass(even).attrs["null"]
    np.testing.assert_allclose(importance(even), 1 / 8)
    np.testing.assert_allclose(importance(even).null, 1 / 8)
    long = from_maps(np.full((1, 1, 6, 600), 1 / 600))
    assert long.attention_map.shape == (1, 1, 1, 6, 64)
    np.testing.assert_allclose(long.attention_map.sum("map_key"), 1, atol=1e-5)
