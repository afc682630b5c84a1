"""What the canvases share: hostile tokens, the keyboard, names, themes, and an end without remains."""

from __future__ import annotations

import json
import re

from tests.browser.canvases.page import canvas, hover, place_of_token, settle, tip, token, wait_for_text, written

HOSTILE = '<img src=x onerror="globalThis.wasRun = true">'


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
    canvas(notebook, "atlas").hover(position=notebook.place_of_head(canvas(notebook, "atlas"), 6))
    wait_for_text(tip(notebook, "atlas"), HOSTILE)
    notebook.execute("send_tile(preview=tokens[1])")
    wait_for_text(notebook.page.locator(".sinkscope-ribbon"), HOSTILE)
    notebook.execute("send_losses(caption=tokens[1])")
    wait_for_text(notebook.page.locator(".sinkscope-losses .sinkscope-line"), HOSTILE)
    canvas(notebook, "losses").hover(position=place_of_token(notebook, 1))
    wait_for_text(tip(notebook, "losses"), 'token 1 "<img␣src=x␣onerror=')
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
        "Attention map, dense, head 0: queries 0 to 63, keys 0 to 63 of 64 tokens, log10 probability. "
        "Beside it, widened, keys 0 to 3."
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
    notebook.execute("atlas.dimmed = head_map.dimmed = token_text.dimmed = losses.dimmed = True")
    for name in ("atlas", "map", "text", "losses"):
        notebook.page.locator(f".sinkscope-{name}[aria-busy='true'] canvas[aria-busy='true']").wait_for()
        assert canvas(notebook, name).evaluate("c => getComputedStyle(c).opacity") == "0.5"
    notebook.execute("atlas.dimmed = head_map.dimmed = token_text.dimmed = losses.dimmed = False")
    notebook.page.wait_for_function("() => !document.querySelector('.sinkscope[aria-busy=\"true\"]')")


def test_a_canvas_without_a_frame_says_what_it_waits_for(notebook):
    notebook.execute("for w in (atlas, head_map, token_text, losses): w.frame = {}\ntoken_text.values = b''")
    notebook.page.wait_for_function(
        "() => [...document.querySelectorAll('.sinkscope canvas')].every(c => !c.sinkscope && !c.width)"
    )
    said = "stage => getComputedStyle(stage, '::before').content"
    waiting = [each.evaluate(said) for each in notebook.page.locator(".sinkscope-stage").all()]
    assert len(waiting) == 4 and all(words.endswith('…"') for words in waiting)


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
        notebook.execute("fill_atlas(); send_tile(); send_row(); send_losses()")
        settle(notebook)
        for name in ("atlas", "map", "text", "losses"):
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
    notebook.execute("holder.children = [atlas, head_map, token_text, losses]")
    last = notebook.page.locator(".sinkscope-losses canvas").nth(1)
    notebook.drawn(last)
    closed = [
        notebook.page.locator(f".sinkscope-{name} canvas").nth(1).element_handle()
        for name in ("atlas", "map", "text", "losses")
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
    notebook.execute("more = [Atlas(), HeadMap(), TokenText(), Losses()]; holder.children = more")
    notebook.page.wait_for_function("n => globalThis.listening().length === 2 * n", arg=len(before))
    notebook.execute("holder.children = []\nfor widget in more: widget.close()")
    notebook.page.wait_for_function(
        "before => JSON.stringify(listening()) === before", arg=json.dumps(before, separators=(",", ":"))
    )
