"""The explorer in JupyterLab, taken hold of as a user does; what it shows is compared with what records say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.open_notebook import opened

ROOT = Path(__file__).parent.parent.parent
HOSTILE = '<img src=x onerror="globalThis.wasRun = true">'
TOKENS, WINDOW, SINKS = 96, 20, 4

SETUP = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, torch, sinkscope
from tests.support.zoo import build, inputs
torch.set_num_threads(1)

class Words:
    "A tokenizer with a token that must never become part of the page."
    def decode(self, ids):
        return " ".join({HOSTILE!r} if int(each) == hostile else f"word{{int(each)}}" for each in ids)

model, ids = build("llama"), inputs("llama", 1, {TOKENS})["input_ids"]
hostile = int(ids[0, 5])

def expected(policy):
    "Losses [token] and the map of layer 1, head 2, with nothing of the explorer."
    curve = sinkscope.perplexity(model, ids, [policy], progress=False)
    probe = sinkscope.Maps(layers=[1], heads=[2], resolution=None)
    with torch.no_grad(), sinkscope.attached(model, policy=policy, probes=[probe]) as scope:
        model(ids)
    return curve.nll.values[0, 0, 1:].tolist(), scope.array("attention_map").values[0, 0, 0].tolist()
"""
CELLS = [SETUP, "app = sinkscope.explore(model, Words(), ids)"]
READY = "not app.controller.busy"


@pytest.fixture(scope="module")
def page_of_this_module(lab, browser):
    with opened(lab, browser, CELLS, "explorer.ipynb", ready=READY) as notebook:
        yield notebook


@pytest.fixture
def notebook(page_of_this_module):
    """The page of all tests here: the model as it is, layer 0, head 0, the last query."""
    page_of_this_module.execute(
        "app.controller.reset(); app.controller.choose(0); app.controller.choose_query(95)\n"
        "app.controller.show(scale='log', hiding='nothing', region=None); app.pictures.map.view = []"
    )
    page_of_this_module.wait_for(READY)
    yield page_of_this_module
    page_of_this_module.check()


def canvas(notebook, name):
    return notebook.page.locator(f".sinkscope-{name} canvas").first


def handle(notebook, label):
    """The handle of a slider, by the slider's description."""
    return notebook.page.locator(".widget-slider", has_text=label).first.locator(".noUi-handle").first


def choose(notebook, label, option):
    row = notebook.page.locator(".widget-dropdown", has=notebook.page.get_by_text(label, exact=True)).first
    row.locator("select").select_option(label=option)


def drag(notebook, label, steps, field):
    """Drag the handle of a slider until its field has moved by so many steps, or as far as it goes."""
    box = handle(notebook, label).bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    goal = notebook.python(f"app.controller.configuration.{field}") + steps
    notebook.page.mouse.move(*middle)
    notebook.page.mouse.down()
    for step in range(1, 80):
        notebook.page.mouse.move(middle[0] + step * (1 if steps > 0 else -1), middle[1])
        if step % 4 == 0 and notebook.python(f"app.controller.configuration.{field}") == goal:
            break
    notebook.page.mouse.up()
    notebook.wait_for(READY)


def curves(notebook):
    """The losses of single tokens in the chart, and the name that the chart gives to those of the policy."""
    request = notebook.python("app.pictures.losses.frame['request']")
    drawn = notebook.drawn(canvas(notebook, "losses"), request=request)
    return {"dense": drawn.values[0][1:], "policy": drawn.values[-1][1:], "named": drawn.frame["names"][-1]}


def check_shown(notebook, policy, caption):
    """What is on the screen is what a record of this policy says, to a step of the colour scale."""
    losses, attention = notebook.python(f"expected({policy})")
    request = notebook.python("app.pictures.map.frame['request']")
    drawn = notebook.drawn(canvas(notebook, "map"), request=request)
    assert drawn.frame["caption"] == f"layer 1, head 2 · {caption}"
    found = curves(notebook)["policy"]
    np.testing.assert_allclose(found, losses, atol=2e-5)
    attention = np.array(attention)
    steps = 1 + 254 * (np.log10(np.maximum(attention, 1e-5)) + 5) / 5
    seen = attention > 0
    np.testing.assert_allclose(drawn.pixels[seen], steps[seen], atol=1)
    assert (drawn.pixels[~seen] == 0).all()


