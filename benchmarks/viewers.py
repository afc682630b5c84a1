r"""The explorer beside other viewers of attention: all heads of the demo model in each, in one run.

    python benchmarks/viewers.py                       # the explorer alone
    python benchmarks/viewers.py --others FOLDER       # and the others, as far as they are there

The others are no dependencies of sinkscope and are installed in a folder of their own; the last line brings what
bertviz loads from a CDN (in place of jquery 2.0.0 the nearest that npm has), and without it bertviz draws nothing here:

    pip install --no-deps --target FOLDER bertviz==1.4.1 circuitsvis==1.43.3 attnview==0.5.1
    pip install --no-deps --target FOLDER attnread==0.1.2 nnsight==0.7.0 python-socketio python-engineio \
        simple-websocket websocket-client wsproto h11 bidict astor toml httpx anyio sniffio pydantic pydantic-core \
        annotated-types typing-inspection msgspec zstandard rich sentencepiece protobuf
    npm install --prefix FOLDER requirejs@2.3.6 d3@5.7.0 jquery@2.2.4

Each is given the maps of an eager forward, makes its HTML in a process of its own, and is opened in a headless Chromium
without a network; attnread takes maps out of a model and shows none. The explorer starts in JupyterLab with the model
loaded; its seconds, until the map is drawn and then until all is (losses, overview of heads, price, continuation), have
its forwards in them. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import nbformat
import numpy as np
import torch
from explorer import CHROMIUM_OPTIONS, FIRST_PAINT, HEADS, LOSSES, READY, Lab, opened
from playwright.sync_api import Browser, Error, Page, TimeoutError, sync_playwright
from torch import Tensor

import sinkscope

MOST_GIGABYTES = 10  # of memory, to make a page
SWITCHES = 3
COLUMNS = ("viewer", "T", "to the browser, MB", "saved, MB", "built, s", "drawn, s", "another head, s")

# Every byte that comes in over a websocket; what comes over HTTP the browser counts itself.
COUNT_BYTES = """
performance.setResourceTimingBufferSize(100000);
let received = 0;
globalThis.WebSocket = class extends WebSocket {
    constructor(...options) {
        super(...options);
        this.addEventListener("message", ({data}) => { received += data.size ?? data.byteLength ?? data.length; });
    }
};
globalThis.bytesSoFar = () => performance.getEntriesByType("resource")
    .reduce((sum, each) => sum + each.encodedBodySize, received);
