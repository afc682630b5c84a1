"""An interrupt on any line of ours, or a scope that is forgotten, leaves nothing on the model."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import weakref

import pytest
import torch

import sinkscope as S
from sinkscope.hf.caches import with_cache
from sinkscope.undo import Undo
from tests.support.interrupting import each_line_once, left_on, traced
from tests.support.model_state import state_of
from tests.support.zoo import build, inputs

STEP = 1 if os.environ.get("SINKSCOPE_FAULTS") == "all" else 4  # of all lines, so many apart

IDS = inputs("llama", 1, 12)["input_ids"]
MOST = 150  # lines tried of what runs inside
SLOTS = {"policy": S.SinkWindow(2, 5), "normaliser": S.Softmax1(), "probes": [S.SinkMass()]}


def captured(model):
    with S.capture(model, S.ALL):
        model(IDS)


def cached(model):
    with S.SinkCache(model, 2, 5) as cache:
        model(IDS, **with_cache(model, cache))


def generated(model):
    with S.SinkCache(model, 2, 5) as cache:
        model.generate(IDS, **with_cache(model, cache), max_new_tokens=2, do_sample=False)


def scored(model):
    with S.ScoredCache(model, S.HeavyHitters(6, 3)) as cache:
        model(IDS, **with_cache(model, cache))


def read(model):
    S.perplexity(model, IDS, [S.Dense(), S.SinkWindow(2, 5), S.Recompute(4)], progress=False)


def intervened(model):
    S.run_interventions(model, IDS, [S.EvictKeys()], start=6, sinks=2, progress=False)


ACTS = {
    "capture": ("llama", captured),
    "a family outside the attention interface": ("gptj", captured),
    "a cache": ("llama", cached),
    "generate": ("llama", generated),
    "a scored cache": ("llama", scored),
    "measure": ("gemma3", lambda model: S.measure(model, IDS)),
    "perplexity": ("llama", read),
    "interventions": ("llama", intervened),
    "cost": ("llama", lambda model: S.cost(model, S.SinkWindow(2, 5), 20)),
}


def check_interrupts(model, act, numbers, before):
    """After the interrupt nothing is left, and the same call goes through as ever."""
    for number in numbers:
        try:
            traced(act, number)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError(f"the interrupt on line {number} was swallowed")
        if left_on(model) != before:
            gc.collect()  # of caches, whose layers know them
        assert left_on(model) == before, number


@pytest.mark.slow
@pytest.mark.parametrize("slots", [{}, SLOTS], ids=["bare", "all slots"])
def test_an_interrupt_on_any_line_of_entering_and_leaving_leaves_nothing(slots):
    model = build("llama")

    def enter_and_leave():
        with S.attached(model, **slots):
            pass

    enter_and_leave()
    before, count = left_on(model), len(traced(enter_and_leave).places)
    assert count > 250
    check_interrupts(model, enter_and_leave, range(random.randrange(STEP), count, STEP), before)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ACTS)
def test_an_interrupt_on_any_line_of_what_runs_inside_leaves_nothing(name):
    family, run = ACTS[name]
    model = build(family)
    run(model)  # finds what is found once
    act = lambda: run(model)  # noqa: E731
    before, lines = left_on(model), traced(act)
    numbers = each_line_once(lines.places, random.Random(name), MOST)
    check_interrupts(model, act, numbers, before)
    act()


@pytest.mark.slow
@torch.no_grad()
def test_an_interrupt_between_the_block_and_the_first_line_of_leaving():
    """What the scope's variable holds on to is no scope on the model any more."""
    model = build("llama")
    before = left_on(model)

    def enter_and_leave():
        nonlocal kept
        with S.capture(model) as scope:
            kept = scope
            model(IDS)

    kept = None
    enter_and_leave()
    places = traced(enter_and_leave).places
    leaving = next(n for n, (file, _) in reversed(list(enumerate(places))) if file.endswith("scope/scope.py"))
    for number in range(leaving - 12, len(places)):
        with pytest.raises(KeyboardInterrupt):
            traced(enter_and_leave, number)
        assert left_on(model) == before
        assert kept.record.sizes["sequence"] == 1


def test_an_error_while_leaving_leaves_nothing():
    done, undo = [], Undo()

    def fail():
        done.append("failed")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), undo:
        undo.callback(done.append, "first")
        undo.callback(fail)
        undo.callback(done.append, "last")
    assert done == ["last", "failed", "failed", "first"] and not undo.is_entered


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_forgotten_scope_leaves_its_model(family):
    model = build(family)
    before = left_on(model)
    scope = S.capture(model)
    scope.__enter__()
    model(IDS)
    trace = weakref.ref(scope)
    del scope  # and no collection of cycles is needed
    assert trace() is None and left_on(model) == before
    cache = S.SinkCache(model, 2, 5)
    del cache
    gc.collect()
    assert left_on(model) == before


def test_a_scope_may_be_entered_and_left_by_hand_and_looked_at():
    model = build("llama")
    before, scope = left_on(model), S.capture(model)
    scope.__enter__()
    assert hasattr(scope, "__exit__") and left_on(model) != before  # asking for it leaves nothing
    with torch.no_grad():
        model(IDS)
    scope.__exit__(None, None, None)
    assert left_on(model) == before and scope.record.sizes["sequence"] == 1
    with pytest.raises(S.SinkscopeError, match="carries a scope already"), scope, scope:
        pass
    assert left_on(model) == before


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_model_that_carries_a_scope_is_refused(copied):
    model = build("llama")
    before = copy.deepcopy(state_of(model))
    plain = model(IDS).logits
    with S.capture(model) as scope:
        for each in (model, model.model, model.model.layers[0]):
            with pytest.raises(S.SinkscopeError, match="this model carries a scope, which would come along"):
                copied(each)
        with torch.no_grad():
            model(IDS)
    assert scope.record.sizes["sequence"] == 1 and state_of(model) == before
    twin = copied(model)
    twin = pickle.loads(twin) if isinstance(twin, bytes) else twin
    assert state_of(twin) == before and torch.equal(twin(IDS).logits, plain)


def test_a_model_saved_inside_a_scope_knows_nothing_of_it(tmp_path):
    model = build("llama")
    with S.capture(model):
        model.save_pretrained(tmp_path)
    assert "sinkscope" not in (tmp_path / "config.json").read_text()
    assert torch.equal(type(model).from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)
