"""Interventions of a class of one's own: they work in `intervene` unregistered, or are refused by name."""

from __future__ import annotations

import doctest
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import Dose, Evict, Intervention, SinkscopeError, Softmax1, Trial, Window, intervene, run_interventions
from sinkscope.experiments.intervention import Nothing
from tests.experiments import brute
from tests.experiments.brute import START
from tests.support.model_state import state_of
from tests.support.zoo import build


def run(chosen, **options):
    return run_interventions(build("llama"), brute.texts(), chosen, start=START, progress=False, **options)


@pytest.mark.slow
def test_the_example_of_the_contract_runs_as_it_stands():
    names = {"sinkscope": sinkscope, "model": build("llama"), "ids": brute.texts()}
    (example,) = doctest.DocTestFinder(recurse=False).find(Intervention, "Intervention", globs=names)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted == 4 and result.failed == 0


class NoFirst(Intervention):
    """No dataclass, one method, no name: the first key gone."""

    def apply(self, text, number, conditions):
        return Trial(text, policy=Evict([0], start=conditions.start))


@dataclass(frozen=True)
class Insert(Intervention):
    """As many tokens put in front of the text, which moves on."""

    token: int
    count: int = 3

    def apply(self, text, number, conditions):
        front = text.new_full((self.count,), self.token)
        return Trial(torch.cat([front, text]), torch.cat([-torch.ones(self.count).long(), torch.arange(len(text))]))

    def control(self):
        return Insert(self.token + 1, self.count)


class Silenced(Intervention):
    """Hidden states changed by a hook."""

    name = "layer 0 silenced"

    def apply(self, text, number, conditions):
        def hooks(model, undo):
            layer = model.model.layers[0]
            undo.callback(layer.register_forward_hook(lambda module, args, output: output * 0 + 1).remove)

        return Trial(text, hooks=hooks)


class Empty(Evict):
    """A policy that counts as false."""

    def __len__(self):
        return 0


