"""axe-core, the checker of accessibility that browsers' makers use, finds nothing: names, contrast, roles, order."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from sinkscope.explorer.page import save_page
from tests.browser.test_explorer import READY, SETUP
from tests.explorer.references import reader
from tests.explorer.test_page import ASKED, WORDS
from tests.support.open_notebook import opened

THEMES = ["light", "dark"]
# Whatever can be opened or said stands there while it is looked at.
EVERYTHING = """
app.controller.change(policy="window", window=20)
app.controller.show(compare="side by side", hiding="renormalised", hidden=2)
app.controller.comparison.pin_head()
app.guide.button.value = True
"""


def check(page, place=None):
    found = Axe().run(page, context=place)
    assert not found.violations_count, found.generate_report()
    assert len(found.response["passes"]) > 10  # it did look


@pytest.fixture(scope="module")
def notebook(lab, browser):
    cells = [SETUP, "app = sinkscope.explore(model, Words(), ids)"]
    with opened(lab, browser, cells, "accessible.ipynb") as shown:
        shown.run()
        shown.wait_for(READY)
        yield shown


@pytest.mark.parametrize("theme", THEMES)
def test_nothing_is_found_in_the_application(notebook, theme):
    notebook.theme(theme)
    for tab in ("streaming", "heads"):
        notebook.page.get_by_role("tab", name=tab).first.click()
        notebook.page.wait_for_timeout(300)
        check(notebook.page, ".sinkscope-app")
    notebook.execute(EVERYTHING)
    notebook.wait_for(READY)
    check(notebook.page, ".sinkscope-app")
    notebook.execute("app.controls.fields['window'].value = 1; app.controller.change(policy='sinks', sinks=4)")
    notebook.page.get_by_role("alert").filter(has_text="smaller than the 4 sinks").wait_for()
    check(notebook.page, ".sinkscope-app")
    notebook.execute("app.controller.show(compare='nothing', hiding='nothing'); app.controller.reset()")
    notebook.execute("app.guide.button.value = False")
    notebook.wait_for(READY)


@pytest.mark.parametrize("theme", THEMES)
def test_nothing_is_found_on_the_page_without_a_kernel(browser, tmp_path, theme):
    file = save_page(reader(), WORDS, Path(tmp_path, "page.html"), ASKED)
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=theme)
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    check(page)
    page.keyboard.press("b")
    page.wait_for_selector("#map-1 canvas[data-request]")
    check(page)
    context.close()
