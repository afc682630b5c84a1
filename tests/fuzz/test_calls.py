"""Every public function, class and method with arguments of any kind: it does what it says, or refuses in a sentence.

A bounded, seeded selection. `make fuzz` tries more and prints the tally.
"""

from __future__ import annotations

import inspect

import pytest

import sinkscope
from tests.fuzz.ordinary import ordinary
from tests.fuzz.subjects import LEFT_OUT, public, subjects
from tests.fuzz.trying import OK, REFUSED, UNCLEAR, examine

EXAMPLES = 4
ALWAYS_REFUSED = {
    "Policy": "of no kind",
    "probes.Probe": "of no kind",
    "SinkCache.crop": "a cache that drops tokens cannot go back",
    "ScoredCache.crop": "a cache that drops tokens cannot go back",
    "Spans.images": "the tiny model reads no images",
    "Gates": "the model has none",
    "audit": "builds models for seconds, and is given a type that there is not",
}
"""What refuses its ordinary arguments too, and why."""
EVERY = subjects()


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_whatever_is_given_it_works_or_is_refused_in_a_sentence(name):
    ordinary_case, *others = examine(EVERY[name], EXAMPLES)
    assert ordinary_case.verdict == (REFUSED if name in ALWAYS_REFUSED else OK), ordinary_case.said
    assert [f"{each.case}: {each.said}" for each in others if each.verdict == UNCLEAR] == []


def test_every_public_callable_is_tried_or_left_out_for_a_reason():
    every = public()
    named = {name: getattr(sinkscope, name) for name in sinkscope.__all__}
    callables = {name for name, thing in named.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    assert callables <= every.keys()
    contracts = {name for name, thing in every.items() if inspect.isclass(thing) and inspect.isabstract(thing)}
    returned = {"Scope", "Explorer", "PaperFigure"}
    assert every.keys() - EVERY.keys() - contracts - returned <= LEFT_OUT.keys()
    assert all(LEFT_OUT.values())


def test_nothing_is_left_out_that_is_not_there():
    members = {member for thing in public().values() for member in dir(thing)}
    assert {name for name in LEFT_OUT if name.rpartition(".")[2] not in members | public().keys()} - {
        "policies.Kept"
    } == set()
    assert ALWAYS_REFUSED.keys() <= EVERY.keys()


@pytest.mark.parametrize("name", EVERY)
def test_a_needed_argument_has_an_ordinary_value(name):
    needed = [each for each in EVERY[name].parameters if each.default is each.empty]
    unknown = [
        each.name
        for each in needed
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and ordinary(EVERY[name], each) is None
    ]
    assert unknown == []