def test_dragging_the_sinks_to_none_shows_the_losses_and_the_map_that_the_record_predicts(notebook):
    notebook.click_head(canvas(notebook, "atlas"), 6)  # four heads in a layer: layer 1, head 2
    assert notebook.wait_for("app.controller.unit == 6")
    choose(notebook, "policy", "sinks + window")
    notebook.wait_for(READY)
    drag(notebook, "window", WINDOW - 96, "window")
    notebook.execute(f"app.controls.fields['window'].value = {WINDOW}")  # what pixels could not say exactly
    notebook.wait_for(READY)
    check_shown(notebook, f"sinkscope.SinkWindow({SINKS}, {WINDOW})", f"sinks {SINKS}+{WINDOW}")
    with_sinks = curves(notebook)["policy"]
    drag(notebook, "sinks", -SINKS, "sinks")
    assert notebook.python("app.controller.configuration.sinks") == 0
    check_shown(notebook, f"sinkscope.SinkWindow(0, {WINDOW})", f"sinks 0+{WINDOW}")
    assert curves(notebook)["named"] == f"sinks 0+{WINDOW}"
    assert np.abs(np.array(curves(notebook)["policy"]) - with_sinks).max() > 1e-3
    assert "where the two can differ" in notebook.page.locator(".sinkscope-app").inner_text()


def test_a_token_clicked_away_is_evicted_and_given_back(notebook):
    notebook.click_head(canvas(notebook, "atlas"), 6)
    notebook.page.get_by_label("evict / restore").click()
    first = notebook.page.locator(".sinkscope-token").first
    first.click()
    notebook.wait_for("app.controller.configuration.evicted == (0,)")
    notebook.wait_for(READY)
    check_shown(notebook, "sinkscope.Evict([0], start=64, once_read=True)", "evict key 0 from query 64")
    first.click()
    notebook.wait_for("app.controller.configuration.evicted == ()")
    notebook.wait_for(READY)
    assert notebook.python("app.controller.name") == "dense"


def test_hiding_the_sink_is_labelled_a_preview_and_leaves_the_model_alone(notebook):
    before = notebook.python("id(app.controller.now.reading)")
    choose(notebook, "preview", "first keys hidden, the rest renormalised")
    notebook.wait_for("app.controller.map_options.hiding == 'renormalised'")
    request = notebook.python("app.pictures.map.frame['request']")
    drawn = notebook.drawn(canvas(notebook, "map"), request=request)
    assert "not causal" in drawn.frame["preview"] and (drawn.pixels[:, 0] == 0).all()
    assert "not causal" in notebook.page.locator(".sinkscope-map").inner_text()
    assert notebook.python("id(app.controller.now.reading)") == before


def test_a_hostile_token_stays_text_wherever_it_is_shown(notebook):
    app = notebook.page.locator(".sinkscope-app")
    assert HOSTILE in app.locator(".sinkscope-text").inner_text()
    notebook.execute(
        "import dataclasses\nkept = app.controller.now.reading.guesses\nkept.ids[95, 0] = hostile\napp._draw_query()"
    )
    notebook.page.wait_for_function("() => document.querySelector('.sinkscope-next').innerText.includes('onerror')")
    assert app.locator("img").count() == 0
    assert notebook.page.evaluate("globalThis.wasRun === undefined")


def test_busy_and_ready_are_said_aloud_and_an_error_is_one_sentence(notebook):
    status = notebook.page.get_by_role("status").filter(has_text="ready")
    status.wait_for()
    choose(notebook, "policy", "sinks + window")
    notebook.wait_for(READY)
    notebook.execute("app.controls.fields['window'].value = 2")
    alert = notebook.page.get_by_role("alert").filter(has_text="a window of 2 is smaller than the 4 sinks")
    alert.wait_for()
    drag(notebook, "sinks", -2, "sinks")
    notebook.wait_for(READY)
    alert.wait_for(state="detached")
    assert notebook.python("app.controller.name") == "sinks 2+2"


def test_the_keyboard_moves_sliders_and_heads(notebook):
    choose(notebook, "policy", "sinks + window")
    notebook.wait_for(READY)
    handle(notebook, "sinks").focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.wait_for("app.controller.configuration.sinks == 5")
    canvas(notebook, "atlas").focus()
    notebook.page.keyboard.press("ArrowDown")
    notebook.wait_for("app.controller.unit == 4")


