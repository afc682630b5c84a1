"""One model in several threads: what overlaps is refused in one sentence, what follows one after the other is right."""

from __future__ import annotations

import collections
import copy
import random
import sys
import threading
import time

import numpy as np
import pytest
import torch

import sinkscope as S
from sinkscope.hf.caches import with_cache
from sinkscope.models import cached
from sinkscope.models.threads import other_threads_inside
from sinkscope.scope import measure
from sinkscope.streaming.readers import BlockReader
from tests.support.model_state import state_of
from tests.support.zoo import build, inputs

TEXTS = [inputs("llama", 1, tokens)["input_ids"] for tokens in (8, 9, 10, 11)]
AT_ONCE = "called from two threads at once; use one thread, or give each a model of its own"


def in_a_thread(act):
    """What a function gives in a thread of its own, or the exception that it raises."""
    found = []

    def run():
        try:
            found.append(act())
        except BaseException as problem:
            found.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


class Held:
    """A model whose second layer waits inside a forward pass in a thread of its own, until the block ends."""

    def __init__(self, model, act):
        self.model, self.act, self.found = model, act, []
        self.inside, self.go = threading.Event(), threading.Event()

    def __enter__(self):
        def wait(*_):
            if threading.current_thread() is self.thread:
                self.inside.set()
                self.go.wait(60)

        def run():
            try:
                self.found.append(self.act())
            except BaseException as problem:
                self.found.append(problem)

        self.hook = self.model.model.layers[1].register_forward_hook(wait)
        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert self.inside.wait(60)
        return self

    def __exit__(self, *_):
        self.go.set()
        self.thread.join()
        self.hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("whole", [True, False], ids=["the model", "its base"])
def test_a_second_thread_is_refused_and_the_first_goes_on(family, whole):
    model = build(family)
    called = model if whole else model.model
    with S.capture(model) as scope:
        with Held(model, lambda: called(TEXTS[0])) as held, pytest.raises(S.SinkscopeError, match=AT_ONCE):
            called(TEXTS[1])
        assert not isinstance(held.found[0], BaseException)
        called(TEXTS[2])
    assert scope.record["length"].values.tolist() == [8, 10]


@torch.no_grad()
def test_a_model_that_generates_is_in_use_between_its_forward_passes_too():
    model, problems = build("llama"), []

    def second(*_):
        problems.append(in_a_thread(lambda: model(TEXTS[1])))

    # called by generate() between two forward passes
    with S.capture(model) as scope:
        model.generate(TEXTS[0], max_new_tokens=3, do_sample=False, prefix_allowed_tokens_fn=lambda *_: second() or [5])
    assert len(problems) == 3 and all(AT_ONCE in str(each) for each in problems)
    assert scope.record.sizes["sequence"] == 1


@torch.no_grad()
@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_after_an_error_another_thread_may_go_on(family, problem):
    model = build(family)

    def fail(*_):
        raise problem("stop")

    with S.capture(model) as scope:
        hook = list(model.modules())[-2].register_forward_hook(fail)
        with pytest.raises(problem) as caught:
            model(TEXTS[0])
        hook.remove()
        for text in TEXTS[:2]:
            assert not isinstance(in_a_thread(lambda text=text: model(text)), BaseException)
        model(TEXTS[2])
    assert scope.record["length"].values.tolist() == [8, 9, 10] and caught.value.__traceback__ is not None


@torch.no_grad()
def test_a_model_in_use_by_another_thread_gets_no_scope_and_is_left_alone():
    model = build("llama")
    plain = model(TEXTS[0]).logits
    with Held(model, lambda: model(TEXTS[0]).logits) as held:
        before = copy.deepcopy(state_of(model))
        assert other_threads_inside([model]) and not other_threads_inside([build("llama")])
        calls = [lambda: S.capture(model).__enter__(), lambda: S.measure(model, TEXTS[1])]
        for call in calls:
            with pytest.raises(S.SinkscopeError, match="another thread is running this model"):
                call()
            assert state_of(model) == before
    assert torch.equal(held.found[0], plain)
    assert S.measure(model, TEXTS[1]).sizes["sequence"] == 1


