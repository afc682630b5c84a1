"""Policies and normalisers of classes outside the package: run, named and saved like those of the list, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import (
    Chunks,
    Evict,
    LearnedSink,
    PerHead,
    Recompute,
    SinkscopeError,
    SinkWindow,
    Softmax1,
    Softpick,
    Window,
    explore,
    perplexity,
)
from sinkscope.explorer.configuration import CONTROLS, POLICIES, POLICY_NAMES, Configuration, PolicyEntry
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.saving import code_of, view_record
from tests.explorer.fakes import LENGTH, Gate, ask, is_whole
from tests.explorer.own_slots import OddKeys, Plain, Squares, TwoSinks
from tests.explorer.references import TOKENS, defined, everything, first, reader, text
from tests.support.zoo import build


def squares(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(-1) ** 2


@pytest.fixture(scope="module")
def app():
    made = explore(build("llama"), text=text())
    assert made.wait(60)
    yield made
    made.close()


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "like"),
    [
        ({"policy": TwoSinks()}, {"policy": SinkWindow(2, 20)}),
        ({"policy": TwoSinks(layers=[1])}, {"policy": SinkWindow(2, 20, layers=[1])}),
        ({"policy": SinkWindow(4, 16, values="zeroed", heads=[0, 2])}, None),
        ({"policy": Evict((0,), start=9), "normaliser": Squares()}, None),
    ],
)
def test_losses_and_price_are_those_of_the_policy_that_was_given(slots, like):
    results, like = everything(reader(), Configuration(**slots)), slots if like is None else like
    expected = perplexity(build("llama"), text()[None], [like["policy"]], normaliser=like.get("normaliser"))
    np.testing.assert_allclose(results["reading"][-1].losses, expected.nll.values[0, 0], atol=3e-4)
    policy = like["policy"]
    kept = sinkscope.Dense() if policy.layers or policy.heads else policy
    assert results["price"][0].kv_bytes == sinkscope.cost(build("llama"), kept, TOKENS).kv_bytes


def test_a_normaliser_of_a_users_class_gives_its_own_weights():
    configuration = Configuration(normaliser=Squares())
    logits, weights, _ = defined("llama", {"weights": squares})
    reading = first(reader(), configuration)
    losses = torch.nn.functional.cross_entropy(logits[:-1], text()[1:], reduction="none").numpy()
    np.testing.assert_allclose(reading.losses[1:], losses, atol=1e-4)
    whole = slice(0, TOKENS)
    np.testing.assert_allclose(reading.maps.probabilities(5, whole, whole), weights[1, 1], atol=1e-5)
    assert configuration.name == "dense; Squares(power=2.0)" and not configuration.is_baseline


def test_a_policy_that_recomputes_has_maps_of_its_own_for_each_query(controller, reader):
    ask(controller, policy=Recompute(4))
    controller.choose_query(9)
    assert controller.wait(60)
    assert reader.asked[-2:] == [("recompute 4", LENGTH - 1), ("recompute 4", 9)]
    assert controller.configuration.first_affected(LENGTH) == 4


def test_a_policy_that_the_explorer_knows_nothing_of_is_never_taken_for_the_model_as_it_is(controller, reader):
    ask(controller, policy=OddKeys())
    assert reader.asked[-1] == ("odd keys beyond 3", LENGTH - 1) and is_whole(controller, "odd keys beyond 3")
    assert controller.now is not controller.dense


@pytest.mark.slow
def test_two_policies_of_one_name_are_two(controller, reader):
    for policy in (Window(5, label="mine"), Window(6, label="mine"), Window(6, label="mine")):
        ask(controller, policy=policy)
    assert [name for name, _ in reader.asked] == ["dense", "mine", "mine"]
    ask(controller, policy=Window(6, label="dense"))
    assert len(reader.asked) == 4 and controller.now is not controller.dense


@pytest.mark.slow
def test_a_policy_that_was_stopped_is_read_though_one_of_its_name_is_shown(controller, reader):
    ask(controller, policy=Window(5, label="mine"))
    gate = reader.gates["mine"] = Gate()
    controller.change(policy=Window(6, label="mine"))
    assert gate.begun.wait(60)
    controller.cancel()
    gate.go.set()
    assert controller.wait(60) and controller.now.reading.configuration.policy == Window(5, label="mine")
    ask(controller, policy=Window(6, label="mine"))
    assert controller.now.reading.configuration.policy == Window(6, label="mine")


@pytest.mark.slow
def test_objects_of_tensors_which_cannot_be_compared_are_asked_for_like_any_other(controller, reader):
    for seed in (0, 0, 1):
        ask(controller, normaliser=LearnedSink(torch.full((4,), float(seed))))
        assert controller.problem == ""
    assert len(reader.asked) == 4
    assert Configuration(normaliser=LearnedSink(torch.ones(4))) != Configuration(normaliser=LearnedSink(torch.ones(4)))


@pytest.mark.parametrize(("policy", "query"), [(OddKeys(), 3), (OddKeys(5), 5), (TwoSinks(), 23), (Window(7), 8)])
def test_the_first_query_that_a_policy_changes_follows_from_what_it_sees_or_keeps(policy, query):
    assert Configuration(policy=policy).first_affected(TOKENS) == query


# --- shown ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_given_is_shown_in_the_list_and_can_be_chosen_there_again(app):
    policy, normaliser, fields = TwoSinks(), Squares(), app.controls.fields
    app.controller.change(policy=policy, normaliser=normaliser)
    name = "two sinks and 20; Squares(power=2.0)"
    assert app.wait(60) and app.problem.value == "" and name in app.headline.value
    assert (fields["policy"].value, fields["policy"].label) == (policy, "two sinks and 20")
    assert (fields["normaliser"].value, fields["normaliser"].label) == (normaliser, "Squares(power=2.0)")
    assert {each for each, widget in fields.items() if not widget.disabled} == {"policy", "normaliser"}
    fields["policy"].value = "window"
    assert app.wait(60) and app.controller.configuration.policy == "window" and not fields["window"].disabled
    fields["policy"].value = policy
    assert app.wait(60) and app.controller.name == name
    app.controls.reset.click()
    assert app.wait(60) and app.controller.name == "dense"


def test_a_normaliser_of_the_list_acts_in_the_chosen_layers_under_a_policy_that_was_given():
    configuration = Configuration(policy=TwoSinks(), normaliser="sigmoid", layers=(1, 1))
    assert configuration.normaliser_slot.layers == (1,) and configuration.policy_slot.layers is None
    assert configuration.uses == {"policy", "normaliser", "layers"}


def test_the_words_of_readme_and_notebooks_ask_for_the_same(controller):
    ask(controller, kind="window", window=6)
    assert controller.configuration.policy == "window" and is_whole(controller, "window 6")


# --- saved ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_saved_code_imports_the_classes_and_measures_what_was_shown(monkeypatch):
    monkeypatch.setattr(sinkscope, "load", lambda: (build("llama"), None))
    controller = Controller(reader(), [""] * TOKENS)
    controller.begin()
    ask(controller, policy=TwoSinks(), normaliser=Squares())
    code, fresh = code_of(controller), {}
    assert "from tests.explorer.own_slots import TwoSinks\nfrom tests.explorer.own_slots import Squares\n" in code
    exec(code, fresh)
    whole = slice(0, TOKENS)
    shown = controller.maps.probabilities(controller.unit, whole, whole)
    np.testing.assert_allclose(fresh["attention_map"], np.nan_to_num(shown), atol=2e-5)
    measured = [float(sinkscope.ppl(fresh[name])[0]) for name in ("dense", "changed")]
    np.testing.assert_allclose(measured, [controller.loss.dense, controller.loss.changed], rtol=1e-4)
    record = view_record(controller)
    assert record.policy_kind.values.tolist() == ["Dense", "tests.explorer.own_slots.TwoSinks"]
    assert record.cache_size.values.tolist() == [-1, 22]


@pytest.mark.slow
def test_the_saved_code_leaves_the_place_of_a_class_that_only_the_notebook_has(monkeypatch):
    monkeypatch.setattr(Squares, "__module__", "__main__")
    controller = Controller(reader(), [""] * TOKENS)
    controller.begin()
    ask(controller, normaliser=Squares())
    code = code_of(controller)
    assert (
        "# here goes the definition of your class Squares\n" in code and "\nnormaliser = Squares(power=2.0)\n" in code
    )


@pytest.mark.slow
def test_the_saved_code_names_each_class_where_it_is_found():
    controller = Controller(reader(), [""] * TOKENS)
    controller.begin()
    ask(controller, policy=Chunks(7, 2), normaliser=Softpick())
    code, fresh = code_of(controller), {"sinkscope": sinkscope}
    assert "policy = sinkscope.Chunks(" in code and "normaliser = sinkscope.Softpick(" in code
    ask(controller, policy=OddKeys(), normaliser="the model's own")
    code = code_of(controller)
    assert (
        "import sinkscope\nfrom tests.explorer.own_slots import OddKeys\n\n" in code and "\nnormaliser = None\n" in code
    )
    exec("\n".join(line for line in code.splitlines() if line.startswith(("from", "policy ="))), fresh)
    assert fresh["policy"] == OddKeys()
    ask(controller, policy=PerHead({(0, 1): OddKeys()}, default=Window(9)))
    code = code_of(controller)
    assert code.count("from tests.explorer.own_slots import OddKeys\n") == 1
    exec("\n".join(line for line in code.splitlines() if line.startswith(("from", "policy ="))), fresh)
    assert fresh["policy"] == PerHead({(0, 1): OddKeys()}, default=Window(9))


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(policy=Window), "is no policy; give an instance, such as Window()"),
        (dict(policy=3), "policy=3 is no policy; give one of dense, window"),
        (dict(policy=Softmax1()), "is no policy"),
        (dict(normaliser=Plain), "is no normaliser; give an instance, such as Plain()"),
        (dict(normaliser=Window(3)), "is no normaliser"),
        (dict(normaliser=torch.softmax), "is no normaliser"),
        (dict(layers=3), "layers=3 is no range"),
        (dict(windows=3), "'windows' is no control; give some of policy, sinks, window"),
    ],
)
def test_what_is_neither_a_policy_nor_a_normaliser_nor_a_control_is_refused_in_a_sentence(controller, fields, message):
    before = controller.configuration
    with pytest.raises(SinkscopeError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        controller.change(**fields)
    assert "\n" not in str(caught.value) and controller.configuration is before


def test_re_computation_of_some_layers_which_nothing_does_is_refused_by_name(controller):
    ask(controller, policy=Recompute(4, layers=[0]))
    assert "`recompute 4, layer 0` runs whole windows afresh" in controller.problem and is_whole(controller, "dense")


# --- controls ---------------------------------------------------------------------------------------------------------


def test_every_field_has_a_control_and_one_whose_control_is_the_text():
    assert {*CONTROLS} | {"evicted"} == {*vars(Configuration())}
    assert all(control.label and control.tooltip for control in CONTROLS.values())


@pytest.mark.slow
def test_an_entry_in_the_table_is_all_that_a_policy_of_the_list_needs(monkeypatch):
    entry = PolicyEntry("two sinks", ("window",), lambda asked: TwoSinks(window=asked.window))
    monkeypatch.setitem(POLICIES, "two", entry)
    monkeypatch.setitem(POLICY_NAMES, entry.label, "two")  # which follows from the table when it is loaded
    app = explore(build("llama"), text=text(40))
    assert app.wait(60)
    app.controls.fields["window"].value = 9
    app.controls.fields["policy"].value = "two"
    assert app.wait(60) and app.controller.name == "two sinks and 9" and app.problem.value == ""
    assert app.controller.loss.first == 13  # the query behind 2 + 9 tokens, and the token it predicts
    used = {name for name, widget in app.controls.fields.items() if not widget.disabled}
    assert used == {"policy", "window", "normaliser"}
    app.close()
