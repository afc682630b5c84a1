"""The explorer as it looks in JupyterLab, in both themes: explorer.png and explorer-dark.png. Needs Chromium."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.browser.conftest import CHROMIUM_OPTIONS
from tests.support.jupyter_lab import Lab
from tests.support.open_notebook import OpenNotebook, opened

HERE = Path(__file__).parent
CELLS = ["import sinkscope\nmodel, tokenizer = sinkscope.load()", "app = sinkscope.explore(model, tokenizer)"]
THE_SINK_GONE = """
app.map_controls.ranking.value = "mass"
app.controller.choose(app.controller.units.index(next(u for u in app.controller.units if (u.layer, u.head) == (18, 8))))
app.controller.choose_query(300)
app.controller.change(kind="window", window=128)
"""


def taken(notebook: OpenNotebook, name: str) -> None:
    """A picture of the application alone."""
    notebook.page.wait_for_timeout(1000)
    notebook.page.locator(".sinkscope-app").screenshot(path=HERE / f"{name}.png")


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_OPTIONS)
        lab = Lab(Path(folder))
        try:
            with opened(lab, browser, CELLS) as notebook:
                notebook.page.set_viewport_size({"width": 1280, "height": 1900})
                notebook.run()
                notebook.wait_for("not app.controller.busy", seconds=120)
                notebook.execute(THE_SINK_GONE)
                notebook.wait_for("not app.controller.busy", seconds=120)
                taken(notebook, "explorer")
                notebook.theme("dark")
                taken(notebook, "explorer-dark")
        finally:
            lab.stop()
            browser.close()


if __name__ == "__main__":
    main()
