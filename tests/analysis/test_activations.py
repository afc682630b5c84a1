from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.analysis.discovery import massive_activations
from sinkscope.errors import SinkscopeError
from tests.support.synthetic import delimiter_position, synthetic_record, synthetic_texts

COLUMNS = ["sequence", "layer", "position", "token_text", "dimension", "magnitude", "times_median"]


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(magnitude=st.floats(1, 1000), ratio=st.floats(1, 5000), seed=st.integers(0, 99))
def test_rows_are_those_of_the_definition_in_loops(magnitude, ratio, seed):
    record = synthetic_record(2, 3, 1, 10, seed=seed)
    record["activation_max"][1, :, 7:] = np.nan
    largest, median = (
        record["activation_max"].values.astype(float),
        record["activation_median"].values.astype(float),
    )
    want = [
        (s, layer, p)
        for s in range(2)
        for layer in range(3)
        for p in range(10)
        if largest[s, layer, p] > magnitude and largest[s, layer, p] >= ratio * median[s, layer, p]
    ]
    found = massive_activations(record, magnitude, ratio)
    assert [(row.sequence, row.layer, row.position) for row in found.itertuples()] == want
    for row, (s, layer, p) in zip(found.itertuples(), want, strict=True):
        assert row.magnitude == largest[s, layer, p]
        assert row.times_median == pytest.approx(largest[s, layer, p] / median[s, layer, p])
        assert row.dimension == record["activation_dimension"].values[s, layer, p]
        assert row.token_text == str(record["token_text"].values[s, p])


def test_the_planted_ones_are_found_where_they_are():
    found = massive_activations(synthetic_record(2, 6, 2, 30))
    assert list(found.columns) == COLUMNS and (found["dimension"] == 7).all()
    for s, texts in enumerate(synthetic_texts(2, 30)):
        rows = found[found["sequence"] == s]
        assert set(rows["position"]) == {0, delimiter_position(texts)} and set(rows["token_text"]) == {
            "<s>",
            ",",
        }
        assert rows["layer"].min() == 2 and rows["layer"].max() == 4
    assert found.attrs["magnitude"] == 100 and found.attrs["ratio"] == 1000 and found.attrs["model"] == "synthetic"


def test_without_texts_and_dimensions_the_rows_stay():
    record = synthetic_record(1, 6, 1, 20)
    found = massive_activations(record.drop_vars(["token_text", "activation_dimension"]))
    assert len(found) == len(massive_activations(record)) > 0
    assert set(found["token_text"]) == {""} and set(found["dimension"]) == {-1}


def test_a_selected_layer_keeps_its_number_and_none_found_keeps_the_form():
    found = massive_activations(synthetic_record(1, 6, 1, 20).sel(layer=3))
    assert set(found["layer"]) == {3}
    none = massive_activations(synthetic_record(1, 6, 1, 20), magnitude=1e6)
    assert len(none) == 0 and list(none.columns) == COLUMNS


@pytest.mark.parametrize("options", [{"magnitude": 0}, {"ratio": -1}, {"ratio": "many"}, {"magnitude": float("nan")}])
def test_bad_thresholds_are_refused(options):
    with pytest.raises(SinkscopeError, match=next(iter(options))):
        massive_activations(synthetic_record(1, 1, 1, 8), **options)


def test_a_record_without_extremes_names_the_probe():
    with pytest.raises(SinkscopeError, match=r"HiddenExtremes\(\)"):
        massive_activations(synthetic_record(1, 1, 1, 8).drop_vars("activation_median"))
