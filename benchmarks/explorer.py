"""How long a user of the explorer waits: the demo model in JupyterLab, in a headless Chromium.

    python benchmarks/explorer.py                # everything
    python benchmarks/explorer.py --tokens 512   # one length

Every time runs from the event in the page (a key on a slider, a choice in a list) to the frame that shows its result,
and is a median over several. Chromium has to be installed. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright
from streaming import bar

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.browser.conftest import CHROMIUM_OPTIONS
from tests.support.jupyter_lab import Lab
from tests.support.open_notebook import OpenNotebook, opened

ROUNDS = 15
WINDOW, SINKS = 1, 3  # their places in the list of policies

# Does something in the page and gives the milliseconds until `done(before)` is true, asked in every frame.
TIMED = """async ([act, done, argument]) => {
    const canvas = document.querySelector(".sinkscope-map canvas");
    const before = {request: Number(canvas.dataset.request), caption: canvas.dataset.caption};
    const isDone = new Function("canvas", "before", `return ${done}`);
    const begin = performance.now();
    new Function("argument", act)(argument);
    while (!isDone(canvas, before)) {
        if (performance.now() - begin > 30000) throw new Error("nothing came within 30 s");
        await new Promise(requestAnimationFrame);
    }
    return performance.now() - begin;
}"""

PRESS = """const target = document.querySelector(argument.selector); target.focus();
    target.dispatchEvent(new KeyboardEvent("keydown", {key: argument.key, bubbles: true, cancelable: true}));"""
SELECT = """const row = [...document.querySelectorAll(".widget-dropdown")]
        .find(each => each.querySelector("label").textContent === argument.label);
    const list = row.querySelector("select");
    list.selectedIndex = argument.place; list.dispatchEvent(new Event("change", {bubbles: true}));"""
SLIDE = """const row = [...document.querySelectorAll(".widget-slider")]
        .find(each => each.querySelector("label").textContent === argument.label);
    const handle = row.querySelector(".noUi-handle"); handle.focus();
    handle.dispatchEvent(new KeyboardEvent("keydown", {key: argument.key, bubbles: true, cancelable: true}));"""

NEW_FRAME = "Number(canvas.dataset.request) > before.request"
NEW_CAPTION = "canvas.dataset.caption !== before.caption"
BUSY = "[...document.querySelectorAll('[role=status]')].some(each => each.textContent.includes('working'))"
FIRST_PAINT = """() => {
    const canvas = document.querySelector(".sinkscope-map canvas");
    return canvas !== null && Number(canvas.dataset.request) > 0;
}"""
LOSSES = "() => Number(document.querySelector('.sinkscope-losses canvas')?.dataset.request) > 0"
HEADS = "() => Number(document.querySelector('.sinkscope-atlas canvas')?.dataset.request) > 0"
READY = "() => [...document.querySelectorAll('[role=status]')].some(each => each.textContent === 'ready')"
FIRST, WHOLE = 4.3, 8.0  # seconds until map and text, and until everything is there
PICTURE = 4000  # ms until the still picture of a setting at rest is drawn, which holds the kernel for a second
PAGE, PAST = 250, 50  # MB: the browser's process with the page in it; what 20 settings leave in the kernel
HELD = """
import ctypes, gc, psutil
def resident():
    return psutil.Process().memory_info().rss / 1e6
def held():
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return resident()
"""
FORWARD = """
import time, torch
def forward():
    begin = time.perf_counter()
    with torch.no_grad():
        model(app.controller.model.ids[None])
    return 1000 * (time.perf_counter() - begin)
"""


def timed(notebook: OpenNotebook, act: str, done: str, **argument: object) -> float:
    """Milliseconds from an act in the page until something is seen there; then everything comes to rest."""
    taken = notebook.page.evaluate(TIMED, [act, done, argument])
    settled(notebook)
    return taken


def settled(notebook: OpenNotebook) -> None:
    notebook.wait_for("not app.controller.busy", seconds=120)
    notebook.page.wait_for_timeout(150)


def first_paint(notebook: OpenNotebook) -> None:
    """Run the cell of the explorer; the model was loaded by the cell before."""
    notebook.page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 1; }")
    clock = notebook.page.evaluate("performance.now()")
    notebook.page.evaluate("() => void jupyterapp.commands.execute('notebook:run-cell')")
    said = []
    for name, condition in (("map", FIRST_PAINT), ("losses", LOSSES), ("all heads", HEADS), ("everything", READY)):
        notebook.page.wait_for_function(condition, timeout=120_000)
        said.append((name, (notebook.page.evaluate("performance.now()") - clock) / 1000))
    shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in said)
    print(f"  first paint: {shown}")
    print(f"    of {FIRST} s: {bar(said[0][1] / FIRST, 1.0)}   of {WHOLE} s: {bar(said[-1][1] / WHOLE, 1.0)}")
    settled(notebook)


def looking(notebook: OpenNotebook, limits: tuple[float, float], compare: str = "nothing") -> None:
    """Another head, and the sink column hidden and shown: nothing is run. With a partner's map beside, or without."""
    if compare != "nothing":  # dense beside a window
        notebook.execute(f"app.controller.change(policy='window', window=64); app.controller.show(compare={compare!r})")
        settled(notebook)
    notebook.execute("app.controller.choose(0)")  # from there on there are heads below
    settled(notebook)
    heads = [
        timed(notebook, PRESS, NEW_CAPTION, selector=".sinkscope-atlas canvas", key="ArrowDown") for _ in range(ROUNDS)
    ]
    sinks = [timed(notebook, SELECT, NEW_FRAME, label="preview", place=turn % 2 + 1) for turn in range(ROUNDS)]
    timed(notebook, SELECT, NEW_FRAME, label="preview", place=0)
    for name, times, limit in (("another head", heads, limits[0]), ("sink column", sinks, limits[1])):
        middle = statistics.median(times)
        name = name if compare == "nothing" else f"{name}, {compare}"
        print(f"  {name}: {middle:.0f} ms   of {limit:.0f} ms: {bar(middle / limit, 1.0)}")


