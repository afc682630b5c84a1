"""A notebook open in a real JupyterLab: run it, ask its kernel, read what its canvases show, watch its requests."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import nbformat
import numpy as np
from playwright.sync_api import Browser, Locator, Page

from tests.support.jupyter_lab import Lab

# Console errors that say nothing about sinkscope, each with its reason. A message that matches none fails the test.
ALLOWED_ERRORS: dict[str, str] = {}

READY = """() => globalThis.jupyterapp?.shell?.currentWidget?.context?.isReady
    && jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.connectionStatus === "connected" """

ASK = """async ([code, expressions]) => {
    const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const content = {code, silent: false, store_history: false, allow_stdin: false, user_expressions: expressions};
    return (await kernel.requestExecute(content).done).content;
}"""

# What a canvas of sinkscope keeps of its last drawing; bytes and floats become lists.
DRAWN = """canvas => canvas.sinkscope && JSON.stringify(canvas.sinkscope, (name, value) =>
    ArrayBuffer.isView(value) ? Array.from(value, x => Number.isNaN(x) ? null : x) : value)"""

ERRORS = """() => jupyterapp.shell.currentWidget.context.model.toJSON().cells
    .flatMap(cell => cell.outputs ?? []).filter(output => output.output_type === "error")
    .map(output => `${output.ename}: ${output.evalue}`)"""


class OpenNotebook:
    """One notebook in one browser page of 1280 x 800.

    page: the playwright page, for everything that is not here.
    requests: the addresses of all requests so far.
    console_errors: console errors and uncaught exceptions so far.
    """

    def __init__(self, page: Page, lab: Lab, name: str) -> None:
        self.page = page
        self.path = lab.root / name
        self.requests: list[str] = []
        self.console_errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda websocket: self.requests.append(websocket.url))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        page.goto(f"{lab.url}lab/tree/{name}?token={lab.token}&reset")
        self._wait_until_ready()

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.console_errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _wait_until_ready(self) -> None:
        self.page.wait_for_function(READY, timeout=120_000)
        self.page.evaluate("() => jupyterapp.shell.collapseLeft()")

    def run(self, *, wait: bool = True) -> None:
        """Run all cells; with ``wait``, until they are through, and fail on an error in a cell."""
        if not wait:
            self.page.evaluate("() => void jupyterapp.commands.execute('notebook:run-all-cells')")
            return
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        errors = self.page.evaluate(ERRORS)
        assert not errors, errors

    def python(self, expression: str) -> Any:
        """The value of an expression in the kernel, as JSON can carry it."""
        value = self._ask("", {"value": f"__import__('json').dumps({expression})"})["user_expressions"]["value"]
        assert value["status"] == "ok", f"{expression}: {value.get('ename')}: {value.get('evalue')}"
        return json.loads(ast.literal_eval(value["data"]["text/plain"]))

    def execute(self, code: str) -> None:
        """Run statements in the kernel without a cell of their own."""
        reply = self._ask(code, {})
        assert reply["status"] == "ok", f"{code}: {reply.get('ename')}: {reply.get('evalue')}"

    def _ask(self, code: str, expressions: dict[str, str]) -> dict[str, Any]:
        return self.page.evaluate(ASK, [code, expressions])

    def wait_for(self, expression: str, *, seconds: float = 30) -> Any:
        """Wait until an expression in the kernel is true, and return its value."""
        for _ in range(round(seconds / 0.1)):
            value = self.python(expression)
            if value:
                return value
            self.page.wait_for_timeout(100)
        raise AssertionError(f"still not true after {seconds} s: {expression}")

    def drawn(self, canvas: Locator, *, request: int | None = None) -> SimpleNamespace:
        """What a canvas of sinkscope shows now: its frame and the numbers it was drawn from.

        canvas: the canvas; request: wait until at least this request is on it. Of the Atlas: ``frame``, ``pixels``
        (uint8 [unit, side, side]), ``order``, ``columns``, ``cells`` (x and y of the first, wide and high, in css
        pixels). Of the HeadMap: ``frame``, ``pixels`` (uint8 [rows, cols]), ``sinks`` (uint8 [rows, any]), ``view``,
        ``area`` (x, y, wide, high in css pixels of the canvas), ``strip`` (x, wide, keys). Of the TokenText: ``frame``,
        ``values`` (float32 [key]), ``query``, ``evicted``. Of the Losses: ``frame``, ``values``, ``means``
        (lists). Of the Race: ``frame``, ``ends``.
        """
        handle = canvas.element_handle()
        wanted = -1 if request is None else request
        self.page.wait_for_function("([c, wanted]) => Number(c.dataset.request ?? -2) >= wanted", arg=[handle, wanted])
        drawn = SimpleNamespace(**json.loads(canvas.evaluate(DRAWN)))
        if hasattr(drawn, "means") or hasattr(drawn, "ends"):
            pass
        elif hasattr(drawn, "values"):
            drawn.values = np.array(drawn.values, np.float32)
        elif "side" in drawn.frame:
            drawn.pixels = np.array(drawn.pixels, np.uint8).reshape(-1, drawn.frame["side"], drawn.frame["side"])
        else:
            drawn.pixels = np.array(drawn.pixels, np.uint8).reshape(drawn.frame["rows"], drawn.frame["cols"])
            drawn.sinks = np.array(drawn.sinks, np.uint8).reshape(drawn.frame["rows"], -1)
        return drawn

    def click_head(self, canvas: Locator, unit: int) -> None:
        """Click the thumbnail of a unit of an Atlas."""
        drawn = self.drawn(canvas)
        canvas.click(position=self.place_of_head(canvas, drawn.order.index(unit)))

    def place_of_head(self, canvas: Locator, place: int, across: float = 0.5, down: float = 0.5) -> dict[str, float]:
        """A point of the thumbnail at a place of an Atlas's grid, from 0 to 1, in css pixels of its canvas."""
        drawn = self.drawn(canvas)
        (row, column), cells = divmod(place, drawn.columns), drawn.cells
        return {"x": cells["x"] + (column + across) * cells["wide"], "y": cells["y"] + (row + down) * cells["high"]}

    def place_of_cell(self, canvas: Locator, query: int, key: int) -> dict[str, float]:
        """The middle of a cell of a HeadMap, in css pixels of its canvas: a ``position`` for hover and click."""
        drawn = self.drawn(canvas)
        q0, q1, k0, k1 = drawn.view
        x = drawn.area["x"] + (key + 0.5 - k0) / (k1 - k0) * drawn.area["wide"]
        y = drawn.area["y"] + (query + 0.5 - q0) / (q1 - q0) * drawn.area["high"]
        return {"x": x, "y": y}

    def theme(self, name: str) -> None:
        """Change to the theme "light" or "dark"."""
        theme = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}[name]
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        self.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)

    def screenshot(self, name: str) -> None:
        """Save ``name``.png in the folder that SINKSCOPE_SCREENSHOTS names; without it, do nothing."""
        folder = os.environ.get("SINKSCOPE_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def save_and_reload(self) -> None:
        """Save the notebook and load its page again; the kernel goes on."""
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
        self.page.reload()
        self._wait_until_ready()

    def check(self) -> None:
        """Fail if a request left this machine or the console has an error that is not among the allowed ones."""
        foreign = [url for url in self.requests if leaves_the_machine(url)]
        assert not foreign, foreign
        errors = [text for text in self.console_errors if not any(re.search(known, text) for known in ALLOWED_ERRORS)]
        assert not errors, errors

    def close(self) -> None:
        """End the kernel and close the page."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget?.sessionContext?.shutdown()")
        self.page.context.close()


def leaves_the_machine(url: str) -> bool:
    """Whether an address is one of another machine."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost")


@contextmanager
def opened(
    lab: Lab,
    browser: Browser,
    cells: list[str],
    name: str = "notebook.ipynb",
    init_script: str = "",
    *,
    ready: str = "",
) -> Iterator[OpenNotebook]:
    """Write a notebook with these code cells, open it, and at the end check it (``OpenNotebook.check``) and close it.

    init_script: JavaScript that runs in the page before anything else.
    ready: an expression of the kernel; where it is given all cells are run, and waited for until it is true.
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.root / name)
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    if init_script:
        context.add_init_script(init_script)
    page = OpenNotebook(context.new_page(), lab, name)
    try:
        if ready:
            page.run()
            page.wait_for(ready)
        yield page
        page.check()
    finally:
        page.close()