"""

# Asks for another head or layer and notes the seconds until a frame with it was given to the screen.
SWITCH = """([act, done, turn]) => {
    globalThis.took = undefined;
    setTimeout(async () => {
        const begin = performance.now();
        new Function("turn", act)(turn);
        const isDone = new Function("turn", `return ${done}`);
        while (!isDone(turn)) await new Promise(requestAnimationFrame);
        for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
        globalThis.took = (performance.now() - begin) / 1000;
    });
}"""
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
# Chromium empties a script of more than 512 MB without a word.
DROPPED = "document.readyState === 'complete' && [...document.scripts].some(each => !each.src && !each.text)"
CHOOSE_LAYER = """const list = document.querySelector("#layer");
    list.value = turn; list.dispatchEvent(new Event("change", {bubbles: true}));"""


def bertviz(attention: Tensor, tokens: list[str]) -> str:
    from bertviz import head_view  # type: ignore[import-not-found]

    return head_view(list(attention[:, None]), tokens, html_action="return").data


def circuitsvis(attention: Tensor, tokens: list[str]) -> str:
    """As it is shown where there is no network; with one, its 1.3 MB of JavaScript come from a CDN."""
    from circuitsvis.attention import attention_heads  # type: ignore[import-not-found]

    names = [f"L{layer}H{head}" for layer in range(len(attention)) for head in range(attention.shape[1])]
    return attention_heads(attention.flatten(0, 1), tokens, names).local_src


def attnview(attention: Tensor, tokens: list[str]) -> str:
    from attnview import display_cache  # type: ignore[import-not-found]

    cache = {f"blocks.{layer}.attn.hook_pattern": each for layer, each in enumerate(attention)}
    return display_cache(cache, tokens=tokens).data


@dataclass(frozen=True)
class Viewer:
    """A tool that makes a page: [layer, head, query, key] and tokens to HTML.

    is_drawn: JavaScript that is true once something of the attention is on the page.
    act, is_switched: JavaScript that asks for another layer or head, and that is true once it is on the page.
    cdn: what it loads from a CDN: the file's name there to its place in node_modules.
    """

    page: Callable[[Tensor, list[str]], str]
    is_drawn: str
    act: str = CHOOSE_LAYER
    is_switched: str = "true"  # all drawing is done by the time the event returns
    cdn: dict[str, str] = field(default_factory=dict)


CDN = {f"{each}.min.js": f"{each}/dist/{each}.min.js" for each in ("d3", "jquery")}
CDN["require.min.js"] = "requirejs/require.js"
CHARTS = {
    "is_drawn": """(() => {
        const last = [...document.querySelectorAll("canvas")].at(-1);  // the selected head, after all thumbnails
        const place = last && [0.4 * last.width, 0.6 * last.height, 1, 1];
        return last?.width > 0 && last.getContext("2d").getImageData(...place).data[3] > 0;
    })()""",
    "act": "document.querySelectorAll('h4')[turn].click()",
    "is_switched": "document.querySelector('h2').textContent === document.querySelectorAll('h4')[turn].textContent",
}
OTHERS = {
    "bertviz": Viewer(bertviz, is_drawn="document.querySelector('#attention line') !== null", cdn=CDN),
    "circuitsvis": Viewer(circuitsvis, **CHARTS),
    "circuitsvis, one layer": Viewer(lambda attention, tokens: circuitsvis(attention[:1], tokens), **CHARTS),
    "attnview": Viewer(attnview, is_drawn="document.querySelector('#weights tr') !== null"),
}

RUN_CELL = """place => {
    jupyterapp.shell.currentWidget.content.activeCellIndex = place;
    return jupyterapp.commands.execute('notebook:run-cell');
}"""
ARROW_DOWN = """globalThis.before = document.querySelector(".sinkscope-map canvas").dataset.caption;
    const atlas = document.querySelector(".sinkscope-atlas canvas"); atlas.focus();
    atlas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true, cancelable: true}));"""
OTHER_CAPTION = "document.querySelector('.sinkscope-map canvas').dataset.caption !== globalThis.before"


def captured(tokens: int, file: Path) -> list[str]:
    """Write the maps [layer, head, query, key] of an eager forward; return the texts of the tokens."""
    model, tokenizer = sinkscope.load(attn_implementation="eager")
    ids = sinkscope.read_tokens(tokenizer, limit=tokens)
    with torch.no_grad():
        maps = model(ids, output_attentions=True, use_cache=False).attentions
    np.save(file, torch.cat(maps).numpy())
    return [tokenizer.decode([each]) for each in ids[0].tolist()]


def build(name: str, folder: Path, tokens: list[str], others: Path, answer: Connection) -> None:
    """In a process of its own: write the page; answer with version and seconds, or with what was in the way."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(MOST_GIGABYTES * 1e9),) * 2)
    sys.path.append(str(others))
    package = name.split(",")[0]
    try:
        importlib.import_module(package)
        attention = torch.from_numpy(np.load(folder / "maps.npy"))
        begun = time.perf_counter()
        html = OTHERS[name].page(attention, tokens)
        seconds = time.perf_counter() - begun
        with (folder / "page.html").open("w", encoding="utf-8") as file:
            file.writelines(html[at : at + 10**7] for at in range(0, len(html), 10**7))
        answer.send((importlib.metadata.version(package), f"{seconds:.1f}"))
    except ImportError as error:
        answer.send(f"not measured: {error}")
    except MemoryError:
        answer.send(f"over {MOST_GIGABYTES} GB")


def extract(tokens: int, others: Path, answer: Connection) -> None:
    """In a process of its own: have attnread give the maps of all heads; it shows none."""
    sys.path.append(str(others))
    try:
        from attnread import extract_attention  # type: ignore[import-not-found]
    except ImportError as error:
        answer.send(f"not measured: {error}")
        return
    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=tokens)
    begun = time.perf_counter()
    extract_attention(model, {"input_ids": ids})
    answer.send((importlib.metadata.version("attnread"), f"{time.perf_counter() - begun:.1f}"))


def built(work: Callable[..., None], *given: object, limit: float) -> tuple[str, str] | str:
    """What `work` answers from a process of its own, or what was in the way."""
    context = multiprocessing.get_context("spawn")
    answer, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*given, send))
    process.start()
    send.close()
    try:
        return answer.recv() if answer.poll(limit) else f"not within {limit:.0f} s"
    except EOFError:
        return "its process died"
    finally:
        process.kill()
        process.join()


def within(limit: float, run: Callable[[float], float]) -> str:
    """Seconds that `run(milliseconds it may take)` gives, or what was in the way."""
    try:
        return f"{run(1000 * limit):.3g}"
    except TimeoutError:
        return f"not within {limit:.0f} s"
    except Error as error:
        return str(error).splitlines()[0]