class NoFirstByAnEmptyOne(NoFirst):
    def apply(self, text, number, conditions):
        return Trial(text, policy=Empty([0], start=conditions.start))


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [NoFirst(), NoFirstByAnEmptyOne()])
def test_a_policy_in_a_trial_takes_the_keys_away(chosen):
    record = run([chosen])
    assert record.policy.values.tolist() == ["nothing", chosen.name]
    for number, text in enumerate(brute.texts()):
        expected = brute.without("llama", text, [0]).losses[START:]
        found = record.nll.sel(policy=chosen.name).isel(sequence=number)[START + 1 : len(text)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_tokens_that_move_are_scored_where_they_stood_and_those_put_in_nowhere():
    record = run([Insert(5)])  # whose control would have a control too
    assert sinkscope.intervention_table(record)["role"].tolist() == ["baseline", "effect", "control"]
    assert record.control.values.tolist() == ["", "Insert(token=6, count=3)", ""]
    for number, text in enumerate(brute.texts()):
        longer = torch.cat([torch.full((3,), 5), text])
        expected = brute.losses(brute.plain(build("llama"), longer), longer)[3 + START :]
        found = record.nll.sel(policy="Insert(token=5, count=3)").isel(sequence=number)
        np.testing.assert_allclose(found[START + 1 : len(text)], expected, rtol=1e-4, atol=1e-4)
        assert int(found.notnull().sum()) == len(text) - START - 1
    assert record.same_tokens.values.tolist() == [1, 1, 1]


@pytest.mark.slow
def test_whether_losses_compare_is_read_off_the_tokens_scored_and_not_promised():
    @dataclass(frozen=True)
    class Overwrite(Intervention):
        place: int

        def apply(self, text, number, conditions):
            changed = text.clone()
            changed[self.place] = (changed[self.place] + 1) % 100
            return Trial(changed)

    table = intervene(build("llama"), brute.texts(), [Overwrite(3), Overwrite(START + 5)], start=START, progress=False)
    assert table["ratio"].isna().tolist() == [False, False, True]


@pytest.mark.slow
def test_a_normaliser_and_hooks_reach_the_model():
    class WithSoftmax1(Intervention):
        def apply(self, text, number, conditions):
            return Trial(text, normaliser=Softmax1())

    record = run([WithSoftmax1(), Silenced()])
    nll = record.nll.isel(sequence=0)
    assert float(abs(nll.sel(policy="WithSoftmax1") - nll.sel(policy="nothing")).max()) > 1e-4
    assert float(nll.sel(policy="layer 0 silenced").std()) > 0
    assert float(abs(nll.sel(policy="layer 0 silenced") - nll.sel(policy="nothing")).max()) > 1e-3


def giving(trial, **more):
    """An intervention that makes this of every text."""
    return type("Giving", (Intervention,), {"apply": lambda self, text, number, conditions: trial(text)} | more)()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (giving(lambda text: text), "`Giving` made a Tensor of a text; return a sinkscope.Trial"),
        (giving(lambda text: Window(8)), "`Giving` made a Window of a text"),
        (giving(lambda text: Trial(text[None])), "the tokens of `Giving` are no text"),
        (giving(lambda text: Trial(text.float())), "the tokens of `Giving` are no text"),
        (giving(lambda text: Trial(text[:1])), "the tokens of `Giving` are no text"),
        (giving(lambda text: Trial(text + 1000)), "outside the vocabulary"),
        (giving(lambda text: Trial(text, policy="dense")), "the policy of `Giving` is 'dense'"),
        (giving(lambda text: Trial(text, normaliser=Softmax1)), "the normaliser of `Giving` is <class"),
        (giving(lambda text: Trial(text, torch.arange(3))), "the places of `Giving` do not tell"),
        (giving(lambda text: Trial(text, torch.arange(len(text)) + 1)), "the places of `Giving` do not tell"),
        (giving(lambda text: Trial(text, torch.arange(len(text)) - 5)), "the places of `Giving` do not tell"),
        (giving(lambda text: Trial(text, torch.arange(len(text)).float())), "the places of `Giving` do not tell"),
        (giving(lambda text: Trial(text, "there")), "the places of `Giving` do not tell"),
        (giving(lambda text: Trial(text, torch.full((len(text),), START + 2))), "two tokens of `Giving` stood at one"),
        (giving(lambda text: Trial(text[:START])), "`Giving` leaves nothing of text 0 to score"),
        (giving(lambda text: Trial(text, hooks=5)), "the hooks of `Giving` are 5"),
        (giving(Trial, prepare=lambda self, model, texts, conditions: None), "`Giving` is prepared as None"),
        (type("Idle", (Nothing,), {})(), "is called 'nothing' as the baseline is"),
        (giving(Trial, name="nothing"), "is called 'nothing' as the baseline is"),
        (giving(Trial, name=""), "give it some words"),
        (giving(Trial, control=lambda self: "none"), "'none' is not an intervention"),
        (giving(Trial, control=lambda self: giving(Trial)), "`Giving` has a control of the same name"),
    ],
)
def test_what_the_engine_cannot_carry_out_is_refused_by_name(chosen, words):
    with pytest.raises(SinkscopeError, match=words) as refused:
        run([chosen])
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_one_that_writes_into_its_text_changes_no_other_run_and_not_the_ids_of_the_caller():
    texts = brute.texts()
    kept = [text.clone() for text in texts]
    window = giving(lambda text: Trial(text, policy=Window(8)), name="window")

    def scribble(self, model, texts, conditions):
        for text in texts:
            text.zero_()
        return self

    writes = giving(lambda text: Trial(text.fill_(7)), check=scribble, prepare=scribble)
    options = {"start": START, "progress": False}
    beside = run_interventions(build("llama"), texts, [writes, window], **options)
    assert all(torch.equal(text, known) for text, known in zip(texts, kept, strict=True))
    alone = run_interventions(build("llama"), texts, [window], **options)
    np.testing.assert_array_equal(beside.nll.sel(policy=["nothing", "window"]), alone.nll)


@pytest.mark.slow
def test_a_policy_derived_from_one_that_does_nothing_is_not_taken_for_the_baseline():
    class Near(Dose):
        def sees(self, query, key):
            return query - key <= 4

        def bind(self, layer):
            return Window(4).bind(layer)

    near = giving(lambda text: Trial(text, policy=Near(0.0, [0])), name="near")
    nll = run([near, giving(lambda text: Trial(text, policy=Window(4)), name="window")]).nll
    np.testing.assert_allclose(nll.sel(policy="near"), nll.sel(policy="window"))


@dataclass(frozen=True)
class Windowed(Intervention):
    """Attention over a window, beside a control of any name."""

    window: int
    called: str = ""
    beside: Intervention | None = None

    @property
    def name(self):
        return self.called or f"window {self.window}"

    def control(self):
        return self.beside

    def apply(self, text, number, conditions):
        return Trial(text, policy=Window(self.window))


@pytest.mark.slow
def test_controls_of_one_name_are_one_or_refused():
    shared = [Windowed(4, beside=Windowed(9, "wide")), Windowed(5, beside=Windowed(9, "wide"))]
    assert run(shared).control.values.tolist() == ["", "wide", "wide", ""]
    plain = type("Plain", (NoFirst,), {})
    assert "Plain" in run([Windowed(4, beside=plain()), Windowed(5, beside=plain())]).policy.values
    with pytest.raises(SinkscopeError, match="the control of `window 5` is called `wide`, as is another"):
        run([Windowed(4, beside=Windowed(9, "wide")), Windowed(5, beside=Windowed(20, "wide"))])
    with pytest.raises(SinkscopeError, match="the control of `window 5` is called `window 4`, as is another"):
        run([Windowed(4), Windowed(5, beside=Windowed(20, "window 4"))])


