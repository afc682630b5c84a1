"""The overview of all heads: its thumbnails, and how one of them is selected."""

from __future__ import annotations

import numpy as np

from tests.browser.canvases.page import canvas, tip, wait_for_text


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


def test_keys_that_are_not_seen_let_the_page_through(notebook):
    notebook.execute(
        "with atlas.hold_sync():\n"
        "    atlas.pixels = bytes(len(atlas.pixels))\n"
        "    atlas.frame = {**atlas.frame, 'request': next(requests)}\n"
    )
    drawn = notebook.drawn(canvas(notebook, "atlas"), request=notebook.python("atlas.frame['request']"))
    middle = [round(1.5 * drawn.cell), round(0.5 * drawn.cell)]  # of a thumbnail that has no outline
    pixel = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]"
    assert canvas(notebook, "atlas").evaluate(pixel, middle) == [0, 0, 0, 0]
