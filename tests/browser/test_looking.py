"""More to look at in the explorer: what JupyterLab shows is compared with what records say."""

from __future__ import annotations

import numpy as np
import pytest

from tests.browser.test_explorer import READY, SETUP, TOKENS, canvas, choose, read_back
from tests.support.open_notebook import opened

EXPECTED = """
def maps_of(heads, layers=(1,)):
    "Maps [head, query, key] of the model as it is."
    probe = sinkscope.Maps(layers=list(layers), resolution=None)
    with torch.no_grad(), sinkscope.attached(model, probes=[probe]) as scope:
        model(ids)
    return scope.array("attention_map").values[0].reshape(-1, *2 * [ids.shape[1]])[list(heads)]
"""
CELLS = [SETUP + EXPECTED, "app = sinkscope.explore(model, Words(), ids)"]


@pytest.fixture(scope="module")
def page_of_this_module(lab, browser):
    with opened(lab, browser, CELLS, "looking.ipynb") as notebook:
        notebook.run()
        notebook.wait_for(READY)
        yield notebook


@pytest.fixture
def notebook(page_of_this_module):
    """The page of all tests here: the model as it is, layer 1, head 2, the last query."""
    page_of_this_module.execute(
        "app.controller.reset(); app.controller.choose(6); app.controller.choose_query(95)\n"
        "app.controller.show(**vars(type(app.controller.map_options)())); app.pictures.map.view = []"
    )
    page_of_this_module.wait_for(READY)
    yield page_of_this_module
    page_of_this_module.check()


def drawn_map(notebook):
    return notebook.drawn(canvas(notebook, "map"), request=notebook.python("app.pictures.map.frame['request']"))


@pytest.mark.parametrize(
    ("label", "heads", "kind"),
    [("mean of its layer", range(4), "mean"), ("maximum of its KV group", (2, 3), "max")],
)
def test_numbers_read_back_from_a_map_over_heads_are_those_of_the_record(notebook, label, heads, kind):
    expected = getattr(np.array(notebook.python(f"maps_of({list(heads)}).tolist()")), kind)(0)
    choose(notebook, "map of", label)
    notebook.wait_for(f"app.pictures.map.frame['caption'].startswith('{label.split()[0]} of')")
    drawn, seen = drawn_map(notebook), np.tri(TOKENS, dtype=bool)
    steps = 1 + 254 * (np.log10(np.maximum(expected, 1e-5)) + 5) / 5
    np.testing.assert_allclose(drawn.pixels[seen], steps[seen], atol=1)
    np.testing.assert_array_equal(drawn.sinks, drawn.pixels[:, :4])
    for query, key in ((60, 0), (90, 85), (41, 40)):
        canvas(notebook, "map").hover(position=notebook.place_of_cell(canvas(notebook, "map"), query, key))
        notebook.page.locator(".sinkscope-map .sinkscope-tip", has_text=f"query {query} ").wait_for()
        shown, digit = read_back(notebook, "probability")
        assert abs(shown - expected[query, key]) <= digit + 1e-7
    said = notebook.page.locator(".sinkscope-map .sinkscope-said").first.inner_text()
    assert said == notebook.python("app.controller.comparison.said") and "layer 1" in said
    text = notebook.drawn(canvas(notebook, "text"), request=notebook.python("app.pictures.text.frame['request']"))
    np.testing.assert_allclose(text.values, expected[95], atol=2e-6)
    notebook.screenshot(f"over-{kind}")


def test_what_cannot_be_a_mean_is_one_sentence_and_the_list_goes_back(notebook):
    notebook.execute("app.controller.show(scale='logit')")
    choose(notebook, "map of", "mean of all layers")
    notebook.page.get_by_role("alert").filter(has_text="logits of several heads").wait_for()
    assert notebook.python("app.map_controls.fields['over'].value") == "head"
