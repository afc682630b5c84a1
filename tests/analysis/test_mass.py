from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.analysis.maps import from_maps
from sinkscope.analysis.mass import mass_by_layer, sink_mass, uniform_mass
from sinkscope.errors import SinkscopeError
from tests.analysis import naive
from tests.analysis.ragged import planted_maps, ragged_maps, several_lengths, uniform_maps
from tests.support.synthetic import synthetic_maps, synthetic_record

FLOAT32 = {"rtol": 2e-6, "atol": 1e-7}  # variables are stored in float32


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(lengths=several_lengths, heads=st.integers(1, 3), causal=st.booleans(), data=st.data())
def test_sink_mass_equals_its_definition_in_loops(lengths, heads, causal, data):
    first = data.draw(st.integers(1, max(lengths) - 1))
    maps = ragged_maps(lengths, 2, heads, causal=causal)
    record = from_maps(maps, first=min(first + 1, max(lengths)))
    mass = sink_mass(record, first)
    assert mass.dims == ("layer", "head")
    for layer in range(2):
        for head in range(heads):
            np.testing.assert_allclose(mass[layer, head], naive.sink_mass(maps, layer, head, first), **FLOAT32)
    uniform = [[[naive.uniform_matrix(T, causal)]] for T in lengths]
    assert mass.attrs["null"] == pytest.approx(naive.sink_mass(uniform, 0, 0, first), rel=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_uniform_attention_gives_exactly_the_null(causal):
    mass = sink_mass(from_maps(uniform_maps(40, causal), first=3), first=3)
    assert mass.attrs["null"] == pytest.approx(uniform_mass(40, 3, causal), rel=1e-12)
    np.testing.assert_allclose(mass, mass.attrs["null"], **FLOAT32)


def test_a_planted_sink_has_mass_one():
    assert (sink_mass(from_maps(planted_maps(20, 0)), first=1) == 1).all()
    moved = from_maps(planted_maps(20, 2))
    assert (sink_mass(moved, first=3) == 1).all()
    assert (sink_mass(moved, first=2) == 0).all()


def test_shuffling_heads_permutes_the_masses():
    maps = synthetic_maps(2, 2, 4, 12)
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(
        sink_mass(from_maps(maps[:, :, order])).values, sink_mass(from_maps(maps)).values[:, order]
    )


def test_missing_heads_and_unmeasured_queries_are_left_out():
    maps = synthetic_maps(2, 2, 2, 12)
    record = from_maps(maps)
    record["sink_mass"][:, 1, 1] = np.nan
    record["sink_mass"][:, :, :, :6] = np.nan  # the scope was attached at query 6
    mass = sink_mass(record, 2)
    want = np.mean([maps[s, 0, 1, i, :2].sum() for s in range(2) for i in range(6, 12)])
    np.testing.assert_allclose(mass[0, 1], want, **FLOAT32)
    assert np.isnan(mass[1, 1])
    assert mass.attrs["null"] == pytest.approx(np.mean([2 / (i + 1) for i in range(6, 12)]))


def test_a_selected_layer_or_head_reads_the_same():
    record = synthetic_record(3, 3, 2, 20)
    mass = sink_mass(record)
    np.testing.assert_array_equal(sink_mass(record.sel(layer=2)).values, mass.values[2:])
    np.testing.assert_array_equal(sink_mass(record.isel(head=0)).values, mass.values[:, :1])
    alone = sink_mass(record.isel(sequence=1))
    np.testing.assert_array_equal(alone, sink_mass(record.isel(sequence=[1])))


def test_attributes_say_what_was_computed_from_what():
    mass = sink_mass(synthetic_record(), 2)
    assert mass.attrs["model"] == "synthetic" and mass.attrs["first"] == 2 and "first 2 keys" in mass.attrs["computed"]


def test_mass_by_layer_is_the_mean_over_heads_with_bounds_around_it():
    lengths = [14, 14, 9, 12]
    maps = ragged_maps(lengths, 3, 2)
    by_layer = mass_by_layer(from_maps(maps), first=2)
    assert set(by_layer) == {"mean", "lower", "upper"} and by_layer["mean"].dims == ("layer",)
    for layer in range(3):
        heads = [naive.sink_mass(maps, layer, head, 2) for head in range(2)]
        np.testing.assert_allclose(by_layer["mean"][layer], sum(heads) / 2, **FLOAT32)
    assert (by_layer["lower"] < by_layer["mean"]).all() and (by_layer["mean"] < by_layer["upper"]).all()
    assert by_layer.attrs["n"] == 4 and by_layer.attrs["confidence"] == 0.95 and by_layer.attrs["null"] > 0
    assert np.isnan(mass_by_layer(from_maps(maps[0]), first=2)["lower"]).all()


@pytest.mark.parametrize(
    ("first", "message"),
    [(0, "first=0"), (-1, "first=-1"), (2.5, "first=2.5"), (5, r"SinkMass\(first=5\)"), (True, "first=True")],
)
def test_bad_numbers_of_keys_are_refused(first, message):
    for metric in (sink_mass, mass_by_layer):
        with pytest.raises(SinkscopeError, match=message):
            metric(synthetic_record(1, 1, 1, 10), first)


def test_a_text_no_longer_than_the_first_keys_is_refused():
    with pytest.raises(SinkscopeError, match="text of 4 tokens"):
        sink_mass(from_maps(synthetic_maps(1, 1, 1, 4)), first=4)


def test_a_record_without_sink_mass_names_the_probe():
    with pytest.raises(SinkscopeError, match="SinkMass"):
        sink_mass(synthetic_record(1, 1, 1, 10).drop_vars("sink_mass"))


def test_sequences_that_overlap_count_once_in_an_interval_and_those_that_repeat_a_few_words_do_not():
    record = synthetic_record(6, 3, 2, 80)
    ids = np.random.default_rng(0).integers(0, 5000, (6, 80))
    apart = mass_by_layer(record.assign_coords(token_id=(("sequence", "token"), ids)))
    assert apart.attrs["bounds"] == mass_by_layer(record).attrs["bounds"] == "95% t interval over 6 sequences"
    ids[1, :40] = ids[0, 40:]  # the second begins in the middle of the first
    overlapping = mass_by_layer(record.assign_coords(token_id=(("sequence", "token"), ids)))
    assert overlapping.attrs["bounds"] == "95% t interval over 5 sequences"
