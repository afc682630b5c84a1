"""Recall by distance: passages read twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import cross_entropy

from sinkscope import Dense, SinkscopeError, Window, figures, recall, recall_table
from tests.support.zoo import build, inputs

LENGTH, DISTANCES = 6, [8, 20]


@pytest.fixture(scope="module")
def model():
    model = build("llama")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return model


@pytest.fixture(scope="module")
def ids():
    return inputs("llama", batch=1, tokens=60)["input_ids"][0]


@pytest.fixture(scope="module")
def record(model, ids):
    return recall(model, ids, [Dense(), Window(5)], distances=DISTANCES, passage=LENGTH, passages=3, progress=False)


def test_the_second_reading_is_scored_in_its_text_under_each_policy(model, ids, record):
    for at, distance in enumerate(DISTANCES):
        for row, start in enumerate(record.start.values):
            piece = ids[start : start + distance]
            text = torch.cat([piece, piece[:LENGTH]])
            for place in range(1, LENGTH):
                token = distance + place
                for policy, begin in enumerate((0, token - 6)):  # in one layer a window is a text of its last tokens
                    with torch.no_grad():
                        logits = model(text[None, begin:token]).logits[0, -1]
                    expected = float(cross_entropy(logits, text[token]))
                    assert float(record.nll[policy, at, row, place]) == pytest.approx(expected, abs=1e-4)
    assert np.isnan(record.nll[..., 0]).all() and np.isnan(record.first_nll[..., 0]).all()


def test_the_first_reading_is_the_beginning_of_the_text(model, ids, record):
    for row, start in enumerate(record.start.values):
        with torch.no_grad():
            logits = model(ids[None, start : start + LENGTH]).logits[0]
        expected = cross_entropy(logits[:-1], ids[start + 1 : start + LENGTH], reduction="none")
        np.testing.assert_allclose(record.first_nll[0, :, row, 1:], expected[None].expand(2, -1), atol=1e-4)


def test_the_table_has_means_over_places_and_passages_and_the_figure_draws_it(record):
    table = recall_table(record).set_index(["policy", "distance"])
    mean = record.nll[..., 1:].mean(("passage", "place"))
    gain = (record.first_nll - record.nll)[..., 1:].mean(("passage", "place"))
    for policy in record.policy.values:
        for distance in DISTANCES:
            row = table.loc[(policy, distance)]
            assert row["again"] == pytest.approx(float(mean.sel(policy=policy, distance=distance)), rel=1e-6)
            assert row["gain"] == pytest.approx(float(gain.sel(policy=policy, distance=distance)), abs=1e-6)
            assert row["low"] <= row["again"] <= row["high"]
    lines = {line.get_gid(): line for line in figures.recall(record).axes[0].lines}
    np.testing.assert_allclose(lines["again-window 5"].get_ydata(), table.loc["window 5", "again"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distances": [4]}, "a passage of 6 tokens cannot come again after 4"),
        ({"distances": [59]}, "need one text of at least 62 tokens, and 1 of 60 were given"),
        ({"passage": 1}, "passage=1 is not a whole number of 2 or more"),
    ],
)
def test_what_cannot_be_read_twice_is_refused(model, ids, changes, words):
    given = {"distances": DISTANCES, "passage": LENGTH, "passages": 3} | changes
    with pytest.raises(SinkscopeError, match=words):
        recall(model, ids, [Dense()], **given)


def test_another_record_is_refused():
    with pytest.raises(SinkscopeError, match="no passages read twice"):
        recall_table(xr.Dataset())