def running(notebook: OpenNotebook, limit: float, opened_on: int) -> None:
    """Sinks, window and policy changed: the model runs again. Policy also beside one plain forward, taken in turn.

    The map of the head that the application opened on, and that of one in the last layer, which comes latest.
    """
    notebook.execute("app.controller.show(compare='nothing'); app.controller.change(kind='sinks', sinks=4, window=60)")
    notebook.execute(FORWARD)
    settled(notebook)
    plain: list[float] = []
    heads = {"policy": opened_on, "policy, last layer": int(notebook.python("len(app.controller.units)")) - 1}
    times: dict[str, list[float]] = {name: [] for name in ("sinks", "window", *heads, "busy mark")}
    for turn in range(ROUNDS // 3):
        key = "ArrowUp" if turn % 2 else "ArrowDown"
        for label in ("sinks", "window"):
            times[label].append(timed(notebook, SLIDE, NEW_CAPTION, label=label, key=key))
        plain.append(notebook.python("forward()"))
        for name, unit in heads.items():
            notebook.execute(f"app.controller.choose({unit})")
            settled(notebook)
            notebook.page.wait_for_timeout(PICTURE)
            times[name].append(timed(notebook, SELECT, NEW_CAPTION, label="policy", place=WINDOW))
            times["busy mark"].append(timed(notebook, SELECT, BUSY, label="policy", place=SINKS))
    for name, found in times.items():
        middle, allowed = statistics.median(found), 100.0 if name == "busy mark" else limit
        print(f"  {name}: {middle:.0f} ms   of {allowed:.0f} ms: {bar(middle / allowed, 1.0)}")
    for name in heads:
        ratio = statistics.median(times[name]) / statistics.median(plain)
        print(f"  {name}, over one plain forward ({statistics.median(plain):.0f} ms): {bar(ratio, 0.9)}")


def past(notebook: OpenNotebook) -> None:
    """What twenty settings leave in the kernel: its memory after them, less that after the first two.

    Memory that is free, and that the C library keeps for the next reading, is handed back before each look.
    """
    notebook.execute(HELD)
    held, resident = [], []
    for window in range(40, 62):
        notebook.execute(f"app.controller.change(policy='window', window={window})")
        settled(notebook)
        resident.append(notebook.python("resident()"))
        held.append(notebook.python("held()"))
    left = held[-1] - held[1]
    print(f"  20 settings in the history: {left:.0f} MB of {PAST}: {bar(left / PAST, 1.0)}", end="")
    print(f"; beside it up to {max(map(float.__sub__, resident, held)):.0f} MB are free and not yet handed back")


def memory(notebook: OpenNotebook) -> None:
    """The browser process that shows the page, JupyterLab and all, and the heap of its JavaScript."""
    session = notebook.page.context.new_cdp_session(notebook.page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    pages = [each for each in psutil.Process().children(recursive=True) if "--type=renderer" in each.cmdline()]
    resident = max(each.memory_info().rss for each in pages) / 1e6
    print(f"  JavaScript heap {metrics['JSHeapUsedSize'] / 1e6:.0f} MB; page in all {resident:.0f} MB: ", end="")
    print(bar(resident / PAGE, 1.0))


def streaming(notebook: OpenNotebook, seconds: float = 20) -> None:
    """Two policies at once, as fast as it goes: tokens per second of the clock, of each policy."""
    notebook.page.get_by_role("tab", name="streaming").click()
    notebook.page.get_by_role("button", name="play").click()
    notebook.wait_for("app.streaming.player is not None and min(app.streaming.player.done) > 512", seconds=120)
    before, clock = notebook.python("min(app.streaming.player.done)"), notebook.page.evaluate("performance.now()")
    notebook.page.wait_for_timeout(1000 * seconds)
    after, end = notebook.python("min(app.streaming.player.done)"), notebook.page.evaluate("performance.now()")
    rate = 1000 * (after - before) / (end - clock)
    print(f"  streaming: {rate:.0f} tokens/s of each of two policies   150 over it: {bar(150 / rate, 1.0)}")
    notebook.page.get_by_role("button", name="pause").click()


def measure(lab: Lab, browser: object, tokens: int) -> None:
    load = "import sinkscope\nmodel, tokenizer = sinkscope.load()"
    show = f"app = sinkscope.explore(model, tokenizer, length={tokens})"
    print(f"T = {tokens}")
    with opened(lab, browser, [load, show], f"explorer-{tokens}.ipynb") as notebook:  # type: ignore[arg-type]
        notebook.page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 0; }")
        notebook.page.evaluate("() => jupyterapp.commands.execute('notebook:run-cell')")
        first_paint(notebook)
        opened_on = int(notebook.python("app.controller.unit"))
        limits = (61.0, 65.0) if tokens <= 512 else (162.0, 186.0) if tokens <= 2048 else (200.0, 200.0)
        looking(notebook, limits)
        memory(notebook)
        if tokens <= 512:
            looking(notebook, limits, "side by side")
            running(notebook, 1500, opened_on)
            past(notebook)
            streaming(notebook)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    lengths = parser.parse_args().tokens
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        running_browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_OPTIONS)
        lab = Lab(Path(folder))
        try:
            for length in lengths:
                measure(lab, running_browser, length)
        finally:
            lab.stop()
            running_browser.close()
