"""What the trials would find: each kind of unclear outcome, made on purpose."""

from __future__ import annotations

import inspect
import time
from pathlib import Path

import numpy as np
import pytest

from sinkscope.errors import SinkscopeError
from tests.fuzz import commands, trying, world
from tests.fuzz.subjects import Subject
from tests.fuzz.trying import OK, REFUSED, UNCLEAR, attempt, judged


def tried(function):
    return attempt(Subject("own", function, tuple(inspect.signature(function).parameters.values())), {})


def refuses(message):
    def function():
        raise SinkscopeError(message)

    return function


def forgets_a_hook():
    world.model().register_forward_hook(lambda *_: None)


def leaves_half_a_file():
    Path(".out.123.partial").write_text("half")


def spoils_a_file():
    Path("kept").write_text("other")
    raise SinkscopeError("this file cannot be written: give another.")


def looks_up():
    return {}["there is no such key"]


def test_a_success_and_a_sentence_are_told_apart():
    assert tried(lambda: 1).verdict == OK
    assert tried(refuses("first=0 is not a whole number of 1 or more: give one.")).verdict == REFUSED


@pytest.mark.parametrize("message", ["no", "x" * 20, ""])
def test_a_refusal_that_is_no_sentence_is_unclear(message):
    assert tried(refuses(message)).verdict == UNCLEAR


def test_an_exception_from_below_and_what_a_call_leaves_behind_are_unclear():
    assert "KeyError" in tried(looks_up).said
    assert "behind" in tried(leaves_half_a_file).said
    before = dict(world.model()._forward_hooks)
    found = tried(forgets_a_hook)
    for number in set(world.model()._forward_hooks) - set(before):
        del world.model()._forward_hooks[number]
    assert found.verdict == UNCLEAR and "not as it was" in found.said
    assert judged("a file was refused, and is other.", {"kept": "b"}, {"kept": "a"})[0] == UNCLEAR


@pytest.mark.slow
def test_too_much_memory_and_too_much_time_are_unclear(monkeypatch):
    assert "MemoryError" in tried(lambda: np.ones(2**40)).said
    monkeypatch.setattr(trying, "SECONDS", 1)
    assert "seconds" in tried(lambda: time.sleep(20)).said


def test_of_a_command_one_line_with_exit_code_two_is_a_refusal():
    assert commands.judged(2, "", "sinkscope: nothing is there.\n")[0] == REFUSED
    assert commands.judged(0, "a table", "")[0] == OK
    for code, err in ((1, "sinkscope: no.\n"), (2, "Traceback (most recent call last):\n"), (2, "a\nb\n"), (2, "")):
        assert commands.judged(code, "", err)[0] == UNCLEAR