@torch.no_grad()
def test_a_scope_left_while_another_thread_runs_its_model_says_what_is_lost():
    model = build("llama")
    before = copy.deepcopy(state_of(model))
    scope = S.capture(model)
    scope.__enter__()
    model(TEXTS[0])
    with (
        Held(model, lambda: model(TEXTS[1])) as held,
        pytest.raises(S.SinkscopeError, match="left while another thread ran its model"),
    ):
        scope.__exit__(None, None, None)
    assert not isinstance(held.found[0], BaseException) and state_of(model) == before
    assert scope.record["length"].values.tolist() == [8]


@torch.no_grad()
def test_what_measures_a_model_lets_no_other_thread_in_between_its_passes(monkeypatch):
    model, problems, batches_of = build("llama"), [], measure.batches_of

    def batches(*given):
        for batch in batches_of(*given):
            problems.append(in_a_thread(lambda: model(TEXTS[3])))
            yield batch

    monkeypatch.setattr(measure, "batches_of", batches)
    record = S.measure(model, [TEXTS[0][0], TEXTS[1][0]])
    assert record["length"].values.tolist() == [8, 9]
    steps = BlockReader(model, TEXTS[0], S.SinkWindow(2, 3), block=4).steps()
    for _ in steps:
        problems.append(in_a_thread(lambda: model(TEXTS[3])))
    assert len(problems) == 4 and all(AT_ONCE in str(each) for each in problems)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_model_that_is_tried_on_a_few_tokens_learns_nothing_from_another_thread(family):
    expected, model, found = cached.find_layout(build(family)), build(family), []
    here = threading.get_ident()

    def second(*_):
        if threading.get_ident() == here:
            found.append(in_a_thread(lambda: model(TEXTS[0])))

    hook = next(iter(model.modules())).base_model.register_forward_pre_hook(second)
    layout = cached.find_layout(model)
    hook.remove()
    assert (layout.natives, layout.reads, layout.windows) == (expected.natives, expected.reads, expected.windows)
    if family == "llama":  # whose attention is replaced meanwhile
        assert "tried it on a few tokens" in str(found[0])


@torch.no_grad()
def test_one_cache_in_two_threads_is_refused():
    model = build("llama")
    with S.SinkCache(model, 2, 20) as cache:
        run = lambda text: model(text, **with_cache(model, cache))  # noqa: E731
        with (
            Held(model, lambda: run(TEXTS[0])),
            pytest.raises(S.SinkscopeError, match="carries a SinkCache was called"),
        ):
            run(TEXTS[1])
        assert cache.seen == 8
        assert not isinstance(in_a_thread(lambda: run(TEXTS[0])), BaseException) and cache.seen == 16


@torch.no_grad()
def test_models_that_share_a_base_are_one_model():
    one, other = build("llama"), build("llama")
    other.model = one.model
    with S.capture(one) as scope:
        other(TEXTS[0])
        with pytest.raises(S.SinkscopeError, match="carries a scope already"), S.capture(other):
            pass
        with Held(one, lambda: one(TEXTS[1])), pytest.raises(S.SinkscopeError, match=AT_ONCE):
            other(TEXTS[2])
    assert scope.record["length"].values.tolist() == [8, 9]


@pytest.fixture
def eager_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@torch.no_grad()
def test_many_trials_of_two_threads_are_refused_or_right(eager_switches):
    model, generator = build("llama"), random.Random(0)
    alone = {text.shape[1]: S.measure(model, text).sink_mass.values[0] for text in TEXTS}
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: time.sleep(generator.choice((0, 0, 1e-4, 1e-3))))
    before, outcomes = copy.deepcopy(state_of(model)), collections.Counter()
    for _ in range(60):
        barrier, done = threading.Barrier(2), []

        def run(text, barrier=barrier, done=done):
            barrier.wait()
            with torch.no_grad():
                for _ in range(2):
                    try:
                        model(text)
                    except S.SinkscopeError as refused:
                        assert AT_ONCE in str(refused)
                        outcomes["refused"] += 1
                    else:
                        done.append(text.shape[1])

        threads = [threading.Thread(target=run, args=(text,)) for text in generator.sample(TEXTS, 2)]
        with S.capture(model) as scope:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert done and sorted(scope.record["length"].values) == sorted(done)
        for row in range(scope.record.sizes["sequence"]):
            mass = scope.record.sink_mass.isel(sequence=row)
            expected = alone[int(mass["length"])]
            np.testing.assert_allclose(mass.values[..., : expected.shape[-1]], expected, atol=1e-6)
        outcomes["right"] += len(done)
        assert state_of(model) == before
    assert outcomes["refused"] and outcomes["right"] and sum(outcomes.values()) == 240
