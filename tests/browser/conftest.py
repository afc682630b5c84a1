"""JupyterLab in headless Chromium, for tests of what a user sees.

``lab`` and ``browser`` are started once for this folder. A test opens a notebook with the fixture ``open_notebook``::

    def test_something(open_notebook):
        notebook = open_notebook(["import sinkscope", "app = sinkscope.explore(...)", "app"])
        notebook.run()
        notebook.page.locator("canvas").first.click()
        assert notebook.python("app.head") == 3

Several tests share one page, which takes seconds to load, by a fixture of the module's own::

    @pytest.fixture(scope="module")
    def page_of_this_module(lab, browser):
        with opened(lab, browser, CELLS) as notebook:
            notebook.run()
            yield notebook

    @pytest.fixture
    def notebook(page_of_this_module):
        yield page_of_this_module
        page_of_this_module.check()

Either way a request that leaves the machine, or an error in the console, fails the test. With the environment variable
SINKSCOPE_SCREENSHOTS=folder, ``notebook.screenshot(name)`` saves pictures there.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import pytest
from playwright.sync_api import sync_playwright

from tests.support.jupyter_lab import Lab
from tests.support.open_notebook import opened

CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a request that would leave fails, and is recorded
]  # fmt: skip


# Of the package, not of the session: while playwright runs, its event loop is in the way of other tests of the session.
@pytest.fixture(scope="package")
def browser():
    """Chromium without a window, as installed on this machine; playwright's own is not used."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium or chromium-browser is installed: the tests in a browser need one")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_OPTIONS)
        yield running
        running.close()


@pytest.fixture(scope="package")
def lab(browser, tmp_path_factory):
    """A running JupyterLab (`Lab`): ``lab.url``, ``lab.token``, ``lab.root``. Ended by its own process."""
    server = Lab(tmp_path_factory.mktemp("jupyterlab"))
    yield server
    server.stop()


@pytest.fixture
def open_notebook(lab, browser):
    """``open_notebook(cells, name="notebook.ipynb", init_script="")`` writes, opens and returns an `OpenNotebook`.

    It is not run yet. At the end of the test it is checked for foreign requests and console errors, and closed.
    """
    with ExitStack() as stack:
        yield lambda cells, *options, **named: stack.enter_context(opened(lab, browser, cells, *options, **named))
