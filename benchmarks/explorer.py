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
    for name, condition in (("map", FIRST_PAINT), ("losses", LOSSES), ("all heads", HEADS)):
        notebook.page.wait_for_function(condition, timeout=120_000)
        said.append((name, (notebook.page.evaluate("performance.now()") - clock) / 1000))
    shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in said)
    print(f"  first paint: {shown}   of 10 s: {bar(said[-1][1] / 10, 1.0)}")
    settled(notebook)


def looking(notebook: OpenNotebook, limit: float) -> None:
    """Another head, and the sink column hidden and shown: nothing is run."""
    notebook.execute("app.controller.choose(0)")  # from there on there are heads below
    settled(notebook)
    heads = [
        timed(notebook, PRESS, NEW_CAPTION, selector=".sinkscope-atlas canvas", key="ArrowDown") for _ in range(ROUNDS)
    ]
    sinks = [timed(notebook, SELECT, NEW_FRAME, label="preview", place=turn % 2 + 1) for turn in range(ROUNDS)]
    timed(notebook, SELECT, NEW_FRAME, label="preview", place=0)
    for name, times in (("another head", heads), ("sink column", sinks)):
        middle = statistics.median(times)
        print(f"  {name}: {middle:.0f} ms   of {limit:.0f} ms: {bar(middle / limit, 1.0)}")


def running(notebook: OpenNotebook, limit: float) -> None:
    """Sinks, window and policy changed: the model runs again."""
    notebook.execute("app.controller.change(kind='sinks', sinks=4, window=60)")
    settled(notebook)
    times: dict[str, list[float]] = {"sinks": [], "window": [], "policy": [], "busy mark": []}
    for turn in range(ROUNDS // 3):
        key = "ArrowUp" if turn % 2 else "ArrowDown"
        for label in ("sinks", "window"):
            times[label].append(timed(notebook, SLIDE, NEW_CAPTION, label=label, key=key))
        times["policy"].append(timed(notebook, SELECT, NEW_CAPTION, label="policy", place=WINDOW))
        times["busy mark"].append(timed(notebook, SELECT, BUSY, label="policy", place=SINKS))
    for name, found in times.items():
        middle, allowed = statistics.median(found), 100.0 if name == "busy mark" else limit
        print(f"  {name}: {middle:.0f} ms   of {allowed:.0f} ms: {bar(middle / allowed, 1.0)}")


def memory(notebook: OpenNotebook) -> None:
    """The browser process that shows the page, JupyterLab and all, and the heap of its JavaScript."""
    session = notebook.page.context.new_cdp_session(notebook.page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    pages = [each for each in psutil.Process().children(recursive=True) if "--type=renderer" in each.cmdline()]
    resident = max(each.memory_info().rss for each in pages) / 1e6
    print(f"  JavaScript heap {metrics['JSHeapUsedSize'] / 1e6:.0f} MB; page in all {resident:.0f} MB: ", end="")
    print(bar(resident / 400, 1.0))


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
        looking(notebook, 100 if tokens <= 512 else 200)
        memory(notebook)
        if tokens <= 512:
            running(notebook, 1500)
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
