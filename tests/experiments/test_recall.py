"""Recall by distance: passages read twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import cross_entropy

from sinkscope import (
    TOVA,
    Dense,
    HeavyHitters,
    PerHead,
    Recompute,
    SinkscopeError,
    SinkWindow,
    Window,
    figures,
    perplexity,
    recall,
    recall_table,
)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_first_reading_is_the_beginning_of_the_text(model, ids, record):
    for row, start in enumerate(record.start.values):
        with torch.no_grad():
            logits = model(ids[None, start : start + LENGTH]).logits[0]
        expected = cross_entropy(logits[:-1], ids[start + 1 : start + LENGTH], reduction="none")
        np.testing.assert_allclose(record.first_nll[0, :, row, 1:], expected[None].expand(2, -1), atol=1e-4)


def test_the_control_is_the_same_passage_behind_another_one(model, ids, record):
    for at, distance in enumerate(DISTANCES):
        for row, start in enumerate(record.start.values):
            piece, far = ids[start : start + distance], (start + 55 // 2) % 55  # 55 places for a passage in 60 tokens
            text = torch.cat([ids[far : far + LENGTH], piece[LENGTH:], piece[:LENGTH]])
            assert not set(range(far, far + LENGTH)) & set(range(start, start + LENGTH))
            with torch.no_grad():
                logits = model(text[None]).logits[0, distance : distance + LENGTH - 1]
            expected = cross_entropy(logits, text[distance + 1 :], reduction="none")
            np.testing.assert_allclose(record.control_nll[0, at, row, 1:], expected, atol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        SinkWindow(2, 5),
        HeavyHitters(4, 4),
        TOVA(7),
        PerHead({(0, 1): Dense()}, default=SinkWindow(1, 4)),
        Recompute(7),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_every_policy_is_that_of_perplexity_on_the_same_text(model, ids, policy):
    found = recall(model, ids, [policy], distances=DISTANCES, passage=LENGTH, passages=2, progress=False)
    for at, distance in enumerate(DISTANCES):
        for row, start in enumerate(found.start.values):
            piece = ids[start : start + distance]
            text = torch.cat([piece, piece[:LENGTH]])
            losses = perplexity(model, text[None], [policy], samples=None, progress=False).nll.values[0, 0]
            np.testing.assert_allclose(found.nll[0, at, row, 1:], losses[distance + 1 :], atol=1e-5)
            np.testing.assert_allclose(found.first_nll[0, at, row, 1:], losses[1:LENGTH], atol=1e-5)


def test_recomputation_reads_only_the_windows_of_passages(model, ids):
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(args[0] if args else given["input_ids"])), with_kwargs=True
    )
    recall(model, ids, [Recompute(7)], distances=50, passage=4, passages=1, control=False, progress=False)
    hook.remove()
    assert sum(rows) == 1 + 4  # the text as far as its first passage, and a window for each token of the second


@pytest.mark.slow
def test_a_model_that_copies_recalls_and_one_that_does_not_gains_nothing():
    shape, dims = (1, 1, 4, 5), ("policy", "distance", "passage", "place")
    noise = np.random.default_rng(0).normal(0, 0.1, (2, *shape))
    record = xr.Dataset(
        {"nll": (dims, 1 + noise[0]), "first_nll": (dims, np.full(shape, 4.0)), "control_nll": (dims, 3 + noise[1])},
        {"policy": ["dense"], "distance": [8]},
    )
    (row,) = recall_table(record).to_dict("records")
    assert row["gain"] == pytest.approx(row["recalled"] + row["context"])
    assert row["recalled_low"] < 2 < row["recalled_high"] and row["context_low"] < 1 < row["context_high"]
    _, right = figures.recall(record).axes
    assert right.lines[0].get_ydata() == pytest.approx(row["recalled"])


def test_passages_that_share_tokens_are_one_to_an_interval(model, ids):
    record = recall(model, ids[:30], [Dense()], distances=20, passage=LENGTH, passages=8, progress=False)
    assert np.diff(record.start).max() < LENGTH and np.unique(record.same_text).size == 1
    assert recall_table(record)[["low", "gain_low", "recalled_low"]].isna().all(axis=None)


@pytest.mark.slow
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
        ({"passage": 21, "distances": [21]}, "no other passage of 21 to put in the first place; give 63 tokens"),
        ({"policies": [Dense(), Dense()]}, "two of the policies are named 'dense'"),
        ({"policies": []}, "no policy was given"),
        ({"passage": 1}, "passage=1 is not a whole number of 2 or more"),
    ],
)
def test_what_cannot_be_read_twice_is_refused(model, ids, changes, words):
    given = {"distances": DISTANCES, "passage": LENGTH, "passages": 3, "policies": [Dense()]} | changes
    with pytest.raises(SinkscopeError, match=words):
        recall(model, ids, **given)


def test_another_record_is_refused():
    with pytest.raises(SinkscopeError, match="no passages read twice"):
        recall_table(xr.Dataset())
