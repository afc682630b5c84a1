"""The map of one head: tiles, zoom, pan, hover, and the keys that do the same."""

from __future__ import annotations

import numpy as np

from tests.browser.canvases.page import canvas, hover, map_view, probability_of, settle, tip, wait_for_text, written


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
