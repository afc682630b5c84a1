"""What a report runs: each pass once, with the losses that its experiments give alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope.policies import Dense, Recompute, SinkWindow, Window
from sinkscope.reporting import gather, softmax, streaming
from sinkscope.reporting.passes import Passes
from tests.reporting.test_gather import CAUSAL
from tests.support.zoo import build, inputs

POLICIES = [Dense(), Window(32), Recompute(32), SinkWindow(4, 28)]


def text_of(count: int) -> torch.Tensor:
    return inputs("llama", 1, count)["input_ids"][0]


@pytest.fixture
def model():
    return build("llama")


@pytest.fixture
def passes(model) -> Passes:
    tokens = text_of(300)
    return Passes(model, None, tokens, tokens[None], progress=False)


@pytest.fixture
def read(monkeypatch) -> list:
    """The policies and texts that are read from now on."""
    from sinkscope.experiments import perplexity

    real, seen = perplexity.read_texts, []

    def reading(model, texts, policy, *given):
        seen.append((policy, len(texts[0])))
        return real(model, texts, policy, *given)

    monkeypatch.setattr(perplexity, "read_texts", reading)
    return seen


@pytest.mark.slow
def test_no_policy_reads_a_text_twice_in_three_experiments(passes, read):
    for section in (streaming.STREAMING, softmax.SOFTMAX):
        records, _ = gather._measured(section, passes, CAUSAL)
        assert {"perplexity", "collapse"} & set(records)
    policies = [policy for policy, _ in read]
    cache = 64
    assert policies[:4] == [Dense(), Window(cache), Recompute(cache), SinkWindow(4, cache - 4)]
    assert policies[4:7] == [SinkWindow(sinks, cache - sinks) for sinks in (1, 2, 8)]
    assert [policy.values for policy in policies[7:]] == ["mean", "zeroed", "added"]


def test_the_model_runs_as_often_as_there_are_passes(passes, model):
    runs = []
    model.register_forward_hook(lambda *_: runs.append(0))
    passes.perplexity(passes.one_text[None], [Dense(), Window(32), SinkWindow(4, 28)])
    assert len(runs) == 3  # one block each
    passes.perplexity(passes.one_text[None, :200], [Window(32), SinkWindow(0, 32), SinkWindow(4, 28)])
    assert len(runs) == 3
    passes.perplexity(passes.one_text[None, :200], [SinkWindow(2, 30)])
    assert len(runs) == 4


@pytest.mark.slow
def test_the_losses_are_those_of_perplexity_alone(passes, model):
    passes.perplexity(passes.one_text[None], POLICIES, samples=20)
    whole, part = passes.one_text[None], passes.one_text[None, :200]
    for text, samples in ((whole, 20), (part, 20), (part, None)):
        found = passes.perplexity(text, POLICIES, samples=samples)
        alone = sinkscope.perplexity(model, text, POLICIES, samples=samples, progress=False)
        np.testing.assert_allclose(found["nll"], alone["nll"], rtol=1e-5, atol=1e-6)  # to rounding
        assert found.attrs.keys() == alone.attrs.keys() and found.attrs["samples"] == alone.attrs["samples"]
        for name in alone.coords:
            if name != "seconds":
                assert (found[name] == alone[name]).all()


@pytest.mark.slow
def test_another_text_other_samples_and_another_way_are_read_anew(passes, read):
    text = passes.one_text[None]
    for ids, policy, samples in (
        (text, Recompute(32), 20),
        (text, Recompute(32), 30),
        (text[:, :200], Recompute(32), 30),
        (text, Window(32), 20),
        (text.flip(1), Window(32), 20),
        (text, Window(33), 20),
        (text, Window(32, layers=[0]), 20),
        (text, SinkWindow(0, 32, layers=[0]), 20),
        (text, SinkWindow(4, 28, values="zeroed"), 20),
        (text, SinkWindow(4, 28), 20),
    ):
        passes.perplexity(ids, [policy], samples=samples)
    passes.perplexity(text, [Window(32)], samples=20, normaliser=sinkscope.Softmax1())
    assert len(read) == 11


def test_a_record_measured_before_with_more_probes_is_not_measured_again(passes, model):
    runs = []
    model.model.register_forward_hook(lambda *_: runs.append(0))
    first = passes.measure("a", passes.rows, [sinkscope.SinkMass(), sinkscope.Norms()], token_texts=False)
    again = passes.measure("b", passes.rows, [sinkscope.Norms()], token_texts=False)
    assert again is first and len(runs) == 1
    passes.measure("c", passes.rows, [sinkscope.Entropy()], token_texts=False)
    passes.measure("d", passes.rows[:, :50], [sinkscope.Norms()], token_texts=False)
    assert len(runs) == 3


def test_forced_mass_and_predictability_share_one_pass_and_give_what_they_give_alone(passes, model):
    runs = []
    model.register_forward_hook(lambda *_: runs.append(0))
    steps = softmax.run(passes)
    forced, predicted = steps["forced"](), steps["predictability"]()
    texts = passes.segments(128, 2)
    assert len(runs) == len(texts)
    alone = sinkscope.measure(model, texts, [sinkscope.EvictionEffect()], progress=False)
    assert set(forced.data_vars) >= set(alone.data_vars) and set(forced.coords) >= set(alone.coords)
    assert "kind" not in forced.attrs and predicted.attrs["kind"] == "predictability"
    other = sinkscope.predictability(model, texts, progress=False)
    assert set(predicted.data_vars) == set(other.data_vars) and set(other.coords) <= set(predicted.coords)
    for found, expected in ((forced, alone), (predicted, other)):
        for name in expected.data_vars:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)  # in batches or one by one


@pytest.mark.slow
def test_doses_of_nothing_are_run_once(passes, model):
    runs = []
    model.register_forward_hook(lambda _, given, out: runs.append(len(out.logits)))  # texts of one forward pass
    record = softmax.run(passes)["dose"]()
    texts, doses = record.sizes["sequence"], record.sizes["dose"]
    assert sum(runs) == texts * (2 * (doses - 1) + 1)
    assert (record.sel(dose=0.0, arm="sinks").nll == record.sel(dose=0.0, arm="next").nll).any()
