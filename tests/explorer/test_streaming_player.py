"""A long text read under two policies at once, with pauses, against perplexity."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from sinkscope import Dense, Recompute, SinkscopeError, SinkWindow, Window, perplexity
from sinkscope.explorer import streaming
from sinkscope.explorer.streaming import BLOCK, SAMPLED, Player
from tests.explorer.references import text
from tests.support.model_state import state_of
from tests.support.zoo import build

POLICIES = [Window(60), SinkWindow(4, 56)]
TOKENS = 300


def expected(name, tokens, policies) -> np.ndarray:
    return perplexity(build(name), text(tokens)[None], policies, block=64).nll.values[:, 0]


def play(one: Player, rounds: int | None = None) -> list[list[int]]:
    """Play on for so many rounds; until the text ends when None."""
    given = []
    for done in one.play(lambda: len(given) == rounds):
        given.append(done)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "gpt_neox"])
def test_losses_of_both_policies_are_those_of_perplexity(name):
    one = Player(build(name), text(TOKENS), POLICIES)
    assert play(one) == [[128, 128], [256, 256], [299, 299]] and one.is_over
    np.testing.assert_allclose(one.losses, expected(name, TOKENS, POLICIES), atol=3e-4)
    assert play(one) == []
    one.close()


@pytest.mark.slow
def test_a_family_read_token_by_token_is_played_in_the_same_blocks():
    one = Player(build("falcon_rotary"), text(150), POLICIES)
    assert play(one) == [[128, 128], [149, 149]]
    np.testing.assert_allclose(one.losses, expected("falcon_rotary", 150, POLICIES), atol=3e-4)
    one.close()


@pytest.mark.slow
def test_dense_beside_sinks_in_a_text_shorter_than_a_block():
    policies = [Dense(), SinkWindow(4, 20)]
    one = Player(build("llama"), text(50), policies)
    assert play(one) == [[49, 49]]
    np.testing.assert_allclose(one.losses, expected("llama", 50, policies), atol=1e-4)
    one.close()


@pytest.mark.slow
def test_pauses_and_threads_change_nothing():
    """Each round in a thread of its own, as pausing and playing on does."""
    model = build("llama")
    state, whole, parts = state_of(model), Player(model, text(TOKENS), POLICIES), Player(model, text(TOKENS), POLICIES)
    play(whole)
    problems: list[BaseException] = []

    def some():
        try:
            play(parts, 1)
        except BaseException as problem:
            problems.append(problem)

    for _ in range(3):
        thread = threading.Thread(target=some)
        thread.start()
        thread.join(60)
    assert problems == [] and parts.is_over
    np.testing.assert_array_equal(parts.losses, whole.losses)
    assert state_of(model) == state
    for one in (parts, whole):
        one.close()
    assert state_of(model) == state


@pytest.mark.parametrize("rounds", [0, 1, None])
def test_closing_in_another_thread_leaves_gradients_as_they_were_there(rounds):
    model = build("llama")
    one = Player(model, text(TOKENS), POLICIES)
    thread = threading.Thread(target=play, args=(one, rounds))
    thread.start()
    thread.join(60)
    one.close()
    assert torch.is_grad_enabled() and model(text(8)[None]).logits.requires_grad
    one.close()


def test_stopped_before_it_begins_it_reads_nothing():
    one = Player(build("llama"), text(TOKENS), POLICIES)
    assert list(one.play(lambda: True)) == [] and one.done == [0, 0] and np.isnan(one.losses).all()
    assert one.running(0)[0].tolist() == [] and one.rate(0) == 0.0
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 100, 256])
def test_the_running_perplexity_is_over_the_last_tokens_before_each_end_of_a_block(width):
    one = Player(build("llama"), text(TOKENS), POLICIES)
    for _ in one.play(lambda: False):
        ends, values = one.running(1, width)
        assert ends.tolist() == [*range(BLOCK, one.done[1], BLOCK), one.done[1]]
        for end, value in zip(ends, values, strict=True):  # token `end` is the last predicted by then
            losses = [float(one.losses[1, token]) for token in range(1, end + 1)][-width:]
            assert value == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    one.close()


def test_the_rate_counts_the_tokens_of_the_time_a_policy_had_the_machine(monkeypatch):
    clock = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(streaming.time, "perf_counter", lambda: next(clock))
    one = Player(build("llama"), text(TOKENS), POLICIES)
    play(one)
    assert one.seconds == [1.5, 1.5]  # half a second for each of three blocks
    assert one.rate(0) == pytest.approx(299 / 1.5)
    one.close()


def test_a_pace_is_kept_by_resting_and_left_at_once_when_stopped(monkeypatch):
    now, rests = [0.0], []
    monkeypatch.setattr(streaming.time, "perf_counter", lambda: now[0])

    def sleep(seconds):
        rests.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(streaming.time, "sleep", sleep)
    one = Player(build("llama"), text(TOKENS), POLICIES)
    times = []
    for _ in one.play(lambda: len(times) == 2, lambda: 128.0):
        times.append(now[0])
    assert times[0] == 0 and times[1] == pytest.approx(1.0, abs=0.03)  # a second for 128 tokens
    assert now[0] == times[1]  # no rest once it was stopped
    one.close()


@pytest.mark.parametrize(
    ("name", "tokens", "policies", "message"),
    [
        ("llama", 1, POLICIES, "two tokens at least"),
        ("gpt2", 100, POLICIES, "learned absolute positions"),
        ("gpt2", 600, [Dense(), Dense()], "a table of 512 positions"),
        ("bert", 100, POLICIES, "no policy applies|not causal"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_sentence(name, tokens, policies, message):
    with pytest.raises(SinkscopeError, match=message):
        Player(build(name), text(tokens), policies)


def test_ids_outside_the_vocabulary_are_refused_before_anything_is_read():
    with pytest.raises(SinkscopeError, match="outside the vocabulary"):
        Player(build("llama"), torch.tensor([3, 4, 500]), POLICIES)


def test_what_a_user_should_know_of_the_policies_is_noted():
    one = Player(build("llama"), text(50), [Window(60), SinkWindow(4, 20)])
    assert len(one.notes) == 1 and "nothing is evicted" in one.notes[0]
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [2, 10, 17, 150])
def test_re_computation_is_played_by_a_sample_with_the_last_token_in_it(tokens):
    one = Player(build("llama"), text(tokens), [Recompute(20), Window(20)])
    play(one)
    assert one.is_over
    scored = np.flatnonzero(np.isfinite(one.losses[0]))
    assert scored.tolist() == sorted({*range(SAMPLED, tokens - 1, SAMPLED), tokens - 1})
    whole = perplexity(build("llama"), text(tokens)[None], [Recompute(20)], samples=None).nll.values[0, 0]
    np.testing.assert_allclose(one.losses[0, scored], whole[scored], atol=3e-4)
    one.close()