def test_streaming_plays_pauses_and_shows_the_losses_of_both_policies(notebook):
    notebook.execute("app.streaming.cache.value = 24")
    notebook.page.get_by_role("tab", name="streaming").click()
    notebook.page.get_by_role("button", name="play").click()
    notebook.wait_for("app.streaming.player is not None and app.streaming.player.is_over")
    for place, policy in enumerate(["sinkscope.Window(24)", "sinkscope.SinkWindow(4, 20)"]):
        losses = notebook.python(f"expected({policy})")[0]
        shown = notebook.python(f"app.streaming.player.losses[{place}, 1:].tolist()")
        np.testing.assert_allclose(shown, losses, atol=2e-5)
    words = notebook.page.locator(".sinkscope-app").inner_text()
    assert "the text has ended" in words and "window 24" in words and "sinks 4+20" in words
    request = notebook.python("app.streaming.chart.frame['request']")
    drawn = [curve["y"][-1] for curve in notebook.drawn(canvas(notebook, "race"), request=request).frame["curves"]]
    losses = [notebook.python(f"float(np.exp(np.nanmean(app.streaming.player.losses[{place}])))") for place in (0, 1)]
    np.testing.assert_allclose(drawn, losses, rtol=1e-5)
    notebook.page.get_by_role("tab", name="heads").click()


def test_a_view_is_saved_and_opens_again_without_the_model(notebook):
    notebook.page.get_by_role("button", name="save view").click()
    notebook.wait_for("'view.pdf' in app.saving.status.value")
    notebook.execute("saved = sinkscope.explore('explored/view.nc')")
    assert notebook.python("saved.controller.tile().pixels.tolist()") == notebook.python(
        "app.controller.tile().pixels.tolist()"
    )
    assert notebook.python("'saved record' in saved.problem.value and saved.controls.fields['policy'].disabled")
    notebook.execute("saved.close()")


def test_running_the_cell_again_takes_the_place_of_the_explorer_before(notebook):
    notebook.execute("first = app")
    notebook.page.evaluate(
        "() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 1;"
        " return jupyterapp.commands.execute('notebook:run-cell') }"
    )
    notebook.wait_for("app is not first and not app.controller.busy", seconds=60)
    assert notebook.python("first.comm is None and first.controller.model is None")
    threads = "[each.name for each in __import__('threading').enumerate() if 'sinkscope' in each.name]"
    assert notebook.python(threads) == []
    notebook.drawn(canvas(notebook, "losses"), request=1)
    assert notebook.page.locator(".sinkscope-app").count() == 1


def test_interrupting_the_kernel_stops_the_work_and_the_next_request_is_served(notebook):
    choose(notebook, "policy", "window")
    notebook.wait_for(READY)
    notebook.execute(
        "import time\n"
        "slow = app.controller.model.anatomy.parts[0].attention.register_forward_hook(lambda *_: time.sleep(3))\n"
        "app.controller.change(window=9)"
    )
    notebook.page.wait_for_timeout(700)  # the kernel has gone idle; asking it anything would be a cell that runs
    notebook.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()")
    notebook.page.get_by_role("alert").filter(has_text="interrupted").wait_for()
    assert notebook.python("not app.controller.busy and app.controller.name != 'window 9'")
    notebook.execute("slow.remove(); app.controller.change(window=8)")
    notebook.wait_for("not app.controller.busy and app.controller.name == 'window 8'")


def test_a_saved_notebook_has_a_picture_for_readers_without_a_kernel(notebook):
    notebook.wait_for("app.controller.caption in app._page")
    notebook.save_and_reload()
    import nbformat

    outputs = nbformat.read(notebook.path, as_version=4).cells[1].outputs
    html = "".join(output["data"].get("text/html", "") for output in outputs if "data" in output)
    assert "data:image/png;base64," in html and "for reading without a kernel" in html
    assert "Run this cell to open it" in html and "<script" not in html and "https://" not in html
    notebook.page.locator("summary", has_text="A still picture of the explorer").wait_for()
    notebook.page.locator(".sinkscope-app").wait_for(timeout=60_000)  # its widgets come back from the kernel


