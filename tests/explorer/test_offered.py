"""Policies and normalisers of one's own stand in the lists, run as they are, and are refused where they are none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sinkscope import Dense, SinkscopeError, Softmax1, StaticPolicy, Window
from sinkscope.explorer.configuration import POLICY_NAMES, offered
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.controls import Controls
from sinkscope.explorer.launch import explore
from tests.explorer.fakes import LENGTH, TEXTS, random_maps
from tests.explorer.hostile import HOSTILE
from tests.explorer.references import text
from tests.support.zoo import build


@dataclass(frozen=True, repr=False)
class Third(StaticPolicy):
    """Every third key."""

    def sees(self, query, key):
        return (key % 3 == 0) | (key == query)


def labels(app, name):
    return [label for label, _ in app.controls.fields[name].options]


def test_heavy_hitters_and_tova_are_among_the_policies():
    assert {"H2O", "TOVA"} <= set(POLICY_NAMES)


@pytest.mark.slow
def test_what_is_given_stands_at_the_end_of_its_list_and_runs_when_it_is_chosen():
    app = explore(build("llama"), text=text(), policies=[Third()], normalisers={HOSTILE: Softmax1()})
    assert app.wait()
    assert labels(app, "policy") == [*POLICY_NAMES, Third().name] and labels(app, "normaliser")[-1] == HOSTILE
    app.controls.fields["policy"].label = Third().name
    assert app.wait() and app.controller.name == Third().name and app.controller.problem == ""
    app.controls.fields["normaliser"].label = HOSTILE
    assert app.wait() and isinstance(app.controller.configuration.normaliser, Softmax1)
    app.controller.change(policy=Window(5))  # of which the list knows nothing
    assert app.wait() and labels(app, "policy") == [*POLICY_NAMES, Third().name, Window(5).name]
    app.controller.reset()
    assert app.wait() and app.controls.fields["policy"].label == "dense"
    app.close()


@pytest.mark.parametrize(
    ("name", "own", "reason"),
    [
        ("policy", [Third], r"give an instance, such as Third\(\)"),
        ("policy", ["window"], "is no policy; give an object of a class of Policy"),
        ("policy", Third(), "is no list; give the policy in one"),
        ("policy", "window", "is no list"),
        ("policy", 7, "is no list"),
        ("policy", {"dense": Third()}, "'dense' is no name of its own"),
        ("policy", {"": Third()}, "is no name of its own"),
        ("policy", {3: Third()}, "3 is no name of its own"),
        ("normaliser", [Third()], "is no normaliser"),
        ("normaliser", {"softmax": Softmax1()}, "'softmax' is no name of its own"),
    ],
)
def test_what_no_list_can_hold_is_refused_by_its_reason(name, own, reason):
    with pytest.raises(SinkscopeError, match=reason) as refused:
        offered(name, own)
    assert "\n" not in str(refused.value)


def test_objects_whose_names_are_taken_have_a_number():
    name = Third().name
    assert list(offered("policy", [Dense(), Third(), Third()])) == ["dense (2)", name, f"{name} (2)"]


def test_letters_that_would_turn_a_list_round_are_written_out():
    (label,) = offered("policy", {"\u202eevil\n": Third()})
    assert label.isprintable() and "\u202e" not in label


def test_nothing_given_is_nothing_more():
    assert offered("policy", None) == offered("normaliser", []) == {}
    saved = Controller(None, TEXTS, saved=random_maps(LENGTH))
    assert len(Controls(saved).fields["policy"].options) == len(POLICY_NAMES)
