"""Code of one's own, in interventions, probes and sections, leaves the model as it found it, or is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sinkscope import Intervention, SinkscopeError, Trial, Variable, measure, run_interventions
from sinkscope.probes import LayerProbe
from tests.experiments import brute
from tests.experiments.brute import START
from tests.support.model_state import state_of
from tests.support.zoo import build, inputs


def twice(module, args, output):
    return 2 * output


def by_a_hook(model):
    model.model.layers[1].mlp.register_forward_hook(twice)


def by_a_hook_on_all(model):
    nn.modules.module.register_module_forward_hook(lambda *_: None)


def by_another_part(model):
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def by_a_setting(model):
    model.model.norm.variance_epsilon = 0.5


def by_the_mode(model):
    model.model.layers[0].train()


WAYS = {
    by_a_hook: r"a hook on model\.layers\.1\.mlp",
    by_a_hook_on_all: "a hook on all modules",
    by_another_part: r"another `module` on model\.layers\.1\.mlp",
    by_a_setting: r"another `variance_epsilon` on model\.norm",
    by_the_mode: r"another `training` on model\.layers\.0",
}


def everything_of(model):
    """The state of a model, what stands in it, its settings and the hooks of all modules."""
    parts = [(name, type(module), getattr(module, "variance_epsilon", None)) for name, module in model.named_modules()]
    return state_of(model), parts, dict(nn.modules.module._global_forward_hooks)


class Leaves(Intervention):
    def __init__(self, way, when):
        self.way, self.when = way, when

    def act(self, when, model):
        if self.when == when:
            self.way(model)

    def prepare(self, model, texts, conditions):
        self.model = model
        self.act("prepare", model)
        return self

    def draws(self, conditions):
        self.act("draws", self.model)
        return 1

    def apply(self, text, number, conditions):
        self.act("apply", self.model)
        return Trial(text, hooks=lambda model, undo: self.act("hooks", model))


@pytest.mark.parametrize("when", ["prepare", "draws", "apply", "hooks"])
@pytest.mark.parametrize("way", WAYS)
def test_what_an_intervention_leaves_is_taken_off_and_told(way, when):
    model = build("llama")
    before = everything_of(model)
    with pytest.raises(SinkscopeError, match=f"`Leaves` left {WAYS[way]}, where it would act on all"):
        run_interventions(model, brute.texts(), [Leaves(way, when)], start=START, progress=False)
    assert everything_of(model) == before


def test_an_intervention_that_edits_the_configuration_is_refused():
    class Edits(Intervention):
        def apply(self, text, number, conditions):
            model.config.rms_norm_eps = 0.5
            return Trial(text)

    model = build("llama")
    with pytest.raises(SinkscopeError, match="`Edits` changed the model's configuration, so the model is another one"):
        run_interventions(model, brute.texts(), [Edits()], start=START, progress=False)


@pytest.mark.parametrize(
    ("place", "message"),
    [("embed_tokens", "attends from 1 x 59 queries"), ("norm", "the model gave logits for 59 tokens of 60")],
)
def test_hooks_that_drop_a_token_are_refused(place, message):
    class Drops(Intervention):
        def apply(self, text, number, conditions):
            def hooks(model, undo):
                module = model.model.get_submodule(place)
                undo.callback(module.register_forward_hook(lambda module, args, output: output[:, 1:]).remove)

            return Trial(text, hooks=hooks)

    with pytest.raises(SinkscopeError, match=message):
        run_interventions(build("llama"), brute.texts(), [Drops()], start=START, progress=False)


class Clings(LayerProbe):
    makes = {"peak": Variable(("sequence", "head"))}  # noqa: RUF012

    def __init__(self, model, way):
        self.model, self.way = model, way

    def observe(self, layer):
        self.way(self.model)
        return {"peak": layer.lse.amax(-1)}


@pytest.mark.parametrize("way", [by_a_hook, by_a_setting])
def test_what_a_probe_leaves_is_taken_off_and_told(way):
    model, ids = build("llama"), inputs("llama", tokens=20)["input_ids"]
    before = everything_of(model)
    with pytest.raises(SinkscopeError, match=f"Clings left {WAYS[way]}"):
        measure(model, ids, [Clings(model, way)])
    assert everything_of(model) == before
    record = measure(model, ids, [Clings(model, lambda model: None)])
    assert bool(torch.isfinite(torch.from_numpy(record["peak"].values)).all()) and everything_of(model) == before
