"""More to look at in the explorer: what JupyterLab shows is compared with what records say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.browser.test_explorer import HOSTILE, READY, SETUP, TOKENS, canvas, choose, read_back
from tests.support.open_notebook import opened

EXPECTED = """
def maps_of(heads, layers=(1,)):
    "Maps [head, query, key] of the model as it is."
    probe = sinkscope.Maps(layers=list(layers), resolution=None)
    with torch.no_grad(), sinkscope.attached(model, probes=[probe]) as scope:
        model(ids)
    return scope.array("attention_map").values[0].reshape(-1, *2 * [ids.shape[1]])[list(heads)]
"""
CELLS = [SETUP + EXPECTED + f"\nhostile_text = {HOSTILE!r}\n", "app = sinkscope.explore(model, Words(), ids)"]


@pytest.fixture(scope="module")
def page_of_this_module(lab, browser):
    with opened(lab, browser, CELLS, "looking.ipynb", ready=READY) as notebook:
        yield notebook


@pytest.fixture
def notebook(page_of_this_module):
    """The page of all tests here: the model as it is, layer 1, head 2, the last query."""
    page_of_this_module.execute(
        "app.controller.show(**vars(type(app.controller.map_options)())); app.pictures.map.view = []\n"
        "app.controller.reset(); app.controller.choose(6); app.controller.choose_query(95)"
    )
    page_of_this_module.wait_for(READY)
    yield page_of_this_module
    page_of_this_module.check()


def drawn_map(notebook):
    return notebook.drawn(canvas(notebook, "map"), request=notebook.python("app.pictures.map.frame['request']"))


@pytest.mark.parametrize(
    ("label", "heads", "kind"),
    [("mean of its layer", range(4), "mean"), ("maximum of its KV group", (2, 3), "max")],
)
def test_numbers_read_back_from_a_map_over_heads_are_those_of_the_record(notebook, label, heads, kind):
    expected = getattr(np.array(notebook.python(f"maps_of({list(heads)}).tolist()")), kind)(0)
    choose(notebook, "map of", label)
    notebook.wait_for(f"app.pictures.map.frame['caption'].startswith('{label.split()[0]} of')")
    drawn, seen = drawn_map(notebook), np.tri(TOKENS, dtype=bool)
    steps = 1 + 254 * (np.log10(np.maximum(expected, 1e-5)) + 5) / 5
    np.testing.assert_allclose(drawn.pixels[seen], steps[seen], atol=1)
    np.testing.assert_array_equal(drawn.sinks, drawn.pixels[:, :4])
    for query, key in ((60, 0), (90, 85), (41, 40)):
        canvas(notebook, "map").hover(position=notebook.place_of_cell(canvas(notebook, "map"), query, key))
        notebook.page.locator(".sinkscope-map .sinkscope-tip", has_text=f"query {query} ").wait_for()
        shown, digit = read_back(notebook, "probability")
        assert abs(shown - expected[query, key]) <= digit + 1e-7
    said = notebook.page.locator(".sinkscope-map .sinkscope-said").first.inner_text()
    assert said == notebook.python("app.controller.comparison.said") and "layer 1" in said
    text = notebook.drawn(canvas(notebook, "text"), request=notebook.python("app.pictures.text.frame['request']"))
    np.testing.assert_allclose(text.values, expected[95], atol=2e-6)
    notebook.screenshot(f"over-{kind}")


def test_what_cannot_be_a_mean_is_one_sentence_and_the_list_goes_back(notebook):
    notebook.execute("app.controller.show(scale='logit')")
    choose(notebook, "map of", "mean of all layers")
    notebook.page.get_by_role("alert").filter(has_text="logits of several heads").wait_for()
    assert notebook.python("app.map_controls.fields['over'].value") == "head"


def field(notebook, name):
    return notebook.page.get_by_label(name, exact=True).first


def status(notebook, text):
    notebook.page.locator(".sinkscope-finder [role=status]", has_text=text).wait_for()


def test_a_head_is_gone_to_by_its_numbers_and_one_that_is_not_there_says_which_are(notebook):
    for typed, unit in (("0.3", 3), ("layer 1, head 1", 5), ("L0H2", 2)):
        field(notebook, "go to head").fill(typed)
        notebook.page.keyboard.press("Enter")
        notebook.wait_for(f"app.controller.unit == {unit}")
    for typed in ("2.0", "1", "1.9", "head"):
        field(notebook, "go to head").fill(typed)
        notebook.page.keyboard.press("Enter")
        status(notebook, "no such head: give two numbers, such as 0.0; layers end at 1 and heads at 3")
    assert notebook.python("app.controller.unit") == 2


def test_tokens_are_found_by_text_and_place_and_the_next_one_follows(notebook):
    tokens = notebook.python("app.controller.tokens")
    word = tokens[30].strip()
    joined, places = "".join(tokens), []
    starts = np.cumsum([0, *map(len, tokens)])
    at = joined.find(word)
    while at >= 0:
        places.append(int(np.searchsorted(starts, at, side="right")) - 1)
        at = joined.find(word, at + 1)
    notebook.execute("app.controller.choose_query(0)")
    seen, box = [], field(notebook, "find token")
    box.fill(word.upper())  # case aside
    expected = [place for place in places if place > 0] + [place for place in places if place == 0]
    for place in expected:
        box.press("Enter")
        notebook.wait_for(f"app.controller.query == {place}")
        seen.append(place)
    assert seen == expected and len(seen) >= 1
    box.fill("41")
    box.press("Enter")
    notebook.wait_for("app.controller.query == 41")
    box.fill("onerror")
    notebook.page.get_by_role("button", name="next token found").click()
    notebook.wait_for("app.controller.query in (4, 5)")
    status(notebook, "<img")
    for nothing in ("no such words", "96", '""'):
        box.fill(nothing)
        box.press("Enter")
        status(notebook, "not found")
    assert notebook.page.locator(".sinkscope-app img").count() == 0


def test_a_query_chosen_in_the_losses_is_chosen_everywhere_and_brought_into_a_zoomed_map(notebook):
    notebook.execute("app.controller.show(region=(60, 90, 0, 30)); app.pictures.map.view = [60, 90, 0, 30]")
    chart = canvas(notebook, "losses")
    box = chart.bounding_box()
    chart.click(position={"x": 40 + (box["width"] - 48) * 20.5 / TOKENS, "y": 60})
    notebook.wait_for("app.controller.query == 20")
    assert notebook.python("[app.pictures.map.query, app.pictures.text.query, app.finder.query]") == [20, 20, 20]
    notebook.wait_for("app.pictures.map.view[0] <= 20 < app.pictures.map.view[1]")


def test_a_token_pointed_at_is_marked_in_every_picture(notebook):
    pixels = "c => c.toDataURL()"
    losses, the_map = canvas(notebook, "losses"), canvas(notebook, "map")
    drawn_map(notebook)
    the_map.evaluate("c => c.scrollIntoView({block: 'center'})")
    notebook.page.mouse.move(2, 2)
    notebook.page.wait_for_timeout(300)
    before = [each.evaluate(pixels) for each in (losses, the_map)]
    the_map.hover(position=notebook.place_of_cell(the_map, 50, 12))
    changed = "([c, old]) => c.toDataURL() !== old"
    notebook.page.wait_for_function(changed, arg=[losses.element_handle(), before[0]])
    marked = notebook.page.locator(".sinkscope-pointed-key")
    assert marked.get_attribute("data-place") == "12"
    assert notebook.page.locator(".sinkscope-pointed-query").get_attribute("data-place") == "50"
    notebook.page.locator(".sinkscope-token").nth(7).hover()
    notebook.page.wait_for_function(changed, arg=[the_map.element_handle(), before[1]])
    notebook.page.mouse.move(2, 2)
    same = "([c, old]) => c.toDataURL() === old"
    for each, old in zip((losses, the_map), before, strict=True):
        notebook.page.wait_for_function(same, arg=[each.element_handle(), old])
    assert notebook.page.locator(".sinkscope-pointed-key, .sinkscope-pointed-query").count() == 0
    notebook.screenshot("finder")


def test_the_table_of_spans_and_the_bands_are_those_of_the_record_and_hostile_names_stay_text(notebook):
    notebook.execute(
        "spans = sinkscope.Spans([hostile_text, 'rest'], [[(0, 6), (40, 50)], (6, 40)])\n"
        "app.controller.parts.given = {'own': spans}\n"
        "record = sinkscope.measure(model, ids, [sinkscope.SpanMass(spans)], progress=False)"
    )
    choose(notebook, "spans", "your own")
    table = notebook.page.locator("table.sinkscope-spans")
    table.wait_for()
    mass = np.array(notebook.python("record.span_mass.values[0, 1, 2].tolist()"))
    shown = table.locator("td").all_inner_texts()
    assert [float(f"{each:.3g}") for each in mass.ravel()] == [float(each) for each in shown]
    assert HOSTILE in table.inner_text() and notebook.page.locator(".sinkscope-app img").count() == 0
    drawn = drawn_map(notebook)
    assert drawn.frame["spans"] == {"names": [HOSTILE, "rest"], "ranges": [[0, 0, 6], [1, 6, 40], [0, 40, 50]]}
    notebook.page.locator(".sinkscope-map .sinkscope-bands", has_text="<img").first.wait_for()
    the_map = canvas(notebook, "map")
    the_map.evaluate("c => c.scrollIntoView({block: 'center'})")
    the_map.hover(position=notebook.place_of_cell(the_map, 30, 2))
    notebook.page.locator(".sinkscope-map .sinkscope-tip", has_text="[rest]").first.wait_for()
    notebook.screenshot("spans")
    table.scroll_into_view_if_needed()
    notebook.screenshot("spans-table")
    assert notebook.page.evaluate("globalThis.wasRun === undefined")


def test_words_are_shown_in_map_and_text_as_by_span_sums_them(notebook):
    expected = np.array(
        notebook.python(
            "sinkscope.by_span(sinkscope.attention_maps(model, ids[0]), sinkscope.Spans.words(Words(), ids))"
            ".sel(layer=1, head=2).values.tolist()"
        )
    )
    numbers = np.array(notebook.python("sinkscope.Spans.words(Words(), ids).numbers(96).tolist()"))
    choose(notebook, "cells", "words")
    notebook.wait_for("'words' in app.pictures.map.frame['caption']")
    drawn, spread = drawn_map(notebook), expected[numbers][:, numbers]
    seen = drawn.pixels > 0
    assert (spread[~seen] < 1e-5).all()
    steps = 1 + 254 * (np.log10(np.maximum(spread, 1e-5)) + 5) / 5
    np.testing.assert_allclose(drawn.pixels[seen], steps[seen], atol=1)
    text = notebook.drawn(canvas(notebook, "text"), request=notebook.python("app.pictures.text.frame['request']"))
    np.testing.assert_allclose(text.values, spread[95], atol=2e-6)
    notebook.screenshot("words")


def test_the_users_own_policy_is_in_the_list_under_its_name_as_text(notebook):
    notebook.execute(
        "other = sinkscope.explore(model, Words(), ids, policies={hostile_text: sinkscope.EveryNth(8, 16)})\n"
        "other.wait()\nother.controls.fields['policy'].label = hostile_text\nother.wait()"
    )
    assert notebook.python("other.controller.name") == notebook.python("sinkscope.EveryNth(8, 16).name")
    losses = np.array(notebook.python("other.controller.now.reading.losses[1:].tolist()"))
    np.testing.assert_allclose(losses, notebook.python("expected(sinkscope.EveryNth(8, 16))")[0], atol=2e-5)
    notebook.execute("other.close()")


def test_lines_of_several_heads_hold_the_weights_of_the_record_and_hide_with_their_box(notebook):
    notebook.page.get_by_role("tab", name="lines").click()
    lines = canvas(notebook, "lines")
    places = [0, 1, 2, 3, *range(36, 96)]
    drawn = notebook.page.locator(".sinkscope-lines canvas[data-caption='layer 1 · dense']")
    drawn.wait_for()
    maps = np.array(notebook.python("maps_of(range(4)).tolist()"))[:, places][:, :, places]
    get = (
        "c => JSON.stringify({heads: c.sinkscope.heads, values: c.sinkscope.values.map("
        "v => Array.from(v, x => Number.isNaN(x) ? 0 : x))})"
    )
    notebook.page.locator(".sinkscope-lines label", has_text="head 0").locator("input").check()
    two = "() => document.querySelector('.sinkscope-lines canvas').sinkscope.heads.length === 2"
    notebook.page.wait_for_function(two)
    shown = json.loads(lines.evaluate(get))
    assert shown["heads"] == [4, 6]
    np.testing.assert_allclose(np.array(shown["values"]).reshape(2, 64, 64), maps[[0, 2]], atol=2e-6)
    lines.scroll_into_view_if_needed()
    notebook.screenshot("lines")
    lines.click(position={"x": 20, "y": 8 + 15 * 10.5})
    notebook.wait_for("app.controller.query == 42")
    assert notebook.page.locator(".sinkscope-app img").count() == 0
    notebook.page.get_by_role("tab", name="heads").click()
