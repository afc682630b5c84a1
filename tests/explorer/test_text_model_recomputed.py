"""A re-computed window: losses of a sample of tokens, and the maps of one window at a time, each a text of its own."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch

from sinkscope import Recompute, Softmax1, perplexity
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.text_model import SAMPLED
from tests.explorer.references import FAMILIES, everything, first, reader, text
from tests.support.eager import eager_maps
from tests.support.zoo import build

WINDOW = 12
CONFIGURATION = Configuration(policy="recompute", window=WINDOW)


def whole_map(reading, unit):
    everything = slice(0, reading.maps.cells)
    return reading.maps.probabilities(unit, everything, everything)


@pytest.mark.parametrize("name", [*FAMILIES, "gpt2", "mpt"])
def test_losses_equal_those_of_perplexity_at_the_first_window_and_a_sample_behind_it(name):
    losses = everything(reader(name), CONFIGURATION)["reading"][-1].losses
    curve = perplexity(build(name), text()[None], [Recompute(WINDOW)], samples=None).nll.values[0, 0]
    scored = np.isfinite(losses)
    np.testing.assert_allclose(losses[scored], curve[scored], atol=3e-4)
    assert scored[1 : WINDOW + 1].all() and not scored[0] and scored[-1]
    assert SAMPLED // 2 < scored[WINDOW + 1 :].sum() <= SAMPLED


@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
@pytest.mark.parametrize("tokens", [2, 5, 12, 13, 14, 20])
def test_texts_shorter_than_the_window_or_little_longer_are_scored_at_every_token(tokens):
    losses = everything(reader(tokens=tokens), CONFIGURATION)["reading"][-1].losses
    curve = perplexity(build("llama"), text(tokens)[None], [Recompute(WINDOW)], samples=None)
    np.testing.assert_allclose(losses, curve.nll.values[0, 0], atol=1e-4)


def test_losses_under_a_normaliser_equal_those_of_perplexity():
    configuration = Configuration(policy="recompute", window=WINDOW, normaliser="softmax1")
    losses = everything(reader(), configuration)["reading"][-1].losses
    curve = perplexity(build("llama"), text()[None], [Recompute(WINDOW)], samples=None, normaliser=Softmax1())
    scored = np.isfinite(losses)
    np.testing.assert_allclose(losses[scored], curve.nll.values[0, 0][scored], atol=1e-4)


@pytest.mark.parametrize("query", [0, 5, 11, 12, 40, 59])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_its_maps_are_the_dense_maps_of_the_window_alone(name, query):
    reading, begin = first(reader(name), CONFIGURATION, query), max(0, query - WINDOW + 1)
    expected = eager_maps(name, {"input_ids": text()[None, begin : query + 1]})[0]
    expected = expected.reshape(-1, *expected.shape[-2:])
    assert (reading.maps.first, reading.maps.length) == (begin, query + 1 - begin)
    for unit in range(len(expected)):
        np.testing.assert_allclose(np.nan_to_num(whole_map(reading, unit)), expected[unit], atol=1e-5)
    assert f"tokens {begin} to {query};" in reading.note


@pytest.mark.parametrize("query", [0, 30, 59])
def test_the_guesses_of_the_chosen_query_are_those_of_its_window_and_no_others_are_known(query):
    guesses = first(reader(), CONFIGURATION, query).guesses
    with torch.no_grad():
        window = text()[None, max(0, query - WINDOW + 1) : query + 1]
        shares = build("llama")(window).logits[0, -1].softmax(-1).numpy()
    np.testing.assert_allclose(guesses.probabilities[query], -np.sort(-shares)[:16], atol=1e-6)
    np.testing.assert_allclose(shares[guesses.ids[query]], guesses.probabilities[query], atol=1e-6)
    others = np.arange(60) != query
    assert (guesses.ids[others] == -1).all() and np.isnan(guesses.probabilities[others]).all()


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gpt2"])
def test_it_continuation_from_windows_run_afresh(name):
    model, ids = build(name), text()[None]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids[:, -WINDOW:]).logits[:, -1:].argmax(-1)], 1)
    assert ast.literal_eval(everything(reader(name), CONFIGURATION)["continuation"][-1].text) == ids[0, 60:].tolist()


def test_losses_come_bit_by_bit_and_what_was_given_stays_as_it_was():
    readings = []
    for result in reader(tokens=200).read(Configuration(policy="recompute", window=64), 199, lambda: False):
        if type(result).__name__ == "Reading":
            readings.append((result, result.losses.copy()))
    counts = [int(np.isfinite(each.losses).sum()) for each, _ in readings]
    assert counts[0] == 0 and counts == sorted(set(counts)) and len(counts) > 2
    for each, then in readings:
        np.testing.assert_array_equal(each.losses, then)


@pytest.mark.slow
def test_the_losses_are_not_measured_again_for_another_query():
    model = reader()
    before = everything(model, CONFIGURATION)["reading"][-1].losses
    again = everything(model, CONFIGURATION, 30)
    assert len(again["reading"]) == 1
    np.testing.assert_array_equal(again["reading"][0].losses, before)
    other = everything(model, Configuration(policy="recompute", window=WINDOW + 1))["reading"]
    assert np.isnan(other[0].losses).all() and len(other) > 1


def test_a_window_of_one_token_is_read():
    results = everything(reader(), Configuration(policy="recompute", window=1), 7)
    assert whole_map(results["reading"][0], 0).tolist() == [[1.0]]
    assert results["overview"][0].units.shape == (8, 1, 1) and "value" not in results["overview"][0].scores
