"""What a user should know of a policy on a text, as notes and as warnings."""

from __future__ import annotations

import warnings

import pytest

from sinkscope import Dense, Recompute, SinkscopeError, SinkWindow, Window
from sinkscope.scope.binding import check_limits, limit_notes
from tests.support.zoo import build


@pytest.mark.parametrize(
    ("policy", "tokens", "said"),
    [
        (Window(40), 41, []),
        (Window(40), 40, ["40 tokens fit into the cache of `window 40`"]),
        (SinkWindow(4, 36), 39, ["39 tokens fit into the cache of `sinks 4+36`"]),
        (Recompute(40), 40, ["nothing is evicted"]),
        (Window(550), 600, ["a cache of 550 tokens is longer than the 512 positions"]),
        (Window(550), 520, ["longer than the 512 positions", "520 tokens fit into"]),
        (Dense(), 600, []),
    ],
)
def test_notes_are_returned_without_a_warning_and_warned_of_word_by_word(policy, tokens, said):
    model = build("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = limit_notes(model, policy, tokens)
    assert len(notes) == len(said) and all(part in note for part, note in zip(said, notes, strict=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert check_limits(model, policy, tokens) is None
    assert [str(each.message) for each in caught] == notes


@pytest.mark.parametrize(
    ("name", "policy", "tokens"),
    [
        ("gpt2", Window(8), 20), ("gpt2", Dense(), 520), ("mpt", SinkWindow(4, 8, "original"), 20),
        ("mpt", SinkWindow(4, 8, bias=1.0), 20),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_by_both_in_the_same_words(name, policy, tokens):
    said = []
    for ask in (limit_notes, check_limits):
        with pytest.raises(SinkscopeError) as caught:
            ask(build(name), policy, tokens)
        said.append(str(caught.value))
    assert said[0] == said[1]
