"""A state as a short text: it brings back what was looked at, and is refused where it does not belong."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope import SinkscopeError
from sinkscope.explorer.configuration import GONE, OWN, Configuration
from sinkscope.explorer.controller import CLOSED, Controller
from sinkscope.explorer.pixels import MapOptions
from sinkscope.explorer.results import Unit
from sinkscope.explorer.state import State, read_state, state_text
from sinkscope.policies import Window
from tests.explorer.fakes import LENGTH, TEXTS, WAIT, FakeTextModel, ask, random_maps

SIGNED = {"text": "00112233", "model": "aabbccdd"}
AT_FIRST = Configuration.of_text(LENGTH)
CONFIGURATIONS = [
    AT_FIRST,
    Configuration(policy="sinks", sinks=0, window=7, dose=GONE, positions="original", since=9, layers=(0, 3)),
    Configuration(policy="chosen", evicted=(0, 5, 23), since=3, normaliser="learned sink, logit 0", dose=-2.0),
    Configuration(policy="chosen", evicted=(), normaliser=OWN),
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("pinned", [None, *CONFIGURATIONS[:2]])
def test_a_state_is_read_as_it_was_written(configuration, pinned):
    options = MapOptions("linear", "renormalised", 3, (1, 9, 0, 24), "difference")
    state = State(configuration, Unit(3, 1), 7, options, pinned, None if pinned is None else Unit(0, 2))
    text = state_text(state, SIGNED, LENGTH)
    assert read_state(text, SIGNED, LENGTH) == state
    assert text.isascii() and not set(text) & set(" '\"\\\n<>")


def test_what_is_as_at_first_is_left_out():
    text = state_text(State(AT_FIRST, None, LENGTH - 1, MapOptions()), SIGNED, LENGTH)
    assert text == "text=00112233&model=aabbccdd"


@pytest.mark.slow
def test_a_controller_looks_at_a_state_of_another_with_the_same_text_and_model(controller):
    ask(controller, policy="window", window=6)
    controller.comparison.pin_setting()
    controller.comparison.pin_head()
    ask(controller, policy="window", window=9)
    controller.choose_query(15)
    controller.show(scale="linear", region=(2, 12, 0, 10), compare="difference")
    state, tile = controller.state, controller.tile()

    again = Controller(FakeTextModel(), TEXTS)
    again.restore(state)
    assert again.state == state  # before anything was read
    assert again.wait(WAIT) and again.state == state
    assert (again.name, again.query, again.map_options) == ("window 9", 15, controller.map_options)
    assert again.comparison.partner.setting == "window 6" and again.comparison.pinned_unit == 0
    np.testing.assert_array_equal(again.tile().pixels, tile.pixels)
    again.close()


@pytest.mark.parametrize("other", ["text", "model"])
def test_a_state_of_another_text_or_model_is_refused_and_what_is_shown_stays(controller, other):
    ask(controller, policy="window", window=6)
    reader = FakeTextModel()
    if other == "text":
        reader.ids = reader.ids + 1
    else:
        reader.identity = "another"
    elsewhere = Controller(reader, TEXTS)
    before = elsewhere.state
    with pytest.raises(SinkscopeError, match=f"this state is of another {other} "):
        elsewhere.restore(controller.state)
    assert elsewhere.state == before and not reader.asked


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ("&window=0", "window='0' in the state is none of its values; give 1 or more"),
        ("&window=-1", "window='-1'"),
        ("&window=", "window=''"),
        ("&policy=magic", "policy='magic'"),
        ("&policy=__import__('os')", "policy="),
        ("&dose=nan", "dose='nan'"),
        ("&dose=inf", "dose='inf'"),
        ("&head=1", "head='1'"),
        ("&query=24", "give 0 to 23"),
        ("&region=5,5,0,9", "region="),
        ("&layers=1", "layers="),
        ("&evicted=0,x", "evicted="),
        ("&compare=maybe", "compare='maybe'"),
        ("&beauty=1", "a state has no 'beauty'"),
        ("&window=3&window=4", "is no state of the explorer"),
        ("&head=7.7", "layer 7, head 7 of the state is not here"),
        ("&pinned.policy=chosen&pinned.evicted=0,1&pinned.since=30", "evicted from query 30 on"),
        ("&policy=chosen&evicted=0,30", "token 30 cannot be evicted"),
        ("&policy=window&layers=0,3", "layers 0 to 3 of the state are not here; the model has 0 to 0"),
        ("&pinned.policy=window&pinned.layers=2,3", "layers 2 to 3 of the state are not here"),
        ("&pinned.policy=recompute", "the state pins re-computation: re-computation has maps of its own"),
    ],
)
def test_what_is_no_state_is_refused_by_its_reason(controller, added, reason):
    before = controller.state
    with pytest.raises(SinkscopeError) as refused:
        controller.restore(before.replace("&head=0.0", "") + added)
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert controller.state == before


@pytest.mark.parametrize("text", ["", "policy=window", "\x00", "a" * 5000, "&" * 100, None, 7, b"text=1"])
def test_any_other_text_is_no_state(controller, text):
    with pytest.raises(SinkscopeError, match=r"the text that `app\.state` has"):
        controller.restore(text)


def test_an_object_of_ones_own_is_in_no_text(controller):
    ask(controller, policy=Window(6))
    with pytest.raises(SinkscopeError, match=r"the policy .* is an object of your own"):
        _ = controller.state


def test_a_saved_record_has_a_state_of_its_own_and_none_with_a_policy(controller):
    saved = Controller(None, TEXTS, saved=random_maps(LENGTH))
    saved.choose_query(4)
    state = saved.state
    saved.choose_query(9)
    saved.restore(state)
    assert saved.query == 4
    for added, reason in (("&policy=window", "asks for a policy"), ("&scale=logit", "logits need the model")):
        with pytest.raises(SinkscopeError, match=reason):
            saved.restore(state + added)
    with pytest.raises(SinkscopeError, match="of another model"):
        controller.restore(state.replace(state[5:17], controller.state[5:17]))


def test_a_closed_explorer_has_no_state(controller):
    state = controller.state
    controller.close()
    for act in (lambda: controller.state, lambda: controller.restore(state), controller.undo, controller.redo):
        with pytest.raises(SinkscopeError, match=CLOSED):
            act()
