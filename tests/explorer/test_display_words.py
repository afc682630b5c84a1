"""What the explorer says in words: numbers that are those of the readings, and tokens that stay text."""

from __future__ import annotations

import re
from functools import cache
from html import unescape

import numpy as np
import pytest

from sinkscope.explorer import display
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.results import Change
from sinkscope.explorer.saving import static_picture, view_record
from tests.explorer.fakes import random_maps
from tests.explorer.hostile import ESCAPED, HOSTILE, QUOTED, Elements, Tokenizer, is_harmless
from tests.explorer.references import TOKENS, reader


@cache
def begun(said: str | None) -> Controller:
    """One that has read the text with the model as it is, and a tokenizer that says always the same."""
    tokenizer = None if said is None else Tokenizer(said)
    made = Controller(reader(tokenizer=tokenizer), [said or ""] * TOKENS)
    made.begin()
    assert made.wait(60)
    return made


def controller_of(said: str | None = None, **fields) -> Controller:
    made = begun(said)
    made.choose_query(TOKENS - 1)
    made.reset()
    assert made.wait(60)
    made.change(**fields)
    assert made.wait(60) and made.problem == "" and made.name == made.configuration.name
    return made


def text_of(page: str) -> str:
    return unescape(re.sub("<[^>]*>", " ", page))


@pytest.mark.parametrize("said", [HOSTILE, QUOTED])
@pytest.mark.parametrize("fields", [{}, {"policy": "window", "window": 12}, {"policy": "recompute", "window": 12}])
def test_tokens_appear_only_escaped(said, fields):
    controller = controller_of(said, **fields)
    pages = [display.next_tokens(controller), display.continuations(controller), display.headline(controller)]
    assert all(map(is_harmless, pages)) and said not in "".join(pages)
    assert said in text_of(pages[1])
    if said == HOSTILE:
        assert ESCAPED in pages[1] and ESCAPED.replace(" ", "␣") in pages[0]


@pytest.mark.slow
def test_a_picture_for_readers_without_a_kernel_holds_no_token_as_markup():
    controller = controller_of(HOSTILE)
    page = static_picture(controller)
    assert is_harmless(page) and HOSTILE not in page
    assert Elements(page).names == {"details", "summary", "img"} and f"{controller.caption}</summary>" in page


@pytest.mark.slow
def test_a_note_with_markup_appears_only_escaped():
    controller = controller_of(policy="window", window=15)
    object.__setattr__(controller.now.reading, "note", HOSTILE)
    assert ESCAPED in display.headline(controller) and is_harmless(display.headline(controller))


@pytest.mark.slow
def test_the_headline_says_which_configuration_is_shown_and_what_it_does_to_perplexity():
    controller = controller_of()
    loss = np.exp(controller.now.reading.losses[1:].mean(dtype=float))
    assert (
        text_of(display.headline(controller)).split() == f"Shown: dense : perplexity {loss:.2f} over 59 tokens".split()
    )
    controller.change(policy="window", window=12)
    assert controller.wait(60)
    dense, now = (each.losses[14:].mean(dtype=float) for each in (controller.dense.reading, controller.now.reading))
    said = text_of(display.headline(controller))
    assert said.split()[:6] == f"Shown: window 12 : perplexity {np.exp(now):.2f}".split()
    assert (
        f"against {np.exp(dense):.2f} dense (× {np.exp(now - dense):.2f}) on the 46 tokens from position 14 on" in said
    )


@pytest.mark.slow
def test_the_headline_of_a_window_that_evicts_nothing_says_so_and_compares_nothing():
    said = text_of(display.headline(controller_of(policy="window", window=60)))
    assert "window 60" in said and "nothing is evicted" in said and "perplexity" not in said


def test_before_anything_is_read_and_of_a_saved_record_the_headline_says_that():
    assert "reading the text" in display.headline(Controller(reader(), [""] * TOKENS))
    assert display.headline(Controller(None, [""] * 20, saved=random_maps(20))) == "<b>saved record</b>"


@pytest.mark.slow
def test_next_tokens_stand_with_both_probabilities_dense_first():
    controller = controller_of(policy="window", window=12)
    page = display.next_tokens(controller)
    assert re.findall("<th>(.*?)</th>", page) == ["token", "dense", "window 12"]
    rows = re.findall("<tr><td><code>(.*?)</code></td>(.*?)</tr>", page)
    assert len(rows) == 6
    for (token, cells), (expected, before, after) in zip(rows, controller.guesses(), strict=True):
        assert token == f"#{expected}"
        for cell, probability in zip(re.findall("<td>(.*?)</td>", cells), (before, after), strict=True):
            assert text_of(cell).strip() == ("not in the top list" if probability is None else f"{probability:.3f}")


def test_a_map_that_is_there_before_its_losses_has_placeholders_and_no_losses_that_could_be_saved():
    controller, seen = controller_of(), {}

    def listen(what):
        if what in (Change.READING, Change.SCORES):
            record = view_record(controller)
            seen[what] = display.next_tokens(controller), display.headline(controller), list(record.policy.values)

    controller.listen = listen
    controller.change(policy="window", window=20)
    assert controller.wait(60)
    controller.listen = lambda what: None
    assert list(seen) == [Change.READING, Change.SCORES]
    (early, headline, policies), (late, whole, both) = seen.values()
    assert "…" in early and "not read" not in early and "perplexity" not in headline and policies == ["dense"]
    assert "<th>window 20</th>" in late and "perplexity" in whole and both == ["dense", "window 20"]


def test_a_query_that_was_not_read_under_a_window_run_afresh_says_so():
    controller = controller_of(policy="recompute", window=12)
    controller.query = 20  # its own reading is not there yet
    assert "not read under recompute 12" in display.next_tokens(controller)


@pytest.mark.slow
def test_continuations_name_their_configuration_and_say_whether_they_go_on():
    controller = controller_of(policy="window", window=12)
    now = controller.now.continuation.text
    assert f"<i>window 12:</i> {now}</p>" in display.continuations(controller)
    assert f"<i>dense:</i> {controller.dense.continuation.text}</p>" in display.continuations(controller)
    controller.now.continuation = None
    assert "<i>window 12:</i> …</p>" in display.continuations(controller)


@pytest.mark.slow
def test_prices_are_said_beside_the_dense_one():
    controller = controller_of(policy="window", window=12)
    kept = 2 * 2 * 2 * 16 * 4  # bytes a token: keys and values, layers, heads, dimensions, float32
    said = display.prices(controller)
    assert f"{12 * kept / 1e6:.2f} MB" in said and f"(dense: {60 * kept / 1e6:.2f} MB" in said
    assert "dense" not in display.prices(controller_of()) and display.prices(Controller(None, ["", ""])) == ""


@pytest.mark.slow
def test_white_space_of_a_token_is_visible():
    assert display.token_text(controller_of(" a\n\t\r"), 5) == "␣a↵⇥\\r"
