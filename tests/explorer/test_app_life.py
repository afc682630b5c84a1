"""How an explorer opens, and what is left of it once it is closed, or its cell runs again: nothing."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import ipywidgets as w
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from sinkscope import SinkscopeError, explore, figures
from sinkscope.explorer import launch
from sinkscope.explorer.app import Explorer
from sinkscope.explorer.controller import NEEDS_MODEL, Controller
from sinkscope.explorer.saving import view_record
from sinkscope.explorer.text_model import TextModel
from tests.explorer.hostile import Tokenizer
from tests.explorer.references import text
from tests.support.model_state import state_of
from tests.support.zoo import build

REGISTRY = w.widgets.widget._instances


def use(app: Explorer) -> None:
    app.wait(60)
    app.controller.change(policy="window", window=8)
    app.wait(60)


@pytest.mark.slow
def test_twenty_explorers_made_and_closed_leave_nothing(monkeypatch):
    model = build("llama")
    before, widgets, threads = state_of(model), set(REGISTRY), threading.active_count()
    readers: list[weakref.ref] = []
    original = TextModel.__init__
    monkeypatch.setattr(
        TextModel, "__init__", lambda self, *given: (readers.append(weakref.ref(self)), original(self, *given))[0]
    )
    kept = []  # as a notebook keeps what cells returned
    for number in range(20):
        app = explore(model, text=text(16))
        if number % 5 == 0:
            use(app)
            app.streaming.toggle()
        app.close()
        app.close()
        kept.append(app)
    gc.collect()
    assert len(readers) == 20 and not any(reader() for reader in readers)
    assert set(REGISTRY) == widgets and threading.active_count() <= threads
    assert state_of(model) == before and torch.is_grad_enabled()


@pytest.mark.slow
def test_an_explorer_that_was_closed_keeps_no_model_alive():
    model = build("llama")
    app, gone = explore(model, text=text(16)), weakref.ref(model)
    use(app)
    app.streaming.toggle()
    app.close()
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.slow
def test_running_a_cell_again_takes_the_place_of_the_explorer_it_made_before(monkeypatch):
    cell = ["a"]
    monkeypatch.setattr(launch, "_cell", lambda: cell[0])
    model, widgets = build("llama"), set(REGISTRY)
    first = explore(model, text=text(16))
    count = len(set(REGISTRY) - widgets)
    for _ in range(20):
        again = explore(model, text=text(16))
    assert first.controller.model is None and again.controller.model is not None
    assert len(set(REGISTRY) - widgets) == count
    cell[0] = "b"
    other = explore(model, text=text(16))
    assert again.controller.model is not None and other.controller.model is not None
    for app in (again, other):
        use(app)
        app.close()
    assert set(REGISTRY) == widgets


@pytest.mark.slow
def test_closing_while_something_is_read_waits_for_the_layer_and_no_longer():
    model = build("llama")
    app = explore(model, text=text())
    app.wait(60)
    inside, go = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        assert go.wait(30)

    app.controller.model.model.model.layers[0].register_forward_hook(wait)
    app.controller.change(policy="window", window=12)
    assert inside.wait(30)
    threading.Timer(0.05, go.set).start()
    app.close()
    assert not [each for each in threading.enumerate() if each.name == "sinkscope explorer" and each.is_alive()]


@pytest.fixture
def shell(monkeypatch):
    """An IPython shell that notes what cells display and what they end with."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    made = InteractiveShell.instance()
    monkeypatch.setattr("sinkscope.explorer.launch._in_notebook", lambda: True)
    made.user_ns |= {"explore": explore, "model": build("llama"), "ids": text(16), "get": lambda app: app}

    def run(cell):
        with capture_output() as captured:
            made.run_cell(cell, store_history=True).raise_error()
        return sum("application/vnd.jupyter.widget-view+json" in output.data for output in captured.outputs)

    yield run
    made.user_ns["app"].close()
    InteractiveShell.clear_instance()


@pytest.mark.slow
def test_a_cell_displays_the_explorer_once_also_where_it_is_its_last_line(shell):
    assert shell("app = explore(model, text=ids)") == 1
    assert shell("app") == 1 and shell("get(app)") == 1
    assert shell("app = explore(model, text=ids)\napp") == 1
    assert shell("app.wait()") == 0
    assert shell("(app := explore(model, text=ids))") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, dict(policy="sinks", window=20), dict(policy="recompute", window=12)])
def test_explorers_started_at_the_same_time_read_what_each_reads_alone(fields, monkeypatch):

    def started() -> Controller:
        made = Controller(TextModel(build("llama"), text(60)), [""] * 60)
        made.begin()
        made.change(**fields)
        return made

    alone = started()
    assert alone.wait(60)
    together = [started() for _ in range(4)]
    assert all(each.wait(60) for each in together)
    for each in together:
        assert each.problem == alone.problem == "" and each.name == alone.name
        np.testing.assert_array_equal(each.now.reading.losses, alone.now.reading.losses)
        np.testing.assert_array_equal(each.now.overview.units, alone.now.overview.units)
        assert each.now.continuation == alone.now.continuation
        each.close()


@pytest.mark.slow
def test_it_opens_on_the_head_with_the_most_sink_mass_and_stays_where_it_is_put():
    made = explore(build("llama"), text=text(), tokenizer=Tokenizer("word "))
    assert made.pictures.atlas.frame == {} and made.pictures.losses.frame == {}  # they say what they wait for
    assert made.wait(60)
    mass = made.controller.now.reading.record["sink_mass"].isel(sequence=0, query=slice(1, None)).sum("sink")
    strongest = int(mass.mean("query").values.reshape(-1).argmax())
    assert made.controller.unit == made.pictures.atlas.selected == strongest
    made.controller.choose((strongest + 3) % 8)
    made.controller.change(policy="window", window=12)
    assert made.wait(60) and made.controller.unit == (strongest + 3) % 8
    saved = explore(made.record)
    assert saved.controller.unit == 0  # the only one
    saved.close()
    made.close()


@pytest.mark.slow
def test_once_closed_a_sentence_stands_where_it_was_and_whatever_is_asked_is_refused(monkeypatch):
    monkeypatch.setattr(figures, "explored", lambda record: Figure())
    left: list[str] = []
    made = explore(build("llama"), text=text(), tokenizer=Tokenizer("word "))
    monkeypatch.setattr(made, "_picture", SimpleNamespace(update=lambda page: left.append(page.data)))
    assert made.wait(60)
    made._draw_picture()
    made.close()
    made.close()
    assert len(left) == 2 and left[1] == "<p>The explorer was closed. Run this cell to open it again.</p>" + left[0]
    with pytest.raises(SinkscopeError, match="the explorer is closed"):
        made.controller.change(policy="window")


def test_without_a_model_what_needs_one_is_at_rest_and_says_so():
    app = explore(build("llama"), text=text(), tokenizer=Tokenizer("word "))
    app.wait(60)
    saved = explore(view_record(app.controller))
    assert all(widget.disabled for widget in saved.controls.fields.values())
    assert saved.controls.reset.disabled and saved.controls.stop.disabled and not saved.saving.button.disabled
    assert not saved.pictures.text.can_evict and saved.pictures.text.why_not == NEEDS_MODEL
    assert saved.streaming is None and "logit" not in dict(saved.map_controls.fields["scale"].options).values()
    saved.controller.change(policy="window")
    assert NEEDS_MODEL in saved.problem.value
    saved.close()
    app.close()
