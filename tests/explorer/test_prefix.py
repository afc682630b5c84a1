"""What is not read again under another policy is what it would have been, and is read again once weights changed."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sinkscope.attention.eviction import WindowEviction
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.prefix import Prefix
from sinkscope.explorer.text_model import TextModel
from sinkscope.policies import StaticPolicy
from tests.explorer.fakes import WAIT
from tests.explorer.own_slots import OddKeys, TwoSinks
from tests.explorer.references import CONFIGURATIONS, FAMILIES, TOKENS, everything, first, reader, text
from tests.support.zoo import DECODERS, build, with_uneven_attention

WINDOW = 40  # of a model's own
GOES_ON = ("window", "sinks", "no sinks", "sinks in the text", "weaker sinks of a window", "sinks gone from a window")
CHOSEN = ("chosen", "chosen in a layer")
OTHERS = {
    "two sinks of one's own": Configuration(policy=TwoSinks()),
    "odd keys of one's own": Configuration(policy=OddKeys(distance=30)),
    "a window in one layer": Configuration(policy="window", window=20, layers=(1, 1)),
    "a window as long as the text": Configuration(policy="window", window=TOKENS),
    "scored": Configuration(policy="h2o", window=20),
    "another normaliser": Configuration(policy="sinks", window=20, normaliser="sigmoid"),
}


def read_after_dense(model: TextModel, configuration: Configuration):
    """All results, and how many tokens the layers were given for the first of them."""
    everything(model, Configuration())
    given = []
    hook = model.anatomy.parts[0].attention.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True
    )
    results = everything(model, configuration)
    hook.remove()
    return results, max(given)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    now, afresh = found["reading"][-1], expected["reading"][-1]
    np.testing.assert_allclose(now.losses, afresh.losses, atol=2e-4)
    np.testing.assert_allclose(now.guesses.probabilities, afresh.guesses.probabilities, atol=2e-5)
    assert now.note == afresh.note and now.maps.units == afresh.maps.units
    whole = slice(0, len(now.losses))
    for unit in range(len(now.maps.units)):
        for kind, close in (("probabilities", 2e-5), ("logits", 1e-3)):
            each, other = (getattr(reading.maps, kind)(unit, whole, whole) for reading in (now, afresh))
            np.testing.assert_allclose(each, other, atol=close, rtol=1e-4)
    told, other = (dict(reading.record.attrs, date="") for reading in (now, afresh))
    assert "tensor" not in str(told)  # of the recorder of layers only its name
    assert told == other and set(now.record.variables) == set(afresh.record.variables)
    for name, values in afresh.record.variables.items():
        if values.dtype.kind in "fi":
            np.testing.assert_allclose(now.record[name], values, atol=1e-4, rtol=1e-4, err_msg=name)
    overview, other = found["overview"][0], expected["overview"][0]
    assert np.abs(overview.units.astype(int) - other.units).max() <= 1
    for name, scores in other.scores.items():
        np.testing.assert_allclose(overview.scores[name], scores, atol=1e-4, rtol=1e-4)
    assert found["price"] == expected["price"]
    assert found["continuation"][-1].text == expected["continuation"][-1].text


@pytest.mark.parametrize("case", [*GOES_ON, *CHOSEN, *OTHERS])
def test_what_was_read_in_part_is_what_is_read_as_a_whole(case):
    configuration = OTHERS.get(case) or CONFIGURATIONS[case][0]
    results, given = read_after_dense(reader(), configuration)
    assert_same(results, everything(reader(), configuration))
    goes_on = case not in ("scored", "another normaliser")
    assert given < TOKENS if goes_on else given == TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("name", [each for each in FAMILIES if each != "llama"])
@pytest.mark.parametrize("case", ["window", "sinks", "sinks in the text"])
def test_families_go_on_as_they_read_a_whole_text(name, case):
    configuration = CONFIGURATIONS[case][0]
    results, _ = read_after_dense(reader(name), configuration)
    assert_same(results, everything(reader(name), configuration))


@dataclass(frozen=True, repr=False)
class EarlyDose(StaticPolicy):
    """Sinks and a window, of which the sinks are strengthened long before anything leaves the window."""

    def sees(self, query, key):
        return (query - key <= 20) | (key < 3)

    def bind(self, layer):
        return (WindowEviction(sinks=3, window=20, rotation=None, since=5, bias=1.0),)


def test_a_policy_that_binds_itself_is_read_from_the_start():
    explored, configuration = reader(), Configuration(policy=EarlyDose())
    results, given = read_after_dense(explored, configuration)
    assert given == TOKENS
    assert_same(results, everything(reader(), configuration))


CHANGES = {
    "in place": lambda model: model.model.layers[0].mlp.down_proj.weight.mul_(1.5),
    "behind torch's back": lambda model: model.model.layers[0].mlp.down_proj.weight.data.mul_(1.5),
    "in the last layer": lambda model: model.model.layers[-1].mlp.down_proj.weight.data.mul_(1.5),
    "in the head": lambda model: model.lm_head.weight.data.mul_(0.5),
    "in an embedding": lambda model: model.model.embed_tokens.weight.data[int(text()[3])].mul_(2.0),
    "another tensor": lambda model: setattr(
        model.model.norm.weight, "data", model.model.norm.weight.data.clone().mul_(1.3)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_changed_are_read_as_they_are_now(change):
    model, configuration = build("llama"), CONFIGURATIONS["sinks"][0]
    explored = TextModel(model, text())
    everything(explored, Configuration())
    before = first(explored, configuration).losses
    with torch.no_grad():
        CHANGES[change](model)
    after, afresh = first(explored, configuration), first(TextModel(model, text()), configuration)
    assert np.nanmax(np.abs(after.losses - before)) > 1e-2
    np.testing.assert_allclose(after.losses, afresh.losses, atol=2e-4)
    for unit in range(len(after.maps.units)):
        one, other = (each.maps.probabilities(unit, slice(0, TOKENS), slice(0, TOKENS)) for each in (after, afresh))
        np.testing.assert_allclose(one, other, atol=2e-5)


def zero_a_place(model):
    model.model.layers[0].register_forward_hook(
        lambda _, __, hidden: hidden * (torch.arange(hidden.shape[1]) != 10)[:, None]
    )
    return model


def zero_a_place_by_hand(model):
    def forward(layer, hidden, *args, **kwargs):
        return type(layer).forward(layer, hidden * (torch.arange(hidden.shape[1]) != 10)[:, None], *args, **kwargs)

    model.model.layers[0].forward = MethodType(forward, model.model.layers[0])
    return model


def made(kind, **options):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options), attn_implementation="eager")
    return with_uneven_attention(model.eval())


UNTOLD = {
    "half precision": lambda: build("llama").bfloat16(),
    "a hook that goes by places": lambda: zero_a_place(build("llama")),
    "a forward that goes by places": lambda: zero_a_place_by_hand(build("llama")),
    "a window shorter than the text": lambda: build("gemma2"),
    **{name: lambda name=name: build(name) for name in ("mixtral", "qwen3_moe", "llama4")},
    "experts of granite": lambda: made("granitemoe", **DECODERS["mixtral"][1]),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_models_of_which_one_token_does_not_tell_enough_are_read_from_the_start(case):
    explored = TextModel(UNTOLD[case](), text())
    everything(explored, Configuration())
    assert explored._prefix is None
    configuration = CONFIGURATIONS["sinks"][0]
    afresh = first(TextModel(UNTOLD[case](), text()), configuration)
    np.testing.assert_array_equal(first(explored, configuration).losses, afresh.losses)


@pytest.mark.parametrize("tokens", [WINDOW - 2, WINDOW - 1, WINDOW + 1])
def test_a_window_of_the_models_own_goes_on_only_where_the_whole_text_fits(tokens):
    def read():
        return TextModel(made("gemma2", **dict(DECODERS["gemma2"][1], sliding_window=WINDOW)), text(tokens))

    explored, configuration = read(), Configuration(policy="window", window=20)
    for _ in range(2):  # the first reading leaves what is kept as it was
        results, given = read_after_dense(explored, configuration)
        assert given < tokens if tokens < WINDOW - 1 else given == tokens  # the cache holds one less
        assert_same(results, everything(read(), configuration))


def made_of(model):
    named = [f"w{i}" for i in range(TOKENS)]
    controller = Controller(TextModel(model, text()), named)
    controller.begin()
    controller.wait(WAIT)
    return controller


def worse(model, counted=True):
    weight = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        (weight if counted else weight.data).mul_(1.5)


@pytest.mark.parametrize("after", [0, 1, 2], ids=["before the map", "before losses", "before the heads"])
def test_no_old_numbers_stay_where_a_reading_of_changed_weights_was_stopped(after):
    model = build("llama")
    controller = made_of(model)
    worse(model)
    came, take = [], controller._take

    def stopping(message):
        came.append(message)
        take(message)
        if len(came) > after:
            controller.cancel()

    controller._take = stopping
    controller.change(policy="window", window=20)
    if not after:
        controller.cancel()
    controller.wait(WAIT)
    controller._take = take
    controller.change(policy="window", window=25)
    controller.wait(WAIT)
    fresh = made_of(model)
    np.testing.assert_allclose(controller.dense.reading.losses, fresh.dense.reading.losses, atol=2e-4)
    assert controller.dense.continuation.text == fresh.dense.continuation.text
    for name, scores in fresh.dense.overview.scores.items():
        np.testing.assert_allclose(controller.dense.overview.scores[name], scores, atol=1e-4, err_msg=name)


def test_weights_that_changed_behind_torchs_back_are_those_of_every_number_in_the_end():
    model = build("llama")
    controller = made_of(model)
    assert controller.signature  # looked at before, so that an old one could be kept
    worse(model, counted=False)
    controller.change(policy="window", window=25)
    controller.wait(WAIT)
    fresh = made_of(model)
    np.testing.assert_allclose(controller.dense.reading.losses, fresh.dense.reading.losses, atol=2e-4)
    assert controller.signature == fresh.signature


def other_positions(model):
    """Of learned positions, those before any query on which the policy acts."""
    return model.transformer.wpe.weight.data[3:8].copy_(torch.randn(5, model.config.n_embd))


def three_times(weight):
    """Of some rows."""
    return weight.data[7:20].mul_(3)


BEHIND = {
    "the head alone": ("mistral", lambda model: three_times(model.lm_head.weight), dict(policy="window", window=25)),
    "a text read whole": (
        "llama", lambda model: three_times(model.model.layers[0].self_attn.q_proj.weight), dict(normaliser="softmax1"),
    ),
    "a window of few": (
        "llama",
        lambda model: three_times(model.model.layers[0].self_attn.q_proj.weight),
        dict(policy="window", window=6),
    ),
    "positions of other tokens": ("gpt2", other_positions, dict(policy="chosen", evicted=(0, 7), since=30)),
}  # fmt: skip


@pytest.mark.parametrize("case", BEHIND)
def test_whatever_changes_behind_torchs_back_no_two_kinds_of_weights_are_compared(case):
    name, change, setting = BEHIND[case]
    model = build(name)
    controller = made_of(model)
    before = controller.dense.reading.losses
    with torch.no_grad():
        change(model)
    fresh = made_of(model)
    assert np.nanmax(np.abs(fresh.dense.reading.losses - before)) > 1e-2
    heard = []
    controller.listen = lambda change: heard.append(None if controller.loss is None else controller.loss.dense)
    for each in (controller, fresh):
        each.change(**setting)
        each.wait(WAIT)
    np.testing.assert_allclose(controller.dense.reading.losses, fresh.dense.reading.losses, atol=2e-4)
    np.testing.assert_allclose(controller.now.reading.losses, fresh.now.reading.losses, atol=2e-4)
    assert controller.loss.dense == pytest.approx(fresh.loss.dense, rel=1e-4)


def test_a_model_that_reads_on_otherwise_than_it_reads_a_whole_is_read_whole_from_then_on(monkeypatch):
    controller = made_of(build("llama"))
    monkeypatch.setattr(Prefix, "agrees", lambda *_: False)
    for window in (25, 30):
        controller.change(policy="window", window=window)
        controller.wait(WAIT)
    assert controller.model._prefix is None and controller.model._untold == 1


@pytest.mark.parametrize("is_pinned", [False, True])
def test_weights_that_change_are_those_of_every_number_shown(is_pinned):
    model = build("llama")
    controller = made_of(model)
    old = controller.signature
    if is_pinned:
        controller.change(policy="sinks", sinks=2, window=20)
        controller.wait(WAIT)
        controller.comparison.pin_setting()
    worse(model)
    fresh = made_of(model)
    assert controller.signature == fresh.signature != old
    for each in (controller, fresh):
        each.change(policy="window", window=20)
        each.wait(WAIT)
    np.testing.assert_allclose(controller.dense.reading.losses, fresh.dense.reading.losses, atol=2e-4)
    np.testing.assert_allclose(controller.now.reading.losses, fresh.now.reading.losses, atol=2e-4)
    if is_pinned:
        expected = first(TextModel(model, text()), controller.comparison.pinned.configuration)
        shown = controller.comparison.pinned.results.reading
        np.testing.assert_allclose(shown.losses, expected.losses, atol=2e-4)


def test_a_model_of_inference_tensors_is_read_from_the_start():
    with torch.inference_mode():
        model = build("llama")
        for each in model.modules():
            for name, weight in list(each._parameters.items()):
                each._parameters[name] = None if weight is None else torch.nn.Parameter(weight.clone(), False)
        explored = TextModel(model, text())
    assert len(everything(explored, Configuration())["reading"]) == 2 and explored._prefix is None


def test_a_head_that_looks_at_more_than_the_last_states_is_not_run_apart():
    model = build("llama")

    class Looking(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head, self.calls = head, 0

        def forward(self, states):  # whatever it was given last counts too
            self.calls += 1
            return self.head(states) * self.calls

    model.lm_head = Looking(model.lm_head)
    explored = TextModel(model, text())
    results = everything(explored, Configuration())
    assert len(results["reading"]) == 1 and results["reading"][0].is_scored and explored._prefix is None
