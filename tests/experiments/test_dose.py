"""Dose and response against float64 twins with the bias added by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sinkscope import EvictKeys, SinkscopeError, dose_response, dose_table, run_interventions
from sinkscope.experiments.intervention import Conditions
from tests.experiments import brute
from tests.experiments.brute import START
from tests.support.zoo import build

DOSES = [-math.inf, -2.0, 0.0, 1.5]


def respond(name: str = "llama", doses=DOSES, **options):
    return dose_response(build(name), brute.texts(), doses, start=START, progress=False, **options)


def as_arm(record, arm: str):
    """One arm as a record of interventions, a policy for each dose."""
    return record.sel(arm=arm).rename(dose="policy").assign_coords(policy=[str(dose) for dose in record.dose.values])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {"count": 2}), ("llama", {"layers": [1], "heads": [0, 2]}), ("gpt2", {}), ("gpt_oss", {"count": 2})],
)
def test_every_dose_is_that_bias_on_the_scores_of_the_same_keys(name, options):
    count, where = options.get("count", 1), {key: value for key, value in options.items() if key != "count"}
    record = respond(name, **options)
    for number, text in enumerate(brute.texts()):
        others = Conditions(START, 4, 0).others(number, count)
        keys = {"sinks": range(count), "next": range(4, 4 + count), "random": others}
        assert record.arm.values.tolist() == list(keys)
        for arm in keys:
            for dose in DOSES:
                added = brute.on_keys(len(text), keys[arm], dose)
                brute.check(as_arm(record, arm), str(dose), number, brute.biased(name, text, added, **where), count)


@pytest.mark.slow
def test_no_dose_is_the_dense_model_and_the_lowest_is_eviction():
    record, model = respond(), build("llama")
    chosen = [EvictKeys("sinks", 1), EvictKeys("next", 1)]
    evicted = run_interventions(model, brute.texts(), chosen, start=START, draws=2, progress=False)
    for arm in ("sinks", "next"):
        arms = record.sel(arm=arm)
        # a bias of 0 is added in another order of operations than none
        np.testing.assert_allclose(arms.nll.sel(dose=0.0), evicted.nll.sel(policy="nothing"), atol=1e-4)
        for variable in ("nll", "sink_mass", "output_norm"):
            found, expected = arms[variable].sel(dose=-math.inf), evicted[variable].sel(policy=f"evict 1 {arm}")
            np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_more_dose_is_more_mass_on_these_keys_in_the_first_layer():
    mass = respond(doses=[-8.0, -2.0, 0.0, 2.0, 9.0], layers=[0]).sink_mass.sel(arm="sinks").isel(layer=0)
    assert (mass.diff("dose") > 0).all() and (mass.isel(dose=-1) > 0.9).all()


@pytest.mark.slow
def test_doses_are_sorted_and_the_record_says_what_was_done():
    record = respond(doses=(1.0, -1.0, 0.5), count=2, heads=[1], arms=["next", "sinks"], text="a text")
    assert record.dose.values.tolist() == [-1.0, 0.5, 1.0] and record.arm.values.tolist() == ["sinks", "next"]
    assert {name: record.attrs[name] for name in ("kind", "count", "layers", "heads", "text", "start")} == {
        "kind": "dose response", "count": 2, "layers": "all", "heads": [1], "text": "a text", "start": START,
    }  # fmt: skip
    assert dose_table(record).attrs["reference_dose"] == 0.5


@pytest.mark.slow
def test_doses_next_to_each_other_are_told_apart():
    assert respond(doses=[1.0, 1.0 + 1e-9]).sizes["dose"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"doses": []}, "give different numbers"),
        ({"doses": [1.0, 1.0]}, "give different numbers"),
        ({"doses": [math.inf]}, "give different numbers"),
        ({"doses": [math.nan]}, "give different numbers"),
        ({"doses": "much"}, "doses='much'"),
        ({"doses": None}, "doses=None"),
        ({"count": 0}, "count=0"),
        ({"arms": []}, "give some of sinks, next, random, each once"),
        ({"arms": ["sinks", "sinks"]}, "each once"),
        ({"arms": "last"}, "arms='last'"),
        ({"arms": None}, "arms=None"),
        ({"count": 20}, "20 of the 40 tokens"),
        ({"layers": [2]}, "layer 2 .* layers 0 to 1"),
        ({"heads": [4]}, "head 4 .* heads 0 to 3"),
        ({"name": "bloom"}, "no key can be taken"),
    ],
)
def test_what_is_no_dose_is_refused(options, message):
    with pytest.raises(SinkscopeError, match=message):
        respond(**options)
