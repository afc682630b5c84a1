"""The same canvases in a plain page: a model of six functions is all that they ask for, and nothing runs behind it."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from sinkscope.explorer.canvases import STYLE, Atlas, HeadMap, Losses, TokenText

LENGTH = 12
TOKENS = ["<img src=x onerror='globalThis.wasRun = true'>", *(f" word{place}" for place in range(1, LENGTH))]

# What anywidget's model is to a canvas: values by name, listeners, and messages that somebody answers.
PAGE = """async ([modules, given, style]) => {
    document.head.append(Object.assign(document.createElement("style"), {textContent: style}));
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
    globalThis.models = {};
    for (const [name, source] of Object.entries(modules)) {
        const values = Object.fromEntries(Object.entries(given[name])
            .map(([key, value]) => [key, value?.base64 === undefined ? value : bytes(value.base64)]));
        const heard = {};
        const tell = (event, ...what) => (heard[event] ?? []).forEach((listener) => listener(...what));
        const model = globalThis.models[name] = {
            get: (key) => values[key],
            set: (key, value) => { values[key] = value; tell(`change:${key}`); },
            save_changes: () => {},
            on: (event, listener) => (heard[event] ??= []).push(listener),
            off: (event, listener) => { heard[event] = (heard[event] ?? []).filter((other) => other !== listener); },
            send: (question) => tell("msg:custom", {...question, probability: 1 - 2e-6, logit: 1.5}),
        };
        const el = document.body.appendChild(document.createElement("div"));
        const address = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
        (await import(address)).default.render({model, el});
    }
}"""


def as_bytes(values):
    return {"base64": base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()}


def given():
    seen = np.tri(LENGTH, dtype=bool)
    tile = np.where(seen, 90, 0).astype(np.uint8)
    tile[:, 0] = 255
    row = np.where(seen[7], 0.05, np.nan).astype("<f4")
    losses = np.linspace(1, 2, LENGTH, dtype="<f4")
    shared = {"dimmed": False, "query": 7, "tokens": TOKENS}
    frame = {"request": 1, "caption": "dense", "length": LENGTH}
    scale = {"low": -5, "high": 0, "scale": "log", "unit": "log10 probability", "diverging": False}
    covered = {"query": [0, LENGTH], "key": [0, LENGTH], "sinks": [0, 4]}
    size = {"rows": LENGTH, "cols": LENGTH}
    return {
        "atlas": {
            "pixels": as_bytes(np.stack([tile] * 2)), "order": [0, 1], "scores": [0.5, 1 - 2e-6], "score_name": "mass",
            "selected": 0, "dimmed": False,
            "frame": {**frame, "side": LENGTH, "labels": ["a", "b"], "places": [[0, 0], [0, 1]], "columns": 2},
        },
        "map": {**shared, "pixels": as_bytes(tile), "sinks": as_bytes(tile[:, :4]), "view": [],
                "frame": {**frame, **scale, **size, **covered}},
        "text": {**shared, "values": as_bytes(row), "evicted": [], "mode": "query", "can_evict": False,
                 "why_not": "there is no model here", "frame": {**frame, **scale, "unit": "probability", "query": 7}},
        "losses": {**shared, "values": as_bytes(losses), "frame": {**frame, "names": ["dense"], "smooth": 16}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(browser):
    modules = {"atlas": Atlas, "map": HeadMap, "text": TokenText, "losses": Losses}
    context = browser.new_context(viewport={"width": 390, "height": 844})
    shown = context.new_page()
    asked, errors = [], []
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.evaluate(PAGE, [{name: str(each._esm) for name, each in modules.items()}, given(), str(STYLE)])
    for name in modules:
        shown.wait_for_selector(f".sinkscope-{name} canvas[data-request='1']")
    yield shown
    assert [url for url in asked if not url.startswith("blob:")] == [] and errors == []
    context.close()


def test_all_canvases_are_drawn_and_fit_a_phone(page):
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("() => globalThis.wasRun === undefined") and page.locator("img").count() == 0
    shown = json.loads(page.locator(".sinkscope-map canvas").evaluate("c => JSON.stringify([...c.sinkscope.sinks])"))
    assert shown[:8] == [255, 0, 0, 0, 255, 90, 0, 0]


def test_a_cell_is_asked_for_and_answered_within_the_page(page):
    strip = page.locator(".sinkscope-map canvas").evaluate("c => ({...c.sinkscope.strip, ...c.sinkscope.area})")
    at = page.locator(".sinkscope-map canvas").evaluate("c => c.sinkscope.strip.x")
    page.locator(".sinkscope-map canvas").hover(position={"x": at + 3, "y": strip["y"] + strip["high"] * 0.8})
    page.locator(".sinkscope-map .sinkscope-tip", has_text="probability 1 − 2e−6 · logit 1.5").wait_for()


def test_what_is_chosen_is_set_in_the_model(page):
    page.locator(".sinkscope-text .sinkscope-token").nth(3).click()
    assert page.evaluate("() => globalThis.models.text.get('query')") == 3
    page.locator(".sinkscope-atlas canvas").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => globalThis.models.atlas.get('selected')") == 1
    page.locator(".sinkscope-atlas .sinkscope-status", has_text="b: mass 1 − 2e−6").wait_for()
