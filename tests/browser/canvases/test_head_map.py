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
    """1000 columns on a few hundred pixels: the largest is taken, so each of three single columns is still yellow."""
    notebook.execute(
        "tile = np.ones((1000, 1000), np.uint8); tile[:, [3, 501, 998]] = 255\n"
        "with head_map.hold_sync():\n"
        "    head_map.pixels, head_map.sinks = tile.tobytes(), tile[:, :4].tobytes()\n"
        "    head_map.frame = {**head_map.frame, 'rows': 1000, 'cols': 1000, 'request': next(requests)}"
    )
    drawn = notebook.drawn(canvas(notebook, "map"), request=notebook.python("head_map.frame['request']"))
    line = "(c, [x, y, wide]) => [...c.getContext('2d').getImageData(x, y, wide, 1).data]"
    place = [drawn.area["x"], drawn.area["y"] + 20, drawn.area["wide"]]
    red = np.array(canvas(notebook, "map").evaluate(line, place)).reshape(-1, 4)[:, 0]
    (bright,) = np.nonzero(red > 200)
    expected = np.array([3.5, 501.5, 998.5]) / 1000 * drawn.area["wide"] - 0.5
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
        "    head_map.pixels, head_map.sinks = bytes([255] * 100), bytes([255] * 40)\n"
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


def strip_point(notebook, query, key):
    """The middle of a cell of the strip, in css pixels of the canvas."""
    drawn = notebook.drawn(canvas(notebook, "map"))
    (q0, q1), (low, stop) = drawn.view[:2], drawn.strip["keys"]
    x = drawn.strip["x"] + (key - low + 0.5) / (stop - low) * drawn.strip["wide"]
    return {"x": x, "y": drawn.area["y"] + (query + 0.5 - q0) / (q1 - q0) * drawn.area["high"]}


def test_the_strip_holds_the_first_keys_each_several_pixels_wide_in_the_colours_of_the_map(notebook):
    drawn = notebook.drawn(canvas(notebook, "map"))
    np.testing.assert_array_equal(drawn.sinks, drawn.pixels[:, :4])
    assert drawn.strip["wide"] >= 4 * 10 and drawn.strip["x"] + drawn.strip["wide"] < drawn.area["x"]
    pick = "(c, points) => points.map(({x, y}) => [...c.getContext('2d').getImageData(x, y, 1, 1).data])"
    cells = [(6, 0), (6, 2), (1, 3)]
    in_strip = canvas(notebook, "map").evaluate(pick, [strip_point(notebook, *cell) for cell in cells])
    in_map = [notebook.place_of_cell(canvas(notebook, "map"), *cell) for cell in cells]
    assert in_strip == canvas(notebook, "map").evaluate(pick, in_map)
    assert in_strip[0][1] > in_strip[1][1] and in_strip[2] == [0, 0, 0, 0]  # what is not seen lets the page through


def test_numbers_read_back_from_the_strip_are_the_records_to_the_last_digit_shown_also_after_zooming(notebook):
    for view in ([], [40, 60, 30, 50]):
        notebook.execute(f"head_map.view = {view}")
        settle(notebook)
        for query, key in ((44, 0), (58, 3)):
            canvas(notebook, "map").hover(position=strip_point(notebook, query, key))
            exact = probability_of(notebook, query, key)
            mantissa, exponent = f"{exact:.1e}".split("e")
            said = f"{float(f'{exact:.3g}')}" if exact >= 1e-3 else f"{mantissa.removesuffix('.0')}e−{-int(exponent)}"
            wait_for_text(tip(notebook, "map"), f"probability {said} ·")
            assert tip(notebook, "map").locator("div").all_inner_texts()[1].startswith(f"key {key} ")
        assert notebook.drawn(canvas(notebook, "map")).sinks.shape[1] == 4


def test_a_mass_near_one_is_told_by_what_it_lacks(notebook):
    notebook.execute("answers_held = True")
    hover(notebook, 40, 39)
    notebook.wait_for("len(hovers) == 1")
    for probability, said in ((1 - 2e-6, "1 − 2e−6"), (0.99951, "1 − 4.9e−4"), (0.9994, "0.999"), (1.0, "1")):
        notebook.execute(f"head_map.answer(hovers[0], {probability!r}, 3.0)")
        wait_for_text(tip(notebook, "map"), f"probability {said} · logit 3")


def test_the_keyboard_goes_from_the_map_into_the_strip_and_back(notebook):
    notebook.execute("head_map.view = [40, 60, 30, 50]")
    settle(notebook)
    canvas(notebook, "map").focus()
    spoken = notebook.page.locator(".sinkscope-map [aria-live]")
    for key in ["Shift+ArrowLeft"] * 11:
        notebook.page.keyboard.press(key)
    wait_for_text(spoken, "key 3 ")
    notebook.page.keyboard.press("Shift+ArrowRight")
    wait_for_text(spoken, "key 30 ")


def test_no_line_on_the_map_hides_a_cell(notebook):
    """Only what lies at the edge of a cell, or where nothing is seen, may have another colour than its value says."""
    notebook.execute("query_changed(type('Change', (), {'new': 30}))")
    settle(notebook)
    drawn = notebook.drawn(canvas(notebook, "map"))
    middle = [notebook.place_of_cell(canvas(notebook, "map"), q, k) for q in (29, 30, 31, 63) for k in (0, 15, 29)]
    pick = "(c, points) => points.map(({x, y}) => [...c.getContext('2d').getImageData(x, y, 1, 1).data])"
    found = canvas(notebook, "map").evaluate(pick, middle)
    bytes_of = [int(drawn.pixels[q, k]) for q in (29, 30, 31, 63) for k in (0, 15, 29)]
    same = {}
    for colour, byte in zip(found, bytes_of, strict=True):
        assert same.setdefault(byte, colour) == colour and colour[3] == 255


def test_a_preview_says_so_over_the_map(notebook):
    notebook.execute("send_tile(preview='preview: not causal, columns hidden')")
    wait_for_text(notebook.page.locator(".sinkscope-ribbon"), "preview: not causal, columns hidden")
    notebook.execute("send_tile()")
    notebook.page.locator(".sinkscope-ribbon").wait_for(state="hidden")
