"""The shaded text and its bars: queries chosen, tokens evicted."""

from __future__ import annotations

import re

import numpy as np

from tests.browser.canvases.page import canvas, probability_of, settle, tip, token, wait_for_text


def test_the_text_holds_the_row_and_says_each_tokens_value(notebook):
    drawn = notebook.drawn(canvas(notebook, "text"))
    np.testing.assert_allclose(drawn.values[:41], notebook.python("attention[0][0][40, :41].tolist()"), rtol=1e-6)
    assert np.isnan(drawn.values[41:]).all()
    exact = probability_of(notebook, 40, 38)
    said = f'token 38 "␣runs": probability {float(f"{exact:.3g}")}'
    assert token(notebook, 38).get_attribute("aria-label") == token(notebook, 38).get_attribute("title") == said
    assert token(notebook, 50).get_attribute("title") == 'token 50 "␣runs": not seen by this query'


def test_more_attention_than_the_even_share_is_a_stronger_shade_and_less_is_none(notebook):
    read = "all => all.slice(0, 41).map(s => getComputedStyle(s.lastChild).backgroundColor)"
    colours = notebook.page.locator(".sinkscope-text .sinkscope-token").evaluate_all(read)
    row = np.array(notebook.python("attention[0][0][40, :41].tolist()"))
    shaded = [place for place in range(41) if colours[place] != "rgba(0, 0, 0, 0)"]
    place = np.log(row * 41) / np.log(row.max() * 41)  # from the even share to the largest
    assert set(np.flatnonzero(place > 0.03)) == set(shaded) and 3 < len(shaded) < 15
    blue = {at: int(re.findall(r"\d+", colours[at])[2]) for at in shaded}  # white loses its blue towards amber
    strongest_first = sorted(shaded, key=lambda at: -row[at])
    assert [blue[at] for at in strongest_first] == sorted(blue.values())
    assert f"{float(f'{1 / 41:.3g}')} or less" in notebook.page.locator(".sinkscope-text").inner_text()


def test_clicking_a_token_chooses_the_query(notebook):
    token(notebook, 33).click()
    notebook.wait_for("token_text.query == 33")
    settle(notebook)
    assert token(notebook, 33).get_attribute("aria-selected") == "true"
    assert notebook.drawn(canvas(notebook, "text")).frame["query"] == 33
    assert notebook.python("token_text.evicted") == []


def test_clicking_a_token_in_evict_mode_evicts_it_and_clicking_again_restores_it(notebook):
    notebook.page.get_by_role("radio", name="evict").check()
    notebook.wait_for("token_text.mode == 'evict'")
    token(notebook, 12).click()
    token(notebook, 4).click()
    notebook.wait_for("token_text.evicted == [4, 12]")
    word = token(notebook, 4).locator("span")
    notebook.page.wait_for_function(
        "s => getComputedStyle(s).textDecorationLine === 'line-through'", arg=word.element_handle()
    )
    assert token(notebook, 4).evaluate("s => getComputedStyle(s, '::after').content") == '"✕"'
    assert token(notebook, 4).get_attribute("aria-label").endswith(", evicted")
    token(notebook, 4).click()
    notebook.wait_for("token_text.evicted == [12]")
    assert notebook.python("token_text.query") == 40


def test_alt_and_a_click_does_the_other_action(notebook):
    token(notebook, 9).click(modifiers=["Alt"])
    notebook.wait_for("token_text.evicted == [9] and token_text.query == 40")
    notebook.execute("token_text.mode = 'evict'")
    notebook.page.wait_for_function("() => document.querySelectorAll('.sinkscope-text input')[1].checked")
    token(notebook, 10).click(modifiers=["Alt"])
    notebook.wait_for("token_text.evicted == [9] and token_text.query == 10")


def test_where_tokens_cannot_be_evicted_the_text_says_why(notebook):
    notebook.execute(
        "token_text.why_not = 'a record without a model cannot be run again'; token_text.can_evict = False"
    )
    wait_for_text(notebook.page.locator(".sinkscope-text [aria-live]"), "a record without a model")
    assert notebook.page.get_by_role("radio", name="evict").is_disabled()
    assert "a record without a model" in notebook.page.locator(".sinkscope-choice").nth(1).get_attribute("title")
    token(notebook, 9).click(modifiers=["Alt"])
    token(notebook, 11).click()
    notebook.wait_for("token_text.query == 11")
    assert notebook.python("token_text.evicted") == []


def test_the_tokens_are_worked_from_the_keyboard(notebook):
    token(notebook, 30).click()
    notebook.wait_for("token_text.query == 30")
    for key in ["ArrowRight", "ArrowRight", "Enter"]:
        notebook.page.keyboard.press(key)
    notebook.wait_for("token_text.query == 32")
    for key in ["ArrowLeft", "e", "Home", "e"]:
        notebook.page.keyboard.press(key)
    notebook.wait_for("token_text.evicted == [0, 31]")
    for key in ["e", "End", "q"]:
        notebook.page.keyboard.press(key)
    notebook.wait_for("token_text.evicted == [31] and token_text.query == 63")
    notebook.page.keyboard.press("ArrowUp")
    tops = notebook.page.evaluate(
        "() => [document.activeElement.offsetTop, document.querySelector('.sinkscope-tokens').lastChild.offsetTop]"
    )
    assert tops[0] < tops[1]
    stops = notebook.page.locator(".sinkscope-token[tabindex='0']")
    assert stops.count() == 1  # one stop of the Tab key for the whole text


def test_hovering_the_bars_names_the_token_and_its_value(notebook):
    box = canvas(notebook, "text").bounding_box()
    canvas(notebook, "text").hover(position={"x": 44 + (box["width"] - 52) * 39.5 / 64, "y": 40})
    exact = probability_of(notebook, 40, 39)
    wait_for_text(tip(notebook, "text"), f'token 39 "␣away": probability {float(f"{exact:.3g}")}')


def test_the_chosen_query_is_scrolled_into_the_box_and_the_page_stays(notebook):
    notebook.execute(
        "long = [' token'] * 900\n"
        "with token_text.hold_sync():\n"
        "    token_text.tokens, token_text.values = long, np.zeros(900, '<f4').tobytes()\n"
        "    token_text.frame = {**token_text.frame, 'request': next(requests)}"
    )
    settle(notebook)
    scrolls = """() => {
        const tops = [];
        for (let e = document.querySelector(".sinkscope-tokens"); (e = e.parentElement); ) tops.push(e.scrollTop);
        return tops;
    }"""
    before = notebook.page.evaluate(scrolls)
    notebook.execute("token_text.unobserve(query_changed, 'query'); token_text.query = 890")
    notebook.page.wait_for_function("() => document.querySelector('.sinkscope-tokens').scrollTop > 100")
    box, chosen = (notebook.page.locator(name).bounding_box() for name in (".sinkscope-tokens", ".sinkscope-query"))
    assert box["y"] <= chosen["y"] and chosen["y"] + chosen["height"] <= box["y"] + box["height"]
    assert notebook.page.evaluate(scrolls) == before
    notebook.execute("token_text.observe(query_changed, 'query')")
