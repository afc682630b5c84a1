"""What the numbers of a class written outside the package follow from: no run is resumed with another definition."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import SinkscopeError, perplexity
from tests.support.zoo import build, inputs

REACH = 4
TABLE = {"near": torch.tensor([4])}
SETTINGS = types.ModuleType("settings_of_a_notebook")


def by_global():
    return REACH


def of_class(**members):
    return type("Own", (sinkscope.StaticPolicy,), {"sees": lambda self, query, key: query - key < 3} | members)()


def with_attribute(width):
    class Own(sinkscope.StaticPolicy):
        reach = width

        def sees(self, query, key):
            return query - key < self.reach

    return Own()


def with_inherited_attribute(width):
    class Base:
        reach = width

    return type("Own", (Base, sinkscope.StaticPolicy), {"sees": lambda self, query, key: query - key < self.reach})()


def with_keyword_default(width):
    def sees(self, query, key, *, reach=width):
        return query - key < reach

    return of_class(sees=sees)


def with_closure_in_closure(width):
    def inner():
        return width

    def outer():
        return inner()

    return of_class(sees=lambda self, query, key: query - key < outer())


def with_module(width):
    SETTINGS.reach = width
    return of_class(sees=lambda self, query, key: query - key < SETTINGS.reach)


@dataclass(frozen=True)
class Held(sinkscope.StaticPolicy):
    held: object = None

    def sees(self, query, key):
        return query - key < 3


class Thing:
    def __init__(self, reach):
        self.reach = reach


WAYS = {
    "a class attribute": with_attribute,
    "an inherited attribute": with_inherited_attribute,
    "a keyword-only default": with_keyword_default,
    "a closure in a closure": with_closure_in_closure,
    "a module": with_module,
    "a cached property": lambda width: of_class(reach=cached_property(lambda self: width)),
    "a cached method": lambda width: of_class(reach=lru_cache(lambda self: width)),
    "a static method": lambda width: of_class(reach=staticmethod(lambda: width)),
    "a property": lambda width: of_class(reach=property(lambda self: width)),
    "a partial function": lambda width: Held(partial(max, width)),
    "a lambda in a field": lambda width: Held(lambda: width),
    "tensors in nested containers": lambda width: Held({"a": [({3: torch.full((2,), float(width))},)]}),
    "a set": lambda width: Held({"a", "b", width}),
    "a bfloat16 tensor": lambda width: Held(torch.full((2,), float(width), dtype=torch.bfloat16)),
    "an array of objects": lambda width: Held(np.array([width, "a"], dtype=object)),
    "a module of torch": lambda width: Held(torch.nn.Dropout(width / 10)),
    "an object of one's own": lambda width: Held(Thing(width)),
    "a function of numpy": lambda width: Held(np.add if width == 4 else np.maximum),
    "a generator of numpy": lambda width: Held(np.random.default_rng(width)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_definition_tells_what_the_numbers_follow_from(way):
    first, again, other = (WAYS[way](width).definition for width in (4, 4, 9))
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "value"), [("REACH", 9), ("TABLE", {"near": torch.tensor([9])}), ("by_global", lambda: 9)]
)
def test_a_definition_tells_the_module_level_names_that_its_functions_read(monkeypatch, name, value):
    class Own(sinkscope.StaticPolicy):
        def sees(self, query, key):
            return any(query - key < (REACH + by_global() + TABLE["near"]) for _ in range(1))

    before = Own().definition
    assert Own().definition == before
    monkeypatch.setitem(globals(), name, value)
    assert Own().definition != before


@pytest.mark.slow
def test_a_definition_is_the_same_in_another_process():
    code = "from tests.core.test_definitions import WAYS; print(*(make(4).definition for make in WAYS.values()))"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop().split()) == len(WAYS)


def test_built_in_classes_have_no_definition_but_their_repr():
    for slot in (sinkscope.SinkWindow(4, 8), sinkscope.PerHead({(0, 1): sinkscope.Window(4)}), sinkscope.Softmax1()):
        assert slot.definition == ""


@pytest.mark.slow
def test_another_constant_is_another_run(tmp_path):
    model, ids = build("llama"), inputs("llama", tokens=24)["input_ids"]
    perplexity(model, ids, [with_attribute(4)], checkpoint=tmp_path)
    with pytest.raises(SinkscopeError, match="policy_definition does or holds something else"):
        perplexity(model, ids, [with_attribute(9)], checkpoint=tmp_path)
    given = dict(sinks=(0, 2), cache_size=10, progress=False)
    for width in (4, 9):
        kept, alone = (
            sinkscope.ablate(model, ids[:1], policies=[with_attribute(width)], folder=folder, resamples=20, **given)
            for folder in (tmp_path / "cells", None)
        )
        np.testing.assert_array_equal(kept.ppl, alone.ppl)


def test_a_method_of_ones_own_called_load_is_told(tmp_path):
    policy = of_class(load=lambda self: 3, read=lambda self: self.load())
    model, ids = build("llama"), inputs("llama", tokens=24)["input_ids"]
    first = perplexity(model, ids, [policy], checkpoint=tmp_path)
    np.testing.assert_array_equal(first["nll"], perplexity(model, ids, [policy], checkpoint=tmp_path)["nll"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Held(threading.Lock()), r"uses a _thread\.lock, whose values cannot be read"),
        (lambda: of_class(read=lambda self: np.load("table.npy")), "uses `load`, whose result is in no code"),
        (lambda: of_class(read=lambda self: Path("table").read_text()), "uses `read_text`, whose result is in no code"),
        (lambda: of_class(read=lambda self: os.environ["TABLE"]), "uses `environ`, whose result is in no code"),
        (lambda: of_class(read=lambda self: open("table.txt")), r"uses `open\(\)`, whose result is in no code"),  # noqa: SIM115
    ],
)
def test_what_cannot_be_told_runs_and_is_not_resumed(tmp_path, make, message):
    model, ids = build("llama"), inputs("llama", tokens=24)["input_ids"]
    assert np.isfinite(perplexity(model, ids, [make()]).nll[0, :, 1:]).all()
    with pytest.raises(SinkscopeError, match=message):
        perplexity(model, ids, [make()], checkpoint=tmp_path)
    with pytest.raises(SinkscopeError, match=message):
        sinkscope.ablate(model, ids[:1], sinks=0, cache_size=10, policies=[make()], folder=tmp_path, progress=False)


def test_a_class_made_under_the_name_of_a_built_in_one_is_foreign():
    made = type("Dense", (sinkscope.StaticPolicy,), {"sees": lambda self, query, key: query - key < 3})
    space = {"sinkscope": sinkscope, "__name__": "builtins"}
    exec("class Dense(sinkscope.StaticPolicy):\n    def sees(self, query, key): return query - key < 9", space)
    assert (made.__module__, space["Dense"].__module__) == ("abc", "builtins")
    for kind in (made, space["Dense"]):
        assert kind().coordinates["policy_kind"] != "Dense"
        assert kind().definition
    assert made().definition != space["Dense"]().definition


# --- class attributes in the place of fields --------------------------------------------------------------------------


def test_a_class_attribute_is_the_default_of_the_field_it_stands_for():
    class Small(sinkscope.HeavyHitters):
        budget = 16
        recent = 8

    class Smaller(Small):
        recent = 2

    class Named(sinkscope.SinkWindow):
        window: int = 8
        label = "mine"

    class Tight(sinkscope.ClippedSoftmax):
        gamma = -0.5

    @dataclass(frozen=True)
    class Decorated(sinkscope.EveryNth):
        step = 3
        more: int = 1

    class Sized(sinkscope.Window):
        size = 5

    for _ in range(2):  # the first instance is made as all others
        assert (Small().budget, Small().recent, Small(32).budget, Small(32, recent=4).recent) == (16, 8, 32, 4)
        assert (Smaller().budget, Smaller().recent) == (16, 2)
        assert (Named(1).sinks, Named(1).window, Named(1).name, Named(1, label="x").name) == (1, 8, "mine", "x")
        assert Tight().gamma == -0.5
        assert (Decorated().step, Decorated(5).step, Decorated(more=2).more) == (3, 5, 2)
        assert (Sized().size, Sized(6).size) == (5, 6)
    assert (sinkscope.HeavyHitters().budget, sinkscope.HeavyHitters(8, 4).recent) == (256, 4)
    with pytest.raises(SinkscopeError, match="Small keeps a budget of 4 keys"):
        Small(4)


def test_a_class_attribute_that_an_own_init_passes_over_is_refused():
    class Passed(sinkscope.SinkWindow):
        window = 8

        def __init__(self, sinks):
            super().__init__(sinks)

    class Handed(sinkscope.SinkWindow):
        window = 8

        def __init__(self, sinks):
            super().__init__(sinks, self.window)

    assert (Handed(2).sinks, Handed(2).window) == (2, 8)
    with pytest.raises(SinkscopeError, match="Passed gives `window` as a class attribute"):
        Passed(2)


def test_a_field_that_has_the_name_of_a_property_is_refused():
    class Under(sinkscope.SinkWindow):
        @property
        def window(self):
            return 5

    @dataclass(frozen=True, kw_only=True)
    class Over(sinkscope.StaticPolicy):
        kept: int

        def sees(self, query, key):
            return query - key < 3

    @dataclass(frozen=True)
    class Taken(sinkscope.StaticPolicy):
        place: int = 3

        def sees(self, query, key):
            return query - key < 3

    for kind, given, name in ((Under, {}, "window"), (Over, {"kept": 3}, "kept"), (Taken, {}, "place")):
        with pytest.raises(SinkscopeError, match=f"{kind.__name__} has a field `{name}` and a property"):
            kind(**given)


def test_heads_in_an_array_and_a_label_that_is_a_number_are_taken(tmp_path):
    model, ids = build("llama"), inputs("llama", tokens=24)["input_ids"]
    array = sinkscope.Window(6, heads=np.array([0, 1]))
    assert "array([0, 1])" in repr(array)
    found, expected = (perplexity(model, ids, [each]).nll for each in (array, sinkscope.Window(6, heads=[0, 1])))
    np.testing.assert_array_equal(found.values, expected.values)
    record = perplexity(model, ids, [sinkscope.Window(5, label=5)], checkpoint=tmp_path)
    assert record.policy.values.tolist() == ["5"]
