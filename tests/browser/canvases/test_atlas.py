"""The overview of all heads: its thumbnails, and how one of them is selected."""

from __future__ import annotations

import numpy as np

from tests.browser.canvases.page import canvas, tip, wait_for_text, written


def test_the_atlas_holds_every_heads_thumbnail_as_python_made_it(notebook):
    drawn = notebook.drawn(canvas(notebook, "atlas"))
    expected = np.frombuffer(bytes(notebook.python("list(atlas.pixels)")), np.uint8).reshape(-1, 32, 32)
    np.testing.assert_array_equal(drawn.pixels, expected)
    assert canvas(notebook, "atlas").get_attribute("data-caption") == "dense"


def test_the_brightest_pixel_of_a_thumbnail_is_yellow_and_the_unseen_corner_dark_purple(notebook):
    """The ends of the colour table, read from the canvas: the sink of query 0 has probability 1."""
    pick = "(c, points) => points.map(({x, y}) => [...c.getContext('2d').getImageData(x, y, 1, 1).data])"
    points = [notebook.place_of_head(canvas(notebook, "atlas"), 1, *part) for part in ((0.05, 0.05), (0.85, 0.12))]
    sink, future = canvas(notebook, "atlas").evaluate(pick, points)
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
    """The pixels at a place of the grid."""
    cells = notebook.drawn(canvas(notebook, "atlas")).cells
    corner = notebook.place_of_head(canvas(notebook, "atlas"), place, 0, 0)
    read = "(c, [x, y, wide, high]) => [...c.getContext('2d').getImageData(x + 1, y + 1, wide - 2, high - 2).data]"
    return canvas(notebook, "atlas").evaluate(read, [corner["x"], corner["y"], cells["wide"], cells["high"]])


def test_a_new_order_moves_the_thumbnails_and_what_keys_and_clicks_select(notebook):
    before = {place: thumbnail(notebook, place) for place in (1, 18)}
    notebook.execute("atlas.order = list(range(LAYERS * HEADS))[::-1]")
    notebook.page.wait_for_function("c => c.sinkscope.order[0] === 19", arg=canvas(notebook, "atlas").element_handle())
    assert before[1] != before[18]
    assert thumbnail(notebook, 18) == before[1] and thumbnail(notebook, 1) == before[18]
    canvas(notebook, "atlas").click(position=notebook.place_of_head(canvas(notebook, "atlas"), 0))
    notebook.wait_for("atlas.selected == 19")
    notebook.page.keyboard.press("ArrowRight")
    notebook.wait_for("atlas.selected == 18")


def test_hovering_a_thumbnail_names_its_head_and_score(notebook):
    canvas(notebook, "atlas").hover(position=notebook.place_of_head(canvas(notebook, "atlas"), 13))
    score = notebook.python("atlas.scores[13]")
    wait_for_text(tip(notebook, "atlas"), f"layer 2, head 3: sink mass {float(f'{score:.3g}')}")


def test_keys_that_are_not_seen_let_the_page_through(notebook):
    notebook.execute(
        "with atlas.hold_sync():\n"
        "    atlas.pixels = bytes(len(atlas.pixels))\n"
        "    atlas.frame = {**atlas.frame, 'request': next(requests)}\n"
    )
    notebook.drawn(canvas(notebook, "atlas"), request=notebook.python("atlas.frame['request']"))
    middle = notebook.place_of_head(canvas(notebook, "atlas"), 1)  # of a thumbnail that has no outline
    pixel = "(canvas, {x, y}) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]"
    assert canvas(notebook, "atlas").evaluate(pixel, middle) == [0, 0, 0, 0]


def test_layers_and_heads_are_numbered_and_in_another_order_the_ranks_of_the_rows(notebook):
    rows, columns = {"0", "1", "2", "3"}, {"4"}
    assert rows | columns <= set(written(notebook, "atlas"))
    legend = notebook.page.locator(".sinkscope-atlas .sinkscope-hint")
    wait_for_text(legend, "layers down, heads across")
    assert "1e−5" in legend.inner_text() and "log scale" in legend.inner_text()
    canvas(notebook, "atlas").evaluate("c => { c.written = []; }")
    notebook.execute("atlas.order = [7, *range(7), *range(8, LAYERS * HEADS)]")
    wait_for_text(legend, "numbered by rank")
    assert set(written(notebook, "atlas")) == {"1", "6", "11", "16"}