def drawn(page: Page, address: str, is_drawn: str, timeout: float) -> float:
    begun = time.perf_counter()
    page.goto(address, wait_until="commit", timeout=timeout)
    found = page.wait_for_function(f"{is_drawn} ? 'drawn' : {DROPPED} && 'dropped'", timeout=timeout)
    if found.json_value() != "drawn":
        raise Error("nothing: too long a script")
    page.wait_for_function(TWO_FRAMES, timeout=timeout)
    return time.perf_counter() - begun


def switched(page: Page, act: str, is_switched: str, timeout: float) -> float:
    """Median seconds until another layer or head is seen."""
    times = []
    for turn in range(1, SWITCHES + 1):
        page.evaluate(SWITCH, [act, is_switched, turn])
        times.append(page.wait_for_function("globalThis.took", timeout=timeout).json_value())
    return statistics.median(times)


def in_browser(browser: Browser, viewer: Viewer, file: Path, modules: Path, limit: float) -> tuple[str, str]:
    """How long the page takes until it is drawn, and until another layer or head is."""
    if not all((modules / each).is_file() for each in viewer.cdn.values()):
        return "needs a CDN", ""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    for name, place in viewer.cdn.items():
        page.route(f"https://**/{name}", lambda route, *, place=place: route.fulfill(path=modules / place))
    first = within(limit, partial(drawn, page, file.as_uri(), viewer.is_drawn))
    then = within(limit, partial(switched, page, viewer.act, viewer.is_switched)) if first[0].isdigit() else ""
    page.context.close()
    return first, then


def other(browser: Browser, name: str, folder: Path, tokens: list[str], others: Path, limit: float) -> list[str]:
    found = built(build, name, folder, tokens, others, limit=limit)
    if isinstance(found, str):
        return [name, str(len(tokens)), "", "", found, "", ""]
    version, seconds = found
    size = f"{(folder / 'page.html').stat().st_size / 1e6:.1f}"
    first, then = in_browser(browser, OTHERS[name], folder / "page.html", others / "node_modules", limit)
    return [f"{name} ({version})", str(len(tokens)), size, size, seconds, first, then]


def explorer(lab: Lab, browser: Browser, tokens: int, limit: float) -> list[str]:
    """From the cell's start, with the model loaded, until the map is painted, and until all is."""
    load = "import sinkscope\nmodel, tokenizer = sinkscope.load()"
    show = f"app = sinkscope.explore(model, tokenizer, length={tokens})"
    with opened(lab, browser, [load, show], f"explorer-{tokens}.ipynb", COUNT_BYTES) as notebook:
        page = notebook.page
        page.evaluate(RUN_CELL, 0)
        before, begun = page.evaluate("bytesSoFar()"), time.perf_counter()
        page.evaluate(f"void ({RUN_CELL})(1)")
        seconds = []
        for part in (FIRST_PAINT, LOSSES, HEADS, READY):
            page.wait_for_function(part, timeout=1000 * limit)
            seconds.append(time.perf_counter() - begun)
        received = page.evaluate("bytesSoFar()") - before
        notebook.wait_for("not app.controller.busy and app._page", seconds=limit)  # the still picture was drawn
        then = within(limit, partial(switched, page, ARROW_DOWN, OTHER_CAPTION))
        page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
        saved = len(json.dumps(nbformat.read(notebook.path, as_version=4).cells[1].outputs))
    numbers = [f"{received / 1e6:.1f}", f"{saved / 1e6:.1f}", "in drawn", f"{seconds[0]:.3g}, all {seconds[-1]:.3g}"]
    return ["sinkscope.explore", str(tokens), *numbers, then]


def show_row(cells: Iterable[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main(lengths: list[int], others: Path | None, limit: float) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_OPTIONS)
        lab = Lab(folder)
        show_row(COLUMNS)
        show_row(["---"] * len(COLUMNS))
        try:
            for length in lengths:
                tokens = captured(length, folder / "maps.npy") if others else []
                for name in OTHERS if others else ():
                    show_row(other(browser, name, folder, tokens, others, limit))
                if others:
                    found = built(extract, length, others, limit=limit)
                    told = ("attnread", found) if isinstance(found, str) else (f"attnread ({found[0]})", found[1])
                    show_row([told[0], str(length), "no page", "", told[1], "", ""])
                show_row(explorer(lab, browser, length, limit))
        finally:
            lab.stop()
            browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=Path, help="the folder where the other viewers are installed")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--limit", type=float, default=180, help="seconds that one step may take")
    given = parser.parse_args()
    if given.others is None:
        print("The explorer alone; --help says how to install the other viewers.\n")
    main(given.tokens, given.others, given.limit)
