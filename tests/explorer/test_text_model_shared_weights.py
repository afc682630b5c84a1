"""Reading leaves the user's model as it is, to the bit, at any time; what is run is another one over its weights."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from sinkscope import SinkscopeError, capture
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.text_model import TextModel, copy_sharing_weights
from tests.explorer.references import CONFIGURATIONS, FAMILIES, everything, first, text
from tests.support.model_state import hooks_of, state_of
from tests.support.zoo import build

CASES = ("dense", "sinks", "chosen in a layer", "sigmoid over sinks")
RECOMPUTED = Configuration(policy="recompute", window=20)


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_as_it_was(model: torch.nn.Module, state, weights) -> bool:
    now = model.state_dict()
    same = [torch.equal(now[name].view(torch.uint8), weights[name].view(torch.uint8)) for name in weights]
    return state_of(model) == state and now.keys() == weights.keys() and all(same)


@pytest.mark.parametrize("name", [*FAMILIES, "mpt", "gpt2"])
def test_a_twin_shares_every_weight_and_buffer_and_gives_the_same_logits(name):
    model = build(name)
    twin = copy_sharing_weights(model)
    for part in ("named_parameters", "named_buffers"):
        own, shared = (dict(getattr(each, part)(remove_duplicate=False)) for each in (model, twin))
        assert own.keys() == shared.keys() and all(own[path] is shared[path] for path in own)
    assert not {id(module) for module in model.modules()} & {id(module) for module in twin.modules()}
    assert twin.config is not model.config and twin.config.to_dict() == model.config.to_dict()
    with torch.no_grad():
        torch.testing.assert_close(twin(text()[None]).logits, model(text()[None]).logits, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_as_it_was_before_every_result_and_after(name):
    model = build(name).train()  # also in training mode, which the twin is not in
    state, weights = state_of(model), bits(model)
    reader = TextModel(model, text())
    own = state_of(reader.model)
    for configuration in [*(CONFIGURATIONS[case][0] for case in (CASES if name == "llama" else ["sinks"])), RECOMPUTED]:
        for result in reader.read(configuration, 40, lambda: False):
            assert hooks_of(model) == state[0]  # while the scope is on the twin
            assert type(result).__name__ == "Continuation" or state_of(model) == state
        assert is_as_it_was(model, state, weights) and state_of(reader.model) == own
    assert model.training and not reader.model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_and_the_twin_are_as_they_were_after_an_exception_in_the_midst_of_a_layer():
    model = build("llama")
    reader = TextModel(model, text())
    expected, state, weights = first(reader, Configuration()).losses, state_of(model), bits(model)
    own = state_of(reader.model)

    def fail(*_):
        raise RuntimeError("in the midst")

    hook = reader.model.model.layers[1].mlp.register_forward_hook(fail)
    for configuration in (Configuration(), CONFIGURATIONS["sinks"][0], RECOMPUTED):
        with pytest.raises(RuntimeError, match="in the midst"):
            everything(reader, configuration)
    hook.remove()
    assert is_as_it_was(model, state, weights) and state_of(reader.model) == own
    np.testing.assert_array_equal(first(reader, Configuration()).losses, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "configuration", [Configuration(), CONFIGURATIONS["sinks"][0], RECOMPUTED], ids=lambda each: each.policy
)
def test_a_reading_overtaken_before_any_layer_gives_nothing_more_and_changes_nothing(configuration):
    model = build("llama")
    reader = TextModel(model, text())
    whole = everything(reader, configuration)
    asked: list[int] = []
    total = len(list(reader.read(configuration, 59, lambda: bool(asked.append(1)))))
    state, weights, own = state_of(model), bits(model), state_of(reader.model)
    counts = []
    for patience in (0, 1, 2, 3, len(asked) // 2, len(asked) - 1, len(asked)):
        left = iter(range(patience))
        counts.append(len(list(reader.read(configuration, 59, lambda left=left: next(left, None) is None))))
        assert is_as_it_was(model, state, weights) and state_of(reader.model) == own
    assert counts[0] == 0 and counts == sorted(counts) and counts[-2] < counts[-1] == total
    again = everything(reader, configuration)
    np.testing.assert_array_equal(again["reading"][-1].losses, whole["reading"][-1].losses)
    assert again["continuation"][-1] == whole["continuation"][-1]


@pytest.mark.parametrize("configuration", [Configuration(), RECOMPUTED], ids=lambda each: each.policy)
@pytest.mark.parametrize("taken", [1, 3, 5])
def test_results_that_nobody_continuation_to_take_leave_gradients_and_hooks_as_they_were(configuration, taken):
    model = build("llama")
    reader = TextModel(model, text())
    own, results = state_of(reader.model), reader.read(configuration, 59, lambda: False)
    for _, _ in zip(range(taken), results, strict=False):
        assert torch.is_grad_enabled()
    results.close()
    assert torch.is_grad_enabled() and state_of(reader.model) == own
    assert model(text()[None]).logits.requires_grad


@pytest.mark.slow
def test_the_model_can_be_used_and_measured_while_its_twin_is_read_in_another_thread():
    model, ids = build("llama"), text()
    with torch.no_grad():
        expected = model(ids[None]).logits
        with capture(model) as alone:
            model(ids[None])
    reader, inside, done = TextModel(model, ids), threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        assert done.wait(30)

    reader.model.model.layers[0].mlp.register_forward_hook(wait)
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(first(reader, CONFIGURATIONS["sinks"][0]).losses))
    thread.start()
    assert inside.wait(30)
    with torch.no_grad(), capture(model) as scope:
        torch.testing.assert_close(model(ids[None]).logits, expected, atol=1e-5, rtol=0)
    done.set()
    thread.join(30)
    np.testing.assert_array_equal(scope.record.sink_mass, alone.record.sink_mass)
    other = first(TextModel(copy.deepcopy(model), ids), CONFIGURATIONS["sinks"][0])
    np.testing.assert_array_equal(found[0], other.losses)


def test_weights_that_change_are_read_as_they_are_now():
    model = build("llama")
    reader = TextModel(model, text())
    before = first(reader, Configuration()).losses
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    after = first(reader, Configuration()).losses
    assert abs(after[1:] - before[1:]).max() > 0.1
    np.testing.assert_array_equal(after, first(TextModel(model, text()), Configuration()).losses)


@pytest.mark.slow
def test_twenty_readers_of_a_model_leave_no_hook_on_it():
    model = build("llama")
    hooks = hooks_of(model)
    for _ in range(20):
        first(TextModel(model, text(8)), Configuration())
    assert hooks_of(model) == hooks


def test_a_refused_configuration_leaves_the_twin_as_it_was():
    reader = TextModel(build("gpt2"), text())
    own = state_of(reader.model)
    with pytest.raises(SinkscopeError):
        everything(reader, CONFIGURATIONS["sinks"][0])
    assert state_of(reader.model) == own
