"""Two readings side by side, against the definition of perplexity and of a softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import Dense, perplexity
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.results import Change, Results, compared, guesses_at, loss_of
from tests.explorer.references import CONFIGURATIONS, TOKENS, defined, everything, first, reader, text, without_since
from tests.support.zoo import build

SAME = ("dense", "softmax", "clipped")  # as the model is, or at the first query, whose one key keeps its weight


@pytest.mark.slow
def test_every_result_says_its_kind_and_is_kept_under_it():
    results, given = Results(), everything(reader(), CONFIGURATIONS["window"][0])
    for kind, (*_, result) in given.items():
        results.take(result)
        assert getattr(results, kind.value) is result
    assert [Change(name) for name in vars(results)] == [*given]


@pytest.mark.parametrize("case", [case for case in CONFIGURATIONS if case not in SAME])
def test_the_first_query_that_notices_is_the_first_whose_logits_differ(case):
    configuration, definition = CONFIGURATIONS[case]
    dense, changed = (defined("llama", each)[0] for each in ({}, definition))
    assert configuration.first_affected(TOKENS) == int(((dense - changed).abs().amax(-1) > 1e-9).nonzero()[0])


@pytest.mark.parametrize(("evicted", "since", "query"), [((7, 45), 30, 30), ((45, 50), 30, 46), ((30,), 30, 31)])
def test_a_token_evicted_before_it_is_read_is_missed_behind_its_own_query(evicted, since, query):
    assert Configuration(policy="chosen", evicted=evicted, since=since).first_affected(TOKENS) == query
    dense, changed = (defined("llama", each)[0] for each in ({}, {"kept": without_since(evicted, since)}))
    assert query == int(((dense - changed).abs().amax(-1) > 1e-9).nonzero()[0])


def test_the_first_query_that_notices_a_shorter_window_run_afresh_has_lost_the_first_token():
    for window in (1, 7):
        query = Configuration(policy="recompute", window=window).first_affected(TOKENS)
        assert max(0, query - window + 1) == 1 and max(0, query - window) == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["window", "sinks", "chosen", "sigmoid", "stronger sinks"])
def test_perplexities_are_over_the_tokens_that_the_configuration_acts_on(case):
    configuration, model = CONFIGURATIONS[case][0], reader()
    loss = loss_of(first(model, Configuration()), first(model, configuration))
    dense = perplexity(build("llama"), text()[None], [Dense()]).nll.values[0, 0]
    changed = perplexity(
        build("llama"), text()[None], [configuration.policy_slot], normaliser=configuration.normaliser_slot
    ).nll.values[0, 0]
    assert loss.tokens == 60 - loss.first
    np.testing.assert_allclose(loss.dense, np.exp(dense[loss.first :].mean()), rtol=1e-5)
    np.testing.assert_allclose(loss.changed, np.exp(changed[loss.first :].mean()), rtol=1e-5)
    np.testing.assert_allclose(dense[1 : loss.first], changed[1 : loss.first], atol=1e-5)


def test_re_computation_is_compared_at_the_tokens_it_scored_behind_its_first_window():
    model = reader(tokens=100)
    changed = everything(model, Configuration(policy="recompute", window=12))["reading"][-1]
    dense = first(model, Configuration())
    scored = np.flatnonzero(np.isfinite(changed.losses))
    assert compared(dense, changed).tolist() == [token for token in scored if token > 12]
    loss = loss_of(dense, changed)
    np.testing.assert_allclose(loss.changed, np.exp(changed.losses[scored[scored > 12]].mean(dtype=float)), rtol=1e-6)


def test_where_nothing_was_evicted_there_is_nothing_to_compare():
    model = reader()
    assert loss_of(first(model, Configuration()), first(model, Configuration(policy="window", window=60))) is None


@pytest.mark.slow
@pytest.mark.parametrize("query", [0, 30, 59])
def test_guesses_are_the_likeliest_under_either_with_both_probabilities(query):
    configuration, definition = CONFIGURATIONS["sinks"]
    model = reader()
    guesses = guesses_at(query, first(model, Configuration()), first(model, configuration), 6)
    shares = [defined("llama", each)[0][query].softmax(-1) for each in ({}, definition)]
    best = torch.stack(shares).amax(0)
    candidates = set(shares[0].topk(6).indices.tolist()) | set(shares[1].topk(6).indices.tolist())
    expected = sorted(candidates, key=lambda token: -best[token])[:6]
    assert [token for token, _, _ in guesses] == expected
    for token, *given in guesses:
        for probability, share in zip(given, shares, strict=True):
            if probability is None:  # not among the sixteen kept
                assert share[token] <= share.topk(16).values[-1]
            else:
                assert probability == pytest.approx(float(share[token]), abs=1e-5)


def test_a_query_that_was_not_read_has_no_guesses():
    model = reader()
    changed = first(model, Configuration(policy="recompute", window=12), 40)
    assert guesses_at(41, first(model, Configuration()), changed, 6) == []
    assert len(guesses_at(40, first(model, Configuration()), changed, 6)) == 6
