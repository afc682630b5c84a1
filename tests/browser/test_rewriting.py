"""A text that is typed in the explorer, and one that the model writes, in JupyterLab."""

from __future__ import annotations

import numpy as np
import pytest

from tests.browser.test_explorer import HOSTILE, ROOT, canvas
from tests.support.open_notebook import opened

SETUP = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, torch, sinkscope
from tests.support.talking import talker, tokenizer
torch.set_num_threads(1)
model, words = talker(), tokenizer()
"""
CELLS = [SETUP, "app = sinkscope.explore(model, words, 'the cat sat on the mat and the dog ran away')"]
READY = "not app.controller.busy and not app.rewriting.is_busy"


@pytest.fixture(scope="module")
def page_of_this_module(lab, browser):
    with opened(lab, browser, CELLS, "rewriting.ipynb", ready=READY) as notebook:
        yield notebook


@pytest.fixture
def notebook(page_of_this_module):
    yield page_of_this_module
    page_of_this_module.check()


def button(notebook, name):
    return notebook.page.get_by_role("button", name=name, exact=True).first


def typed(notebook, text, kind):
    notebook.page.locator(".sinkscope-app textarea").first.fill(text)
    row = notebook.page.locator(".widget-dropdown", has=notebook.page.get_by_text("it is", exact=True)).first
    row.locator("select").select_option(label=kind)
    notebook.page.keyboard.press("Tab")


def test_what_is_typed_is_read_and_shown_in_the_place_of_the_other_text(notebook):
    text = "the dog came and " + HOSTILE
    typed(notebook, text, "a text")
    button(notebook, "read it").click()
    ids = notebook.python(f"words({text!r})['input_ids']")
    notebook.wait_for(f"{READY} and app.controller.model.ids.tolist() == {ids}")
    shown = notebook.drawn(canvas(notebook, "map"), request=notebook.python("app.pictures.map.frame['request']"))
    assert shown.frame["length"] == len(ids)
    assert notebook.page.locator(".sinkscope-app").count() == 1
    assert notebook.page.locator(".sinkscope-text .sinkscope-token").count() == len(ids)
    assert notebook.page.locator(".sinkscope-app img").count() == 0
    typed(notebook, " ", "a chat")
    button(notebook, "read it").click()
    notebook.page.get_by_role("alert").filter(has_text="the chat is empty").wait_for()


def test_rows_grow_while_the_model_writes_under_the_policy_and_end_as_generate_record_has_them(notebook):
    notebook.execute(
        "lengths = []\ngrow = app.pictures.grow\n"
        "app.pictures.grow = lambda maps, tokens, said: (grow(maps, tokens, said), lengths.append(len(tokens)))\n"
        "app.controller.change(policy='window', window=12)"
    )
    notebook.wait_for(READY)
    typed(notebook, "user: the cat ran away. where to?", "a chat")
    button(notebook, "generate").click()
    notebook.wait_for(READY + " and 'tokens were written' in app.writing.status.value")
    record = (
        "sinkscope.generate_record(model, words, [{'role': 'user', 'content': 'the cat ran away. where to?'}], 32, "
        "policy=sinkscope.Window(12), probes=[sinkscope.Maps(resolution=None)], progress=False)"
    )
    notebook.execute(f"record = {record}")
    assert notebook.python("app.controller.model.ids.tolist() == record.token_id.values[0].tolist()")
    prompt = notebook.python("int(record.prompt_length[0])")
    assert notebook.python("lengths") == [prompt + 8, prompt + 16, prompt + 24, prompt + 32]
    shown = notebook.drawn(canvas(notebook, "map"), request=notebook.python("app.pictures.map.frame['request']"))
    unit = notebook.python("list(app.controller.units[app.controller.unit].__dict__.values())")
    weights = np.array(notebook.python(f"record.attention_map.values[0, {unit[0]}, {unit[1]}].tolist()"))
    assert shown.pixels.shape == weights.shape == (prompt + 32,) * 2
    seen = shown.pixels > 0
    steps = 1 + 254 * (np.log10(np.maximum(weights, 1e-5)) + 5) / 5
    np.testing.assert_allclose(shown.pixels[seen], steps[seen], atol=1)
    notebook.execute("app.controller.show(spans='chat')")
    notebook.page.locator(".sinkscope-map .sinkscope-bands", has_text="answer").first.wait_for()
    notebook.page.locator(".sinkscope-app textarea").first.scroll_into_view_if_needed()
    notebook.screenshot("generated")


def test_twenty_texts_in_a_row_and_a_second_explorer_leave_nothing_behind(notebook):
    notebook.execute("import ipywidgets, gc\nother = sinkscope.explore(model, words, 'the dog came'); other.wait()")
    count = "len(ipywidgets.widgets.widget._instances)"
    notebook.execute("app.read('the cat sat on the mat', 6); app.wait()")
    before = notebook.python(count)
    again = "for n in range(20):\n    app.read('the cat sat on the mat and the dog', 4 + n % 5)\n    app.wait()"
    notebook.execute(again)
    assert notebook.python(count) <= before + 1
    notebook.execute("other.close()")
    threads = "[each.name for each in __import__('threading').enumerate() if 'sinkscope' in each.name]"
    notebook.wait_for(f"{READY} and {threads} == []")
    assert notebook.page.locator(".sinkscope-app").count() == 1