def read_back(notebook, line):
    """The number that a line of the map's tooltip tells, and half of its last digit."""
    row = notebook.page.locator(".sinkscope-map .sinkscope-tip div", has_text=line).first
    row.filter(has_not_text="…").wait_for()
    said = row.inner_text().split("probability ")[1].split(" ·")[0].replace("−", "-")
    digits = said.split("e")
    decimals = len(digits[0].partition(".")[2]) - (int(digits[1]) if len(digits) > 1 else 0)
    return float(said), 0.5 * 10.0**-decimals


def test_numbers_read_back_from_the_difference_map_are_those_of_two_records_to_the_last_digit_shown(notebook):
    notebook.execute(f"app.controller.choose(6); app.controller.change(policy='window', window={WINDOW})")
    notebook.wait_for(READY)
    choose(notebook, "compare", "difference map")
    notebook.wait_for("'minus' in app.pictures.map.frame['caption']")
    window = np.array(notebook.python(f"expected(sinkscope.Window({WINDOW}))")[1])
    dense = np.array(notebook.python("expected(sinkscope.Dense())")[1])
    drawn = notebook.drawn(canvas(notebook, "map"), request=notebook.python("app.pictures.map.frame['request']"))
    reach = drawn.frame["high"]
    assert drawn.frame["low"] == -reach and drawn.frame["diverging"]
    for query, key in ((60, 0), (60, 58), (90, 85)):
        canvas(notebook, "map").hover(position=notebook.place_of_cell(canvas(notebook, "map"), query, key))
        notebook.page.locator(".sinkscope-map .sinkscope-tip", has_text=f"query {query} ").wait_for()
        exact = window[query, key] - dense[query, key]
        shown, digit = read_back(notebook, "difference:")
        assert abs(shown - exact) <= digit + 1e-6
        before = np.log10(np.maximum([window[query, key], dense[query, key]], 1e-5))
        expected = 128 + 127 * (before[0] - before[1]) / reach
        assert abs(int(drawn.pixels[query, key]) - expected) <= 1
    choose(notebook, "compare", "nothing")
    notebook.wait_for("'minus' not in app.pictures.map.frame['caption']")


def test_two_maps_side_by_side_share_the_pointer_and_the_zoom(notebook):
    notebook.execute(f"app.controller.choose(6); app.controller.change(policy='window', window={WINDOW})")
    notebook.wait_for(READY)
    choose(notebook, "compare", "side by side")
    both = notebook.page.locator(".sinkscope-map canvas")
    both.nth(1).wait_for()
    notebook.drawn(both.nth(1), request=notebook.python("app.pictures.partner.frame['request']"))
    first = notebook.drawn(both.nth(0)).frame["caption"], notebook.drawn(both.nth(1)).frame["caption"]
    assert first == (f"layer 1, head 2 · window {WINDOW}", "layer 1, head 2 · dense")
    notebook.page.get_by_role("button", name="zoom in").nth(0).click()
    notebook.wait_for("app.pictures.partner.view and app.pictures.partner.view == app.pictures.map.view")
    notebook.drawn(both.nth(1), request=notebook.python("app.pictures.partner.frame['request']"))
    pixels = "c => c.toDataURL()"
    before = both.nth(1).evaluate(pixels)
    both.nth(0).hover(position=notebook.place_of_cell(both.nth(0), 50, 45))
    notebook.page.wait_for_function("([c, old]) => c.toDataURL() !== old", arg=[both.nth(1).element_handle(), before])
    choose(notebook, "compare", "nothing")
    both.nth(1).wait_for(state="detached")


def test_the_key_c_copies_the_row_of_the_query_and_the_part_of_the_map(notebook):
    notebook.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    notebook.execute("app.controller.choose_query(10); app.controller.show(region=(8, 12, 0, 4))")
    for name, what in (("map", "map"), ("text", "row"), ("atlas", "heads")):
        place = ".sinkscope-text .sinkscope-token >> nth=0" if name == "text" else f".sinkscope-{name} canvas"
        notebook.page.locator(place).first.focus()
        notebook.page.keyboard.press("c")
        notebook.page.locator(f".sinkscope-{name} .sinkscope-copied", has_text="copied as CSV").wait_for()
        expected = notebook.python(
            f"__import__('sinkscope.explorer.tables', fromlist=['_']).table_csv(app.controller, '{what}')"
        )
        assert notebook.page.evaluate("() => navigator.clipboard.readText()") == expected
