"""The canvases over synthetic attention: one page for each file of tests."""

from __future__ import annotations

import pytest

from tests.browser.canvases.data import CELLS
from tests.browser.canvases.page import settle
from tests.browser.canvases.spies import SPIES
from tests.support.open_notebook import opened


@pytest.fixture(scope="module")
def shown_canvases(lab, browser):
    with opened(lab, browser, CELLS, "canvases.ipynb", SPIES) as notebook:
        notebook.run()
        notebook.page.locator(".sinkscope-text").scroll_into_view_if_needed()
        yield notebook


@pytest.fixture
def notebook(shown_canvases):
    """The page of all tests here, with the whole map of head 0, query 40, nothing evicted and no pointer over it."""
    shown_canvases.page.mouse.move(5, 5)
    shown_canvases.execute(
        "answers_held = tiles_held = False; holder.children = []\n"
        "atlas.order = list(range(LAYERS * HEADS)); atlas.selected = 0\n"
        "token_text.tokens = tokens; token_text.evicted = []; token_text.mode = 'query'; token_text.can_evict = True\n"
        "atlas.dimmed = head_map.dimmed = token_text.dimmed = losses.dimmed = False\n"
        "head_map.view = []; query_changed(type('Change', (), {'new': 40})); head_map.tokens = tokens\n"
        "fill_atlas(); send_tile(); send_row(); send_losses(); asked.clear(); hovers.clear()"
    )
    settle(shown_canvases)
    yield shown_canvases
    shown_canvases.check()
