"""What the controls say as policies and normalisers, and what of it no text can be read under."""

from __future__ import annotations

import math

import pytest

from sinkscope import (
    TOVA,
    ClippedSoftmax,
    Dense,
    Dose,
    Evict,
    HeavyHitters,
    LearnedSink,
    Recompute,
    ReLU,
    Sigmoid,
    SinkscopeError,
    SinkWindow,
    Softmax,
    Softmax1,
    Sparsemax,
    Window,
)
from sinkscope.explorer.configuration import GONE, NORMALISERS, OWN, POLICIES, Configuration


@pytest.mark.parametrize(
    ("configuration", "policy", "name"),
    [
        (Configuration(), Dense(), "dense"),
        (Configuration(policy="window", window=20), Window(20), "window 20"),
        (Configuration(policy="recompute", window=20), Recompute(20), "recompute 20"),
        (Configuration(policy="sinks", sinks=2, window=20), SinkWindow(2, 20), "sinks 2+20"),
        (Configuration(policy="sinks", sinks=0, window=20, dose=2.0), SinkWindow(0, 20), "sinks 0+20"),
        (
            Configuration(policy="sinks", window=20, positions="original", dose=-2.0),
            SinkWindow(4, 20, "original", bias=-2.0),
            "sinks 4+20, original positions, dose -2",
        ),
        (Configuration(policy="h2o", window=20), HeavyHitters(20, 10), "H2O 10+10"),
        (Configuration(policy="tova", window=20), TOVA(20), "TOVA 20"),
        (Configuration(dose=-2.0), Dose(-2.0, range(4)), "dose -2 on keys 0-3"),
        (Configuration(dose=GONE, sinks=1), Dose(-math.inf, range(1)), "dose -inf on key 0"),
        (Configuration(dose=-2.0, sinks=0), Dense(), "dense"),
        (Configuration(policy="chosen"), Dense(), "dense"),
        (
            Configuration(policy="chosen", evicted=(3, 9), since=30),
            Evict((3, 9), start=30, once_read=True),
            "evict keys 3 9 from query 30",
        ),
        (
            Configuration(policy="window", window=20, layers=(1, 3)),
            Window(20, layers=(1, 2, 3)),
            "window 20, layers 1-3",
        ),
        (Configuration(policy="recompute", window=20, layers=(1, 3)), Recompute(20), "recompute 20"),
    ],
)
def test_every_kind_is_a_policy_with_its_name(configuration, policy, name):
    assert repr(configuration.policy_slot) == repr(policy) and configuration.name == name


@pytest.mark.parametrize(
    ("name", "normaliser"),
    [
        *zip(
            NORMALISERS,
            [None, Softmax(), Softmax1(), LearnedSink(0.0), ClippedSoftmax(), Sparsemax(), Sigmoid(), ReLU()],
            strict=True,
        )
    ],
)
def test_every_normaliser_is_named_and_acts_in_the_layers_of_the_configuration(name, normaliser):
    configuration = Configuration(normaliser=name, layers=(0, 1))
    if normaliser is None:
        assert (
            name == OWN
            and configuration.normaliser_slot is None
            and configuration.name == "dense"
            and configuration.is_baseline
        )
    else:
        assert type(configuration.normaliser_slot) is type(normaliser) and configuration.normaliser_slot.layers == (
            0,
            1,
        )
        assert configuration.name == f"dense; {name}, layers 0-1" and not configuration.is_baseline
        assert Configuration(normaliser=name).normaliser_slot == normaliser


def test_the_model_as_it_is_can_be_asked_for_in_several_ways():
    as_it_is = [
        Configuration(),
        Configuration(sinks=7),
        Configuration(window=3),
        Configuration(policy="chosen"),
        Configuration(dose=1.0, sinks=0),
    ]
    changed = [Configuration(dose=1.0), Configuration(policy="window"), Configuration(normaliser="softmax")]
    assert all(each.is_baseline for each in as_it_is) and not any(each.is_baseline for each in changed)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_fields_that_matter_are_those_that_change_the_policy(policy):
    """A control at rest would lie, and so would one that is not and does nothing."""
    start = dict(policy=policy, evicted=(3,), dose=-2.0 if policy in ("dense", "sinks") else 0.0)
    other = dict(
        sinks=2, window=9, evicted=(5,), since=30, dose=1.0, positions="original", normaliser="ReLU", layers=(0, 1)
    )
    before = Configuration(**start)
    matters = {
        name
        for name, value in other.items()
        if (after := Configuration(**start | {name: value})).policy_slot != before.policy_slot
        or after.normaliser_slot != before.normaliser_slot
    }
    assert matters | {"policy"} == before.uses


@pytest.mark.parametrize(("length", "window", "since", "sinks"), [(2, 2, 1, 2), (20, 20, 13, 4), (512, 128, 64, 4)])
def test_the_configuration_of_a_text_fits_into_it(length, window, since, sinks):
    configuration = Configuration.of_text(length)
    assert (configuration.window, configuration.since, configuration.sinks) == (
        window,
        since,
        sinks,
    ) and configuration.is_baseline
    for policy in ("window", "recompute", "sinks"):
        Configuration(**vars(configuration) | {"policy": policy}).check(length)
    if length > 2:
        Configuration(**vars(configuration) | {"policy": "chosen", "evicted": (0,)}).check(length)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (Configuration(policy="sinks", sinks=9, window=8), "a window of 8 is smaller than the 9 sinks"),
        (Configuration(policy="sinks", sinks=-1), r"SinkWindow\(sinks=-1\) cannot be kept"),
        (Configuration(policy="window", window=0), "cannot be kept"),
        (Configuration(policy="recompute", window=0), "cannot be kept"),
        (Configuration(dose=math.inf), "is no dose"),
        (Configuration(dose=math.nan), "is no dose"),
        (
            Configuration(policy="chosen", evicted=(3, 20), since=10),
            "token 20 cannot be evicted: the text has tokens 0 to 19",
        ),
        (Configuration(policy="chosen", evicted=(3,), since=20), "from query 20 on, but the last query is 19"),
        (Configuration(policy="chosen", evicted=tuple(range(20)), since=10), "all 20 tokens are evicted"),
        (Configuration(policy="chosen", evicted=(-1,), since=10), "names no keys"),
    ],
)
def test_what_no_text_can_be_read_under_is_one_sentence(configuration, message):
    with pytest.raises(SinkscopeError, match=message) as caught:
        configuration.check(20)
    assert "\n" not in str(caught.value)


def test_every_token_but_one_can_be_evicted():
    Configuration(policy="chosen", evicted=tuple(range(19)), since=10).check(20)


@pytest.mark.parametrize("field", ["policy", "normaliser"])
def test_a_word_that_is_none_of_the_choices_is_refused_with_the_choices(field):
    with pytest.raises(SinkscopeError, match=f"{field}='sink' is unknown; give one of .*(dense|softmax1)"):
        Configuration(**{field: "sink"})
