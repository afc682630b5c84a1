"""The three canvases in JupyterLab, over synthetic attention: what they draw, what Python hears, what the keys do."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.browser.canvas_data import CELLS
from tests.browser.open_notebook import opened
from tests.browser.spies import SPIES

HOSTILE = '<img src=x onerror="globalThis.wasRun = true">'


@pytest.fixture(scope="module")
def shown_canvases(lab, browser):
    with opened(lab, browser, CELLS, "canvases.ipynb", SPIES) as notebook:
        notebook.run()
        notebook.page.locator(".sinkscope-text").scroll_into_view_if_needed()
        yield notebook


@pytest.fixture
def notebook(shown_canvases):
    """The page of all tests here, with the whole map of head 0, query 40, nothing evicted and no pointer over it."""
    shown_canvases.page.mouse.move(5, 5)
    shown_canvases.execute(
        "answers_held = tiles_held = False; holder.children = []\n"
        "atlas.order = list(range(LAYERS * HEADS)); atlas.selected = 0\n"
        "token_text.tokens = tokens; token_text.evicted = []; token_text.mode = 'query'; token_text.can_evict = True\n"
        "atlas.dimmed = head_map.dimmed = token_text.dimmed = False\n"
        "head_map.view = []; query_changed(type('Change', (), {'new': 40})); head_map.tokens = tokens\n"
        "fill_atlas(); send_tile(); send_row(); asked.clear(); hovers.clear()"
    )
    settle(shown_canvases)
    yield shown_canvases
    shown_canvases.check()


def settle(notebook):
    """Wait until the canvases show the last frames that Python sent."""
    for widget, name in (("atlas", "atlas"), ("head_map", "map"), ("token_text", "text")):
        notebook.drawn(canvas(notebook, name), request=notebook.python(f"{widget}.frame['request']"))


def canvas(notebook, name):
    return notebook.page.locator(f".sinkscope-{name} canvas").first


def tip(notebook, name):
    return notebook.page.locator(f".sinkscope-{name} .sinkscope-tip").first


def token(notebook, place):
    return notebook.page.locator(".sinkscope-text .sinkscope-token").nth(place)


def hover(notebook, query, key):
    canvas(notebook, "map").hover(position=notebook.place_of_cell(canvas(notebook, "map"), query, key))


def wait_for_text(locator, text):
    locator.filter(has_text=text).wait_for()


def probability_of(notebook, query, key, unit=0):
    return notebook.python(f"float(attention[{unit}][0][{query}, {key}])")


def map_view(notebook, request=None):
    return notebook.drawn(canvas(notebook, "map"), request=request).view


# --- the atlas


def test_the_atlas_holds_every_heads_thumbnail_as_python_made_it(notebook):
    drawn = notebook.drawn(canvas(notebook, "atlas"))
    expected = np.frombuffer(bytes(notebook.python("list(atlas.pixels)")), np.uint8).reshape(-1, 32, 32)
    np.testing.assert_array_equal(drawn.pixels, expected)
    assert canvas(notebook, "atlas").get_attribute("data-caption") == "dense"


def test_the_brightest_pixel_of_a_thumbnail_is_yellow_and_the_unseen_corner_dark_purple(notebook):
    """The ends of the colour table, read from the canvas: the sink of query 0 has probability 1."""
    pick = "c => [[3, 3], [34, 5]].map(([x, y]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data])"
    sink, future = canvas(notebook, "atlas").evaluate(pick.replace("[3, 3]", "[41, 1]").replace("[34, 5]", "[74, 5]"))
    np.testing.assert_allclose(sink, [0xFD, 0xE7, 0x25, 255], atol=2)
    np.testing.assert_allclose(future, [0x44, 0x01, 0x54, 255], atol=2)


def test_clicking_a_thumbnail_selects_its_head_in_python(notebook):
    notebook.click_head(canvas(notebook, "atlas"), 7)
    notebook.wait_for("atlas.selected == 7")
    wait_for_text(notebook.page.locator(".sinkscope-atlas [aria-live]"), "layer 1, head 2: sink mass 0.1")


def test_arrow_keys_home_and_end_move_the_selection_over_the_grid(notebook):
    notebook.click_head(canvas(notebook, "atlas"), 6)
    for key, unit in [
        ("ArrowRight", 7),
        ("ArrowDown", 12),
        ("ArrowLeft", 11),
        ("ArrowUp", 6),
        ("End", 19),
        ("Home", 0),
    ]:
        notebook.page.keyboard.press(key)
        notebook.wait_for(f"atlas.selected == {unit}")
    notebook.page.keyboard.press("ArrowUp")  # nothing is above the first row
    notebook.page.keyboard.press("ArrowRight")
    notebook.wait_for("atlas.selected == 1")


def thumbnail(notebook, place):
    """The pixels at a place of the grid of five columns, 40 css pixels wide each."""
    corner = [40 * (place % 5) + 1, 40 * (place // 5) + 1]
    read = "(c, [x, y]) => [...c.getContext('2d').getImageData(x, y, 38, 38).data]"
    return canvas(notebook, "atlas").evaluate(read, corner)


def test_a_new_order_moves_the_thumbnails_and_what_keys_and_clicks_select(notebook):
    before = {place: thumbnail(notebook, place) for place in (1, 18)}
    notebook.execute("atlas.order = list(range(LAYERS * HEADS))[::-1]")
    notebook.page.wait_for_function("c => c.sinkscope.order[0] === 19", arg=canvas(notebook, "atlas").element_handle())
    assert before[1] != before[18]
    assert thumbnail(notebook, 18) == before[1] and thumbnail(notebook, 1) == before[18]
    canvas(notebook, "atlas").click(position={"x": 10, "y": 10})
    notebook.wait_for("atlas.selected == 19")
    notebook.page.keyboard.press("ArrowRight")
    notebook.wait_for("atlas.selected == 18")


def test_hovering_a_thumbnail_names_its_head_and_score(notebook):
    canvas(notebook, "atlas").hover(position={"x": 130, "y": 90})
    score = notebook.python("atlas.scores[13]")
    wait_for_text(tip(notebook, "atlas"), f"layer 2, head 3: sink mass {float(f'{score:.3g}')}")


# --- the map


def test_the_map_holds_the_tile_as_python_made_it(notebook):
    drawn = notebook.drawn(canvas(notebook, "map"))
    assert drawn.view == [0, 64, 0, 64]
    expected = np.frombuffer(bytes(notebook.python("list(head_map.pixels)")), np.uint8).reshape(64, 64)
    np.testing.assert_array_equal(drawn.pixels, expected)


def test_a_bright_column_narrower_than_a_pixel_stays_bright(notebook):
    """1000 columns on some 350 pixels: pooling takes the largest, so each of three single columns is still yellow."""
    notebook.execute(
        "tile = np.ones((1000, 1000), np.uint8); tile[:, [3, 501, 998]] = 255\n"
        "with head_map.hold_sync():\n"
        "    head_map.pixels = tile.tobytes()\n"
        "    head_map.frame = {**head_map.frame, 'rows': 1000, 'cols': 1000, 'request': next(requests)}"
    )
    drawn = notebook.drawn(canvas(notebook, "map"), request=notebook.python("head_map.frame['request']"))
    line = "(c, [x, y, side]) => [...c.getContext('2d').getImageData(x, y, side, 1).data]"
    place = [drawn.area["x"], drawn.area["y"] + 20, drawn.area["side"]]
    red = np.array(canvas(notebook, "map").evaluate(line, place)).reshape(-1, 4)[:, 0]
    (bright,) = np.nonzero(red > 200)
    expected = np.array([3.5, 501.5, 998.5]) / 1000 * drawn.area["side"] - 0.5
    assert [np.abs(bright - column).min() < 1 for column in expected] == [True] * 3
    assert 3 <= len(bright) <= 6


def test_zooming_with_the_wheel_asks_for_a_tile_around_the_pointer_and_draws_it(notebook):
    hover(notebook, 50, 10)
    notebook.page.mouse.wheel(0, -100)
    q0, q1, k0, k1 = notebook.wait_for("asked and asked[-1]")
    assert q0 <= 50 < q1 and k0 <= 10 < k1
    assert q1 - q0 == k1 - k0 == 51
    drawn = notebook.drawn(canvas(notebook, "map"), request=notebook.python("head_map.frame['request']"))
    assert drawn.frame["query"] == [q0, q1] and drawn.frame["key"] == [k0, k1] and drawn.pixels.shape == (51, 51)
    expected = notebook.python(f"on_scale(attention[0][0])[50, {k0}:{k1}].tolist()")
    row = drawn.pixels[50 - q0]
    np.testing.assert_array_equal(row[: 51 - k0], expected[: 51 - k0])


def test_keys_zoom_pan_and_show_everything(notebook):
    notebook.page.locator(".sinkscope-map canvas").focus()
    views = {}
    for key in ["+", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "-", "+", "+", "0"]:
        before = map_view(notebook)
        notebook.page.keyboard.press(key)
        handle = canvas(notebook, "map").element_handle()
        notebook.page.wait_for_function(
            "([c, v]) => String(c.sinkscope.view) !== v", arg=[handle, ",".join(map(str, before))]
        )
        views[key] = (before, map_view(notebook))
    assert views["ArrowDown"] == ([16, 48, 16, 48], [20, 52, 16, 48])
    assert views["ArrowRight"][1] == [20, 52, 20, 52]
    assert views["ArrowLeft"][1] == [16, 48, 16, 48]
    assert views["-"][1] == [0, 64, 0, 64]
    assert views["0"] == ([24, 40, 24, 40], [0, 64, 0, 64])
    notebook.wait_for("head_map.view == [0, 64, 0, 64]")


def test_the_buttons_zoom_and_show_everything(notebook):
    notebook.page.get_by_role("button", name="zoom in").click()
    notebook.wait_for("asked == [[16, 48, 16, 48]]")
    notebook.page.get_by_role("button", name="show the whole map").click()
    notebook.wait_for("asked[1:] == [[0, 64, 0, 64]]")


def drag(notebook, start, end, *, shift=False):
    box = canvas(notebook, "map").bounding_box()
    points = [notebook.place_of_cell(canvas(notebook, "map"), *cell) for cell in (start, end)]
    if shift:
        notebook.page.keyboard.down("Shift")
    notebook.page.mouse.move(box["x"] + points[0]["x"], box["y"] + points[0]["y"])
    notebook.page.mouse.down()
    notebook.page.mouse.move(box["x"] + points[1]["x"], box["y"] + points[1]["y"], steps=4)
    notebook.page.mouse.up()
    if shift:
        notebook.page.keyboard.up("Shift")


def test_dragging_with_shift_zooms_into_the_box(notebook):
    drag(notebook, (30, 5), (49, 24), shift=True)
    notebook.wait_for("asked[-1:] == [[30, 50, 5, 25]]")
    assert notebook.python("head_map.query") == 40  # a drag chooses no query


def test_dragging_moves_the_map_with_the_pointer(notebook):
    notebook.page.get_by_role("button", name="zoom in").click()
    notebook.wait_for("asked == [[16, 48, 16, 48]]")
    settle(notebook)
    drag(notebook, (30, 30), (26, 35))
    notebook.wait_for("head_map.view == [20, 52, 11, 43]")


def test_one_tile_is_asked_for_at_a_time_and_the_last_wish_is_kept(notebook):
    notebook.execute("tiles_held = True")
    hover(notebook, 30, 30)
    for _ in range(4):
        notebook.page.mouse.wheel(0, -100)
    canvas(notebook, "map").evaluate("() => new Promise(done => setTimeout(done, 300))")
    assert notebook.python("len(asked)") == 1
    wanted = map_view(notebook)
    assert wanted[1] - wanted[0] == 25  # 64, 51, 40, 32, 25: shown stretched at once
    notebook.execute("tiles_held = False; send_tile()")
    assert notebook.wait_for("len(asked) == 2 and asked[1]") == wanted


def test_the_view_of_another_text_is_forgotten(notebook):
    notebook.page.get_by_role("button", name="zoom in").click()
    notebook.wait_for("asked == [[16, 48, 16, 48]]")
    notebook.execute(
        "tiles_held = True\nwith head_map.hold_sync():\n"
        "    head_map.pixels = bytes([255] * 100)\n"
        "    head_map.frame = {**head_map.frame, 'rows': 10, 'cols': 10, 'query': [0, 10], 'key': [0, 10],\n"
        "                      'length': 10, 'request': next(requests)}\n"
    )
    assert map_view(notebook, notebook.python("head_map.frame['request']")) == [0, 10, 0, 10]
    assert notebook.python("head_map.view") == []


def test_clicking_the_map_chooses_the_query(notebook):
    canvas(notebook, "map").click(position=notebook.place_of_cell(canvas(notebook, "map"), 52, 3))
    notebook.wait_for("head_map.query == 52 and token_text.query == 52")


def test_hovering_shows_both_tokens_and_the_numbers_that_python_answered(notebook):
    hover(notebook, 40, 39)
    exact = probability_of(notebook, 40, 39)
    logit = notebook.python("float(attention[0][1][40, 39])")
    wait_for_text(
        tip(notebook, "map"), f"probability {float(f'{exact:.3g}')} · logit {float(f'{logit:.3g}')}".replace("-", "−")
    )
    assert tip(notebook, "map").locator("div").all_inner_texts()[:2] == ["query 40 ␣the", "key 39 ␣away"]


def test_a_key_that_is_not_seen_has_no_numbers(notebook):
    hover(notebook, 20, 50)
    wait_for_text(tip(notebook, "map"), "not seen by this query")


def test_the_answer_to_a_cell_that_the_pointer_left_is_not_shown(notebook):
    notebook.execute("answers_held = True")
    hover(notebook, 40, 39)
    notebook.wait_for("len(hovers) == 1")
    hover(notebook, 41, 38)
    notebook.wait_for("len(hovers) == 2")
    notebook.execute("answer(hovers[0])")
    notebook.page.wait_for_timeout(200)
    wait_for_text(tip(notebook, "map"), "key 38")
    assert "probability … · logit …" in tip(notebook, "map").inner_text()
    notebook.execute("answer(hovers[1])")
    wait_for_text(tip(notebook, "map"), f"probability {float(f'{probability_of(notebook, 41, 38):.3g}')}")


def test_numbers_of_the_head_before_vanish_and_its_late_answer_is_not_shown(notebook):
    hover(notebook, 40, 39)
    wait_for_text(tip(notebook, "map"), "probability 0.")
    notebook.execute("answers_held = True; atlas.selected = 3")
    wait_for_text(tip(notebook, "map"), "probability … · logit …")
    notebook.wait_for("len(hovers) == 2")
    notebook.execute("head_map.answer(hovers[0], 0.999, 9.99)")
    notebook.page.wait_for_timeout(200)
    assert "0.999" not in tip(notebook, "map").inner_text()
    notebook.execute("answer(hovers[1])")
    wait_for_text(tip(notebook, "map"), f"probability {float(f'{probability_of(notebook, 40, 39, unit=3):.3g}')}")


def test_the_keyboard_reads_cells_and_chooses_their_query(notebook):
    canvas(notebook, "map").focus()
    notebook.page.keyboard.press("Shift+ArrowLeft")
    notebook.page.keyboard.press("Shift+ArrowDown")
    spoken = notebook.page.locator(".sinkscope-map [aria-live]")
    wait_for_text(
        spoken, f"query 41 ␣quick, key 39 ␣away, probability {float(f'{probability_of(notebook, 41, 39):.3g}')}"
    )
    notebook.page.keyboard.press("Enter")
    notebook.wait_for("head_map.query == 41")


def written(notebook, name):
    return [text for text, _ in canvas(notebook, name).evaluate("c => c.written")]


def test_token_texts_stand_along_the_axes_once_there_is_room(notebook):
    canvas(notebook, "map").evaluate("c => { c.written = []; }")
    notebook.execute("send_tile()")
    settle(notebook)
    assert "20" in written(notebook, "map") and not any("quick" in text for text in written(notebook, "map"))
    notebook.execute("head_map.view = [0, 16, 0, 16]")
    settle(notebook)
    texts = written(notebook, "map")
    assert {"<s>", "↵", "⇥", "␣quick", "13"} <= set(texts)
    assert {"query (reading token)", "key (seen token)", "log10 probability", "−3"} <= set(texts)


def test_a_preview_says_so_over_the_map(notebook):
    notebook.execute("send_tile(preview='preview: not causal, columns hidden')")
    wait_for_text(notebook.page.locator(".sinkscope-ribbon"), "preview: not causal, columns hidden")
    notebook.execute("send_tile()")
    notebook.page.locator(".sinkscope-ribbon").wait_for(state="hidden")


# --- the text


def test_the_text_holds_the_row_and_says_each_tokens_value(notebook):
    drawn = notebook.drawn(canvas(notebook, "text"))
    np.testing.assert_allclose(drawn.values[:41], notebook.python("attention[0][0][40, :41].tolist()"), rtol=1e-6)
    assert np.isnan(drawn.values[41:]).all()
    exact = probability_of(notebook, 40, 38)
    said = f'token 38 "␣runs": probability {float(f"{exact:.3g}")}'
    assert token(notebook, 38).get_attribute("aria-label") == token(notebook, 38).get_attribute("title") == said
    assert token(notebook, 50).get_attribute("title") == 'token 50 "␣runs": not seen by this query'


def test_more_attention_is_a_stronger_shade(notebook):
    colours = [
        token(notebook, place).locator("span").evaluate("s => getComputedStyle(s).backgroundColor")
        for place in (30, 36, 39)
    ]
    blue = [int(re.findall(r"\d+", colour)[2]) for colour in colours]  # white loses its blue towards amber
    assert blue[0] > blue[1] > blue[2]


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


# --- all three


def test_hostile_tokens_stay_text_everywhere(notebook):
    assert token(notebook, 1).inner_text() == HOSTILE
    assert token(notebook, 1).get_attribute("title").startswith('token 1 "<img␣src=x␣onerror=')
    hover(notebook, 40, 1)
    wait_for_text(tip(notebook, "map"), "key 1 <img␣src=x␣…")
    canvas(notebook, "map").evaluate("c => { c.written = []; }")
    notebook.execute("head_map.view = [0, 16, 0, 16]")
    settle(notebook)
    assert "<img␣src=x␣…" in written(notebook, "map")
    notebook.execute(
        "atlas.frame = {**atlas.frame, 'labels': [tokens[1]] * 20, 'caption': tokens[1], 'request': next(requests)}"
    )
    settle(notebook)
    canvas(notebook, "atlas").hover(position={"x": 60, "y": 60})
    wait_for_text(tip(notebook, "atlas"), HOSTILE)
    notebook.execute("send_tile(preview=tokens[1])")
    wait_for_text(notebook.page.locator(".sinkscope-ribbon"), HOSTILE)
    assert notebook.page.locator(".sinkscope img").count() == 0
    assert notebook.page.evaluate("() => globalThis.wasRun") is None


def test_direction_marks_do_not_turn_the_text_round(notebook):
    assert token(notebook, 30).inner_text() == "�evil"


def test_jupyterlab_takes_no_key_from_the_canvases(notebook):
    """b adds a cell, x cuts one and the arrows choose another one, if JupyterLab gets them."""
    state = "() => { const c = jupyterapp.shell.currentWidget.content; return [c.widgets.length, c.activeCellIndex]; }"
    before = notebook.page.evaluate(state)
    for focused in (".sinkscope-atlas canvas", ".sinkscope-map canvas", ".sinkscope-token[tabindex='0']"):
        notebook.page.locator(focused).focus()
        for key in ["b", "x", "ArrowUp", "ArrowDown", "Escape", "b"]:
            notebook.page.keyboard.press(key)
    notebook.page.wait_for_timeout(200)
    assert notebook.page.evaluate(state) == before


def test_everything_has_a_name_for_screen_readers(notebook):
    labels = {name: canvas(notebook, name).get_attribute("aria-label") for name in ("atlas", "map", "text")}
    assert re.match(
        r"20 attention heads, dense. Selected: layer 0, head 0: sink mass 0\.\d+\. Arrow keys", labels["atlas"]
    )
    assert labels["map"].startswith(
        "Attention map, dense, head 0: queries 0 to 63, keys 0 to 63 of 64 tokens, log10 probability."
    )
    assert labels["map"].endswith('Chosen query: token 40 "␣the".')
    assert re.fullmatch(
        r'dense, query 40: probability of 64 keys for query token 40 "␣the", largest 0\.\d+ at token \d+ "␣\w+"',
        labels["text"],
    )
    help_id = canvas(notebook, "map").get_attribute("aria-describedby")
    assert "Arrow keys" in notebook.page.locator(f"[id='{help_id}']").inner_text()
    assert notebook.page.get_by_role("listbox").get_attribute("aria-label").startswith("tokens of the text")
    assert notebook.page.get_by_role("listbox").get_by_role("option").count() == 64
    controls = "[...document.querySelectorAll('.sinkscope :is(button, input)')]"
    assert notebook.page.evaluate(f"() => {controls}.filter(e => !e.ariaLabel && !e.labels?.length).length") == 0


def test_a_stale_canvas_is_dimmed_and_busy(notebook):
    notebook.execute("atlas.dimmed = head_map.dimmed = token_text.dimmed = True")
    for name in ("atlas", "map", "text"):
        notebook.page.locator(f".sinkscope-{name}[aria-busy='true'] canvas[aria-busy='true']").wait_for()
        assert canvas(notebook, name).evaluate("c => getComputedStyle(c).opacity") == "0.5"
    notebook.execute("atlas.dimmed = head_map.dimmed = token_text.dimmed = False")
    notebook.page.wait_for_function("() => !document.querySelector('.sinkscope[aria-busy=\"true\"]')")


def test_a_canvas_without_a_frame_shows_nothing(notebook):
    notebook.execute("for w in (atlas, head_map, token_text): w.frame = {}\ntoken_text.values = b''")
    notebook.page.wait_for_function(
        "() => [...document.querySelectorAll('.sinkscope canvas')].every(c => !c.sinkscope && !c.width)"
    )


def test_both_themes_are_drawn_in_their_own_ink_over_the_whole_width(notebook):
    inks = {}
    for theme in ("dark", "light"):
        canvas(notebook, "map").evaluate("c => { c.written = []; }")
        notebook.theme(theme)
        notebook.page.wait_for_function(
            "c => c.written.some(([text]) => text === 'key (seen token)')", arg=canvas(notebook, "map").element_handle()
        )
        notebook.page.wait_for_timeout(500)
        notebook.screenshot(f"canvases_{theme}")
        inks[theme] = dict(map(tuple, canvas(notebook, "map").evaluate("c => c.written")))["key (seen token)"]
        widths = [canvas(notebook, "text").evaluate(f"c => c{up}.clientWidth") for up in ("", ".parentElement")]
        assert widths[0] == widths[1]
    light = {theme: sum(int(ink[at : at + 2], 16) for at in (1, 3, 5)) for theme, ink in inks.items()}
    assert light["dark"] > 600 and light["light"] < 200


def test_a_canvas_hidden_for_less_than_a_frame_is_still_redrawn(notebook):
    """As JupyterLab does it while it changes its theme: no size observer sees it."""
    redrawn = notebook.page.evaluate("""async () => {
        const root = document.querySelector(".sinkscope-text");
        const canvas = root.querySelector("canvas");
        const frame = () => new Promise(done => requestAnimationFrame(done));
        await new Promise(done => setTimeout(done)); // outside of a frame, so that no size is looked at in between
        canvas.written = [];
        root.style.display = "none";
        document.body.dataset.jpThemeName += " "; // the canvas plans to draw in the next frame
        await Promise.resolve();
        await frame();
        root.style.display = "";
        for (let i = 0; i < 4; i++) await frame();
        document.body.dataset.jpThemeName = document.body.dataset.jpThemeName.trim();
        return canvas.written.length > 0 && canvas.clientWidth === canvas.parentElement.clientWidth;
    }""")
    assert redrawn


def test_a_canvas_has_the_pixels_of_a_fine_screen(notebook):
    size = {"width": 1280, "height": 800, "mobile": False}
    session = notebook.page.context.new_cdp_session(notebook.page)
    session.send("Emulation.setDeviceMetricsOverride", {**size, "deviceScaleFactor": 2})
    try:
        notebook.execute("fill_atlas(); send_tile(); send_row()")
        settle(notebook)
        for name in ("atlas", "map", "text"):
            assert canvas(notebook, name).evaluate("c => c.width / c.clientWidth") == 2
    finally:
        session.send("Emulation.clearDeviceMetricsOverride")
        session.detach()


def test_two_views_of_one_widget_show_and_select_the_same(notebook):
    notebook.execute("holder.children = [atlas]")
    second = notebook.page.locator(".sinkscope-atlas canvas").nth(1)
    second.wait_for()
    notebook.click_head(second, 9)
    notebook.wait_for("atlas.selected == 9")
    notebook.execute("fill_atlas('second')")
    request = notebook.python("atlas.frame['request']")
    for view in (canvas(notebook, "atlas"), second):
        assert notebook.drawn(view, request=request).frame["caption"] == "second"


def test_closing_a_view_leaves_no_listener_and_no_drawing(notebook):
    listening = "() => globalThis.listening()"
    before = notebook.page.evaluate(listening)
    assert {"ResizeObserver", "MutationObserver", "canvas wheel", "canvas keydown"} <= set(before)
    notebook.execute("holder.children = [atlas, head_map, token_text]")
    last = notebook.page.locator(".sinkscope-text canvas").nth(1)
    notebook.drawn(last)
    closed = [
        notebook.page.locator(f".sinkscope-{name} canvas").nth(1).element_handle() for name in ("atlas", "map", "text")
    ]
    assert len(notebook.page.evaluate(listening)) == 2 * len(before)
    notebook.execute("holder.children = []")
    last.wait_for(state="detached")
    assert notebook.page.evaluate(listening) == before
    shown = [handle.evaluate("c => c.dataset.request") for handle in closed]
    notebook.execute("fill_atlas(); send_tile(); send_row()")
    settle(notebook)
    assert [handle.evaluate("c => c.dataset.request") for handle in closed] == shown


def test_closing_a_widget_leaves_no_listener(notebook):
    before = notebook.page.evaluate("() => globalThis.listening()")
    notebook.execute("more = [Atlas(), HeadMap(), TokenText()]; holder.children = more")
    notebook.page.wait_for_function("n => globalThis.listening().length === 2 * n", arg=len(before))
    notebook.execute("holder.children = []\nfor widget in more: widget.close()")
    notebook.page.wait_for_function(
        "before => JSON.stringify(listening()) === before", arg=json.dumps(before, separators=(",", ":"))
    )