@dataclass(frozen=True)
class Learned(Intervention):
    found: int = 0

    def prepare(self, model, texts, conditions):
        return Learned(len(texts))

    def control(self):
        return None if self.found < 0 else Learned(-1)

    def apply(self, text, number, conditions):
        return Trial(text, policy=Window(4 + self.found))


@pytest.mark.slow
def test_what_is_found_in_preparation_changes_no_name():
    record = run([Learned()])
    assert record.policy.values.tolist() == ["nothing", "Learned(found=0)", "Learned(found=-1)"]
    assert record.control.values.tolist() == ["", "Learned(found=-1)", ""]


def test_a_class_without_the_method_is_refused_by_python_itself():
    with pytest.raises(TypeError, match="abstract"):
        type("Empty", (Intervention,), {})()


# --- what one of them leaves on the model -----------------------------------------------------------------------------


class Clings(Intervention):
    """A hook that nobody takes off."""

    def __init__(self, when: str) -> None:
        self.when = when

    @property
    def name(self):
        return f"clings in {self.when}"

    def hang(self, model):
        model.model.layers[1].register_forward_hook(lambda module, args, output: output * 2)

    def check(self, model, texts, conditions):
        self.model = model
        if self.when == "check":
            self.hang(model)

    def prepare(self, model, texts, conditions):
        if self.when == "prepare":
            self.hang(model)
        return self

    def apply(self, text, number, conditions):
        if self.when == "apply":
            self.hang(self.model)
        return Trial(text, hooks=(lambda model, undo: self.hang(model)) if self.when == "hooks" else None)


@pytest.mark.parametrize("when", ["check", "prepare", "apply", "hooks"])
def test_a_hook_that_stays_is_refused_by_name_and_taken_off(when):
    model = build("llama")
    before = state_of(model)
    with pytest.raises(SinkscopeError, match=rf"`clings in {when}` left a hook on model.layers.1"):
        run_interventions(model, brute.texts(), [Clings(when)], start=START, progress=False)
    assert state_of(model) == before


def test_hooks_of_the_users_own_stay_and_a_replaced_forward_does_not():
    model, calls = build("llama"), []
    model.model.norm.register_forward_hook(lambda *_: calls.append(1))
    before = state_of(model)

    class Patches(Intervention):
        def apply(self, text, number, conditions):
            model.model.layers[0].mlp.forward = lambda hidden: hidden
            return Trial(text)

    with pytest.raises(SinkscopeError, match=r"`Patches` left another `forward` on model.layers.0.mlp"):
        run_interventions(model, brute.texts(), [Patches()], start=START, progress=False)
    assert "forward" not in vars(model.model.layers[0].mlp) and state_of(model) == before and calls


def write_by_numpy(weight):
    weight.detach().numpy()[0, 0] += 1


def write_by_data(weight):
    weight.data[0, 0] += 1


@pytest.mark.parametrize("write", [write_by_numpy, write_by_data])
def test_weights_that_are_written_to_are_refused_by_name(write):
    """Such writes raise no version of a tensor."""

    class Scribbles(Intervention):
        def apply(self, text, number, conditions):
            def hooks(model, undo):
                write(model.model.layers[0].self_attn.q_proj.weight)

            return Trial(text, hooks=hooks)

    with pytest.raises(SinkscopeError, match="`Scribbles` changed the model's weights"):
        run([Scribbles()])


class Twice(Evict):
    """Evicts the keys at twice the places, by rules that agree with each other."""

    def sees(self, query, key):
        return Evict([2 * key for key in self.keys], start=self.start).sees(query, key)

    def bind(self, layer):
        return Evict([2 * key for key in self.keys], start=self.start).bind(layer)


class Evicts(Intervention):
    def __init__(self, policy, name):
        self.policy, self.name = policy, name

    name = ""

    def apply(self, text, number, conditions):
        return Trial(text, policy=self.policy)


def test_the_mass_that_a_class_of_ones_own_removes_is_not_told():
    record = run([Evicts(Evict([6], start=START), "six"), Evicts(Twice([3], start=START), "own")])
    six, own = (record.sel(policy=name) for name in ("six", "own"))
    np.testing.assert_allclose(own["nll"], six["nll"], equal_nan=True, atol=1e-6)
    assert bool((six["removed_mass"] > 0).all()) and bool(own["removed_mass"].isnull().all())


def test_two_interventions_of_one_name_are_told_apart_from_one_given_twice():
    with pytest.raises(
        SinkscopeError, match="two interventions are called `same`; give each one once, and others names"
    ):
        run([Evicts(Evict([5], start=START), "same"), Evicts(Evict([6], start=START), "same")])
    with pytest.raises(SinkscopeError, match="no intervention was given; give one at least"):
        run([])


def test_a_text_made_longer_than_a_table_of_positions_is_refused():
    ids = torch.randint(3, 120, (1, 500))
    with pytest.raises(SinkscopeError, match="has a table of 512 positions"):
        run_interventions(build("gpt2"), ids, [Insert(5, 100)], start=START, progress=False)
