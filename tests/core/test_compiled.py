"""Compiled models give what they give uncompiled, in every order of calls, and are compiled again afterwards."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import sinkscope as S
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.models.compiled import uncompiled
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=1, tokens=24)["input_ids"]
BACKEND = dict(backend="eager")  # torch's tracing and its guards without a compiler behind them


def in_place(model: nn.Module, **options) -> nn.Module:
    model.compile(**BACKEND, **options)
    return model


def layers(model: nn.Module, **options) -> nn.Module:
    for layer in model.model.layers:
        layer.compile(**BACKEND, **options)
    return model


WAYS = {
    "wrapped": lambda model: torch.compile(model, **BACKEND),
    "wrapped, fullgraph": lambda model: torch.compile(model, **BACKEND, fullgraph=True),
    "wrapped, aot": lambda model: torch.compile(model, backend="aot_eager"),
    "in place, fullgraph": lambda model: in_place(model, fullgraph=True),
    "layers": layers,
}


@torch.no_grad()
def plain(model):
    return model(IDS).logits


@torch.no_grad()
def captured(model):
    with S.capture(model) as scope:
        model(IDS)
    return torch.from_numpy(scope.record.sink_mass.values)


@torch.no_grad()
def under_policy(model):
    with S.attached(model, policy=S.SinkWindow(2, 5)):
        return model(IDS).logits


@torch.no_grad()
def under_normaliser(model):
    with S.attached(model, normaliser=S.Softmax1()):
        return model(IDS).logits


@torch.no_grad()
def cached(model):
    with S.SinkCache(model, 2, 5) as cache:
        return model(IDS, **with_cache(model, cache)).logits


def generated(model):
    with S.SinkCache(model, 2, 5) as cache:
        return model.generate(IDS, **with_cache(model, cache), max_new_tokens=6, do_sample=False)


CALLS = (plain, captured, under_policy, under_normaliser, cached, generated)


@pytest.fixture(autouse=True)
def fresh_traces():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_trace_made_before_is_not_used_for_what_came_later_in_any_order(way):
    expected = {call: call(build("llama")) for call in CALLS}
    assert not torch.allclose(expected[plain], expected[under_policy], atol=1e-3)
    model = WAYS[way](build("llama"))
    for call in (*CALLS, *reversed(CALLS), under_policy, captured, under_normaliser, plain):
        torch.testing.assert_close(call(model), expected[call], atol=2e-5, rtol=1e-5, msg=f"{way}, {call.__name__}")


@pytest.mark.slow
def test_a_compiled_step_around_the_model_runs_under_the_scope_too():
    model = build("llama")
    step = torch.compile(lambda ids: model(ids).logits, **BACKEND)
    with torch.no_grad():
        step(IDS)
        with S.attached(model, policy=S.SinkWindow(2, 5)):
            found = step(IDS)
    torch.testing.assert_close(found, under_policy(build("llama")))


@pytest.mark.slow
def test_losses_and_cost_are_those_of_the_model_uncompiled():
    model, compiled = build("bloom"), torch.compile(build("bloom"), **BACKEND, fullgraph=True)
    plain(compiled)
    policies = [S.Dense(), S.SinkWindow(2, 5), S.Recompute(6)]
    losses = [S.perplexity(each, IDS, policies, progress=False).nll.values for each in (model, compiled)]
    torch.testing.assert_close(*map(torch.from_numpy, losses), equal_nan=True)
    assert S.cost(model, policies[1], 50).flops == S.cost(compiled, policies[1], 50).flops


def is_compiled() -> bool:
    runs = []

    def backend(graph, _):
        runs.append(graph)
        return graph

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    return bool(runs)


@pytest.mark.slow
def test_torch_compiles_again_once_the_last_scope_or_cache_is_gone():
    model, other = build("llama"), build("llama")
    cache = S.SinkCache(model, 2, 5)
    with S.capture(other):
        del cache  # collected while another is open
        gc.collect()
        assert not is_compiled()
    assert is_compiled()
    with pytest.raises(ZeroDivisionError), uncompiled():
        raise ZeroDivisionError
    assert is_compiled()


@pytest.mark.slow
def test_contexts_that_end_in_another_order_leave_torch_as_it_was():
    first, second = uncompiled(), uncompiled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not is_compiled()
    second.__exit__(None, None, None)
    assert is_compiled()


@pytest.mark.slow
def test_the_users_own_stance_comes_back():
    with torch.compiler.set_stance("eager_on_recompile"):
        with S.capture(build("llama")):
            pass
        assert not is_compiled()
    assert is_compiled()


@pytest.mark.slow
def test_a_scope_inside_a_compiled_function_is_refused():
    model = build("llama")
    compiled = torch.compile(lambda ids: under_policy(model) + ids.sum(), **BACKEND)
    with pytest.raises(SinkscopeError, match="a compiled function attaches a scope"):
        compiled(IDS)
