"""The streaming tab without a browser: what it draws and says is what its player read."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sinkscope import Dense, Recompute, SinkWindow, Window, explore, perplexity
from sinkscope.explorer.app import Explorer
from sinkscope.explorer.controls import descendants
from sinkscope.explorer.streaming import SAMPLED, SPEEDS
from tests.explorer.hostile import ESCAPED, HOSTILE, is_harmless
from tests.explorer.references import text
from tests.support.zoo import build

TOKENS = 300
SLOW = 1e-6  # tokens a second


@pytest.fixture(autouse=True)
def slow_is_slow(monkeypatch):
    """At its slowest nothing comes after the first block, however long a test takes to pause."""
    monkeypatch.setitem(SPEEDS, "50 tokens/s", SLOW)


@pytest.fixture
def app():
    made = explore(build("llama"), text=text(TOKENS), length=40)
    assert made.wait(60)
    made.streaming.cache.value = 60
    yield made
    made.close()


def until_it_stops(app: Explorer) -> None:
    assert app._mailbox.pump(lambda: not app.streaming.is_playing, 60)


def until(app: Explorer, tokens: int) -> None:
    tab = app.streaming
    assert app._mailbox.pump(lambda: tab.player is not None and tab.player.done[1] >= tokens, 60)


@pytest.mark.slow
def test_both_curves_and_the_words_are_those_of_the_player_and_its_losses_those_of_perplexity(app):
    tab, policies = app.streaming, [Window(60), SinkWindow(4, 56)]
    tab.toggle()
    until_it_stops(app)
    expected = perplexity(build("llama"), text(TOKENS)[None], policies).nll.values[:, 0]
    np.testing.assert_allclose(tab.player.losses, expected, atol=3e-4)
    for place, policy in enumerate(policies):
        line = SimpleNamespace(**tab.chart.frame["curves"][place])
        assert line.name == policy.name and line.x == [128, 256, 299]
        last = np.exp(expected[place, -256:].mean())
        assert line.y[-1] == pytest.approx(last, rel=1e-3)
        assert f"<b>{policy.name}</b>: 299 tokens, perplexity {line.y[-1]:.2f}" in tab.status.value
    assert "the text has ended" in tab.status.value and tab.play.description == "play"
    assert tab.chart.frame["marks"] == [60]  # both keep the same number


@pytest.mark.slow
def test_pausing_keeps_the_place_and_playing_on_changes_nothing(app):
    tab = app.streaming
    tab.speed.value = SLOW
    tab.toggle()
    until(app, 128)
    tab.toggle()
    done = list(tab.player.done)
    assert not tab.is_playing and done == [128, 128] and "128 tokens" in tab.status.value
    player = tab.player
    tab.speed.value = math.inf
    tab.toggle()
    until_it_stops(app)
    assert tab.player is player and player.done == [299, 299]
    expected = perplexity(build("llama"), text(TOKENS)[None], player.policies).nll.values[:, 0]
    np.testing.assert_allclose(player.losses, expected, atol=3e-4)
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_from_the_start_it_reads_the_text_again(app):
    tab = app.streaming
    tab.toggle()
    until_it_stops(app)
    player = tab.player
    tab.restart()
    until_it_stops(app)
    assert tab.player is not player
    np.testing.assert_array_equal(tab.player.losses, player.losses)


@pytest.mark.slow
def test_other_policies_begin_at_the_start_of_the_text(app):
    tab = app.streaming
    tab.toggle()
    until_it_stops(app)
    tab.left.value, tab.sinks.value = "dense", 2
    assert tab.player is None and not tab.is_playing
    tab.toggle()
    until_it_stops(app)
    assert [policy.name for policy in tab.player.policies] == [Dense().name, SinkWindow(2, 58).name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(right="window"), "both policies are the same"),
        (dict(cache=4, sinks=4), "cannot be kept|smaller than the 4 sinks"),
    ],
)
def test_policies_that_cannot_be_played_are_one_sentence_and_others_play(app, fields, message):
    tab = app.streaming
    for name, value in fields.items():
        getattr(tab, name).value = value
    tab.toggle()
    until_it_stops(app)
    assert any(part in tab.status.value for part in message.split("|")) and "alert" in tab.status.value
    tab.right.value, tab.cache.value = "sinks", 60
    tab.toggle()
    until_it_stops(app)
    assert "the text has ended" in tab.status.value


@pytest.mark.slow
def test_a_model_that_cannot_be_streamed_says_so():
    app = explore(build("gpt2"), text=text(100))
    app.wait(60)
    app.streaming.toggle()
    until_it_stops(app)
    assert "learned absolute positions" in app.streaming.status.value
    app.close()


@pytest.mark.slow
def test_what_fails_on_the_way_is_said_and_can_be_begun_again(app, monkeypatch):
    tab = app.streaming
    tab.speed.value = SLOW
    tab.toggle()
    until(app, 128)
    monkeypatch.setattr(tab.player, "_read_on", lambda place: (_ for _ in ()).throw(ValueError(HOSTILE)))
    tab.speed.value = math.inf
    until_it_stops(app)
    assert ESCAPED in tab.status.value and is_harmless(tab.status.value) and tab.player is None
    tab.toggle()
    until_it_stops(app)
    assert "the text has ended" in tab.status.value


@pytest.mark.slow
def test_reading_and_playing_take_turns(app):
    tab = app.streaming
    tab.speed.value = SLOW
    tab.toggle()
    until(app, 128)
    app.controller.change(policy="window", window=12)
    assert not tab.is_playing and tab.player.done == [128, 128]
    tab.toggle()
    assert app.controller.busy == "" and tab.is_playing and app.controller.name == "dense"
    tab.toggle()
    app.controller.change(window=12)
    assert app.wait(60) and app.controller.name == "window 12"


@pytest.mark.slow
def test_leaving_the_tab_pauses(app):
    tabs = app.children[-1]
    tabs.selected_index = 1
    app.streaming.speed.value = SLOW
    app.streaming.toggle()
    until(app, 128)
    tabs.selected_index = 0
    assert not app.streaming.is_playing


@pytest.mark.slow
def test_a_text_shorter_than_the_cache_has_a_cache_that_fits():
    app = explore(build("llama"), text=text(20))
    app.wait(60)
    assert app.streaming.cache.value == app.streaming.cache.max == 20
    app.streaming.toggle()
    until_it_stops(app)
    assert "the text has ended" in app.streaming.status.value
    app.close()


@pytest.mark.slow
def test_before_anything_is_played_every_field_says_what_it_holds_and_the_chart_has_no_curve(app):
    tab = app.streaming
    assert (tab.left.label, tab.right.label, tab.speed.label) == ("window", "sinks + window", "as fast as it goes")
    assert tab.chart.frame["curves"] == [] and tab.chart.frame["length"] == TOKENS


@pytest.mark.slow
def test_the_number_of_sinks_is_at_rest_where_no_policy_keeps_any(app):
    tab = app.streaming
    assert not tab.sinks.disabled
    tab.right.value = "dense"
    assert tab.sinks.disabled
    tab.left.value = "sinks"
    assert not tab.sinks.disabled


@pytest.mark.slow
def test_the_controls_of_the_heads_stand_in_their_own_tab(app):
    heads, streaming, _ = app.children[-1].children
    inside = {id(part) for part in descendants(streaming)}
    assert streaming is app.streaming and not inside & {id(each) for each in app.controls.fields.values()}
    assert {id(each) for each in app.controls.fields.values()} <= {id(part) for part in descendants(heads)}


@pytest.mark.slow
def test_re_computation_is_played_by_a_sample_whose_losses_are_those_of_perplexity(app):
    tab = app.streaming
    tab.right.value = "recompute"
    tab.toggle()
    until_it_stops(app)
    losses, policy = tab.player.losses[1], Recompute(60)
    scored = np.flatnonzero(np.isfinite(losses))
    assert tab.player.policies[1] == policy and scored.tolist() == [*range(SAMPLED, TOKENS - 1, SAMPLED), TOKENS - 1]
    expected = perplexity(build("llama"), text(TOKENS)[None], [policy], samples=None).nll.values[0, 0]
    np.testing.assert_allclose(losses[scored], expected[scored], atol=3e-4)
    assert tab.chart.frame["curves"][1]["y"][-1] == pytest.approx(np.exp(losses[scored][-16:].mean()), rel=1e-3)
