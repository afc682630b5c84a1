"""The application: its widgets say what its controller shows, and nothing of it is left once it is closed."""

from __future__ import annotations

import re
import threading
from types import SimpleNamespace

import ipywidgets as w
import numpy as np
import pytest
from matplotlib.figure import Figure

from sinkscope import explore, figures, open_record
from sinkscope.explorer import launch
from sinkscope.explorer.app import Explorer
from sinkscope.explorer.configuration import GONE
from sinkscope.explorer.controls import descendants, is_asked
from sinkscope.explorer.pixels import RANKINGS, MapOptions
from sinkscope.explorer.results import Change
from sinkscope.explorer.saving import view_record
from sinkscope.explorer.wiring import answer
from sinkscope.glossary import DEFINITIONS
from tests.explorer.hostile import ESCAPED, HOSTILE, QUOTED, Tokenizer, is_harmless, pages
from tests.explorer.references import text
from tests.support.zoo import build

REGISTRY = w.widgets.widget._instances
TOKENS = 60


@pytest.fixture(scope="module")
def app_of_this_module():
    made = explore(build("llama"), text=text(), tokenizer=Tokenizer("word "))
    assert made.wait(60)
    launch._OPEN.clear()  # so that no other explorer takes its place
    yield made
    made.close()


@pytest.fixture
def app(app_of_this_module):
    """The model as it is, layer 0, head 0, the last query, everything as at first."""
    made = app_of_this_module
    made.controller.reset()
    assert made.wait(60)
    made.controller.choose(0)
    made.controller.choose_query(TOKENS - 1)
    made.controller.show(**vars(MapOptions()))
    made.map_controls.ranking.value = "layer"
    made._say("")
    return made


def shown(app: Explorer) -> tuple[str, ...]:
    """The names that everything on the screen says it belongs to."""
    pictures = app.pictures
    captions = [pictures.map.frame["caption"], pictures.text.frame["caption"], pictures.atlas.frame["caption"]]
    return tuple(caption.split(" · ")[min(1, caption.count(" · "))] for caption in captions)


def belongs_to(app: Explorer, name: str) -> bool:
    pictures = app.pictures
    dimmed = any(each.dimmed for each in (pictures.map, pictures.text, pictures.atlas, pictures.losses))
    is_drawn = name == pictures.losses.frame["names"][-1]
    return shown(app) == (name,) * 3 and f"<b>{name}</b>" in app.headline.value and not dimmed and is_drawn


def set_field(app: Explorer, name: str, value) -> None:
    """Move a control, as a user does."""
    app.controls.fields[name].value = value
    assert app.wait(60)


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ([("policy", "window"), ("window", 12)], "window 12"),
        ([("window", 12), ("policy", "sinks"), ("sinks", 2)], "sinks 2+12"),
        ([("policy", "sinks"), ("window", 12), ("dose", GONE)], "sinks 4+12, dose -inf"),
        ([("policy", "sinks"), ("window", 12), ("positions", "original")], "sinks 4+12, original positions"),
        ([("policy", "recompute"), ("window", 12)], "recompute 12"),
        ([("dose", -2.0)], "dose -2 on keys 0-3"),
        ([("normaliser", "sigmoid"), ("layers", (1, 1))], "dense; sigmoid, layer 1"),
    ],
)
def test_what_the_controls_ask_for_is_shown_everywhere_under_its_name(app, fields, name):
    assert belongs_to(app, "dense")
    for field, value in fields:
        set_field(app, field, value)
    assert belongs_to(app, name) and app.problem.value == ""
    app.controls.reset.click()
    assert app.wait(60) and belongs_to(app, "dense")
    assert app.controls.fields["policy"].value == "dense" and app.controls.fields["dose"].value == 0.0


@pytest.mark.slow
def test_tokens_are_evicted_in_the_text_and_another_policy_gives_them_back(app):
    since = app.controller.configuration.since
    app.pictures.text.evicted = [5]
    assert app.wait(60) and belongs_to(app, f"evict key 5 from query {since}")
    assert app.controls.fields["policy"].value == "chosen"
    app.pictures.text.evicted = [5, 9]
    assert app.wait(60) and belongs_to(app, f"evict keys 5 9 from query {since}")
    set_field(app, "window", 12)
    set_field(app, "policy", "window")
    assert belongs_to(app, "window 12") and app.pictures.text.evicted == []
    app.pictures.text.evicted = [5, 9]  # the same ones once more
    assert app.wait(60) and belongs_to(app, f"evict keys 5 9 from query {since}")
    app.pictures.text.evicted = []
    assert app.wait(60) and belongs_to(app, "dense")


@pytest.mark.slow
def test_the_pictures_are_those_of_the_controller(app):
    app.pictures.atlas.selected = 5
    app.pictures.map.query = 30
    app.map_controls.fields["scale"].value = "linear"
    app.map_controls.fields["hiding"].value = "renormalised"
    controller, frame = app.controller, app.pictures.map.frame
    assert (controller.unit, controller.query, controller.map_options.scale) == (5, 30, "linear")
    assert app.pictures.text.query == 30
    assert app.pictures.map.pixels == controller.tile().pixels.tobytes() and "not causal" in frame["preview"]
    assert frame["caption"] == "layer 1, head 1 · dense"
    row = np.frombuffer(app.pictures.text.values, "<f4")
    np.testing.assert_array_equal(row, controller.row()[0])
    app.pictures.map.view = [10, 30, 0, 20]
    assert app.pictures.map.frame["query"] == [10, 30] and app.pictures.map.frame["key"] == [0, 20]
    assert app.map_controls.fields["hidden"].disabled is False


def test_a_map_that_does_not_cover_the_part_looked_at_is_shown_whole(app):
    app.pictures.map.view = [0, 20, 0, 20]
    set_field(app, "window", 12)
    set_field(app, "policy", "recompute")
    assert app.pictures.map.view == [] and app.pictures.map.frame["query"] == [48, 60]


@pytest.mark.slow
def test_the_losses_drawn_are_those_of_the_readings(app):
    set_field(app, "window", 12)
    set_field(app, "policy", "window")
    dense, now = app.controller.dense.reading.losses, app.controller.now.reading.losses
    drawn = np.frombuffer(app.pictures.losses.values, "<f4").reshape(2, TOKENS)
    np.testing.assert_array_equal(drawn, [dense, now])
    assert app.pictures.losses.frame["names"] == ["dense", "window 12"]
    app.controls.reset.click()
    assert app.wait(60)
    np.testing.assert_array_equal(np.frombuffer(app.pictures.losses.values, "<f4"), dense)
    assert app.pictures.losses.frame["names"] == ["dense"] and app.pictures.losses.frame["length"] == TOKENS


def test_a_query_chosen_in_the_losses_is_chosen_everywhere(app):
    app.pictures.losses.query = 17
    assert app.controller.query == app.pictures.map.query == app.pictures.text.query == 17


def test_the_strip_beside_the_map_holds_the_first_keys_on_the_maps_own_scale(app):
    for view in ([], [30, 50, 20, 40]):
        app.pictures.map.view = view
        frame, (low, stop) = app.pictures.map.frame, app.pictures.map.frame["query"]
        strip = np.frombuffer(app.pictures.map.sinks, np.uint8).reshape(frame["rows"], -1)
        first = app.controller.maps.probabilities(0, slice(low, stop), slice(0, 4))
        shown = np.maximum(np.log10(np.maximum(first, 1e-30)), -5)
        steps = np.round(1 + 254 * (shown - frame["low"]) / (frame["high"] - frame["low"]))
        np.testing.assert_array_equal(strip > 0, np.isfinite(first))
        np.testing.assert_allclose(strip[strip > 0], steps[strip > 0], atol=1)
        assert frame["sinks"] == [0, 4]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_heads_stand_in_the_order_of_the_ranking_with_what_they_are_ranked_by(app, ranking):
    app.map_controls.ranking.value = ranking
    scores = app.controller.now.overview.scores["mass" if ranking == "layer" else ranking]
    order = app.pictures.atlas.order
    np.testing.assert_allclose(app.pictures.atlas.scores, scores, rtol=1e-6)
    ranked = scores[order] if ranking in ("entropy", "value") else -scores[order]
    assert order == list(range(8)) if ranking == "layer" else (np.diff(ranked) >= 0).all()


def test_hovering_is_answered_with_the_exact_numbers_of_the_cell(app, monkeypatch):
    sent = []
    monkeypatch.setattr(app.pictures.map, "send", sent.append)
    for query, key in ((30, 4), (4, 30)):
        answer(app.controller, app.pictures.map, {"kind": "hover", "query": query, "key": key, "request": 1})
    probability, logit = app.controller.numbers(30, 4)
    assert (sent[0]["probability"], sent[0]["logit"]) == (probability, logit) and sent[1]["hidden"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [dict(dose=0.5), dict(dose=-30.0), dict(window=10**6), dict(policy="sinks", sinks=30)]
)
def test_a_configuration_that_no_control_has_does_not_stop_the_controls(app, fields):
    app.controller.change(**fields)
    assert app.wait(60) and app.problem.value == ""
    if "dose" in fields:
        assert app.controls.fields["dose"].value == fields["dose"]
    set_field(app, "policy", "window")
    set_field(app, "window", 12)
    assert app.controller.name == "window 12" and belongs_to(app, "window 12")


def test_while_something_is_read_the_mark_says_what_and_what_is_shown_is_dimmed(app):
    inside, go = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        assert go.wait(30)

    app.controls.fields["window"].value = 12
    assert app.wait(60)
    hook = app.controller.model.model.model.layers[0].register_forward_hook(wait)
    app.controls.fields["policy"].value = "window"
    assert inside.wait(30)
    assert "window 12" in app.busy.value and "status" in app.busy.value and not app.controls.stop.disabled
    assert app.pictures.map.dimmed and app.pictures.atlas.dimmed and shown(app) == ("dense",) * 3
    app.controls.stop.click()
    assert "ready" in app.busy.value and not app.pictures.map.dimmed and app.controls.stop.disabled
    hook.remove()
    go.set()
    assert app.controller.wait(30) and shown(app) == ("dense",) * 3
    app.controls.reset.click()
    assert app.wait(60) and belongs_to(app, "dense")


def test_an_interrupt_stops_what_is_under_way_and_says_so(app):
    app.controller.change(policy="window", window=12)
    app._interrupted()
    assert app.wait(60) and "interrupted" in app.problem.value and shown(app) == ("dense",) * 3


@pytest.mark.slow
def test_an_exception_inside_is_one_sentence_and_the_rest_works(app):
    def fail(*_):
        raise ValueError(HOSTILE + "\nand more")

    hook = app.controller.model.model.model.layers[0].register_forward_hook(fail)
    app.controller.change(policy="window", window=12)
    assert app.wait(60) and ESCAPED in app.problem.value and "and more" not in app.problem.value
    assert is_harmless(app.problem.value) and shown(app) == ("dense",) * 3
    hook.remove()
    set_field(app, "window", 13)
    assert belongs_to(app, "window 13") and app.problem.value == ""


def test_every_change_of_the_controller_is_drawn():
    assert set(Explorer._draw) == set(Change)


def test_a_picture_that_fails_does_not_take_the_rest_with_it(app, monkeypatch):
    monkeypatch.setattr(app.pictures, "draw_losses", lambda: 1 / 0)
    app.controller.change(policy="window", window=12)
    assert app.wait(60) and "ZeroDivisionError" in app.problem.value and "ready" in app.busy.value


@pytest.mark.slow
@pytest.mark.parametrize("said", [HOSTILE, QUOTED])
def test_a_hostile_token_is_only_ever_text(said, tmp_path):
    app = explore(build("llama"), text=text(300), tokenizer=Tokenizer(said), length=40)
    assert app.wait(60)
    app.controller.change(policy="window", window=12)
    assert app.wait(60)
    app.streaming.toggle()
    assert app._mailbox.pump(lambda: not app.streaming.is_playing, 60)
    app.saving.folder.value = str(tmp_path / "file" / said)
    (tmp_path / "file").write_text("in the way")
    app.saving.button.click()
    assert "cannot write" in app.saving.status.value
    found = pages(app)
    assert len(found) > 6 and all(map(is_harmless, found)) and said not in "".join(found)
    assert app.pictures.map.tokens == app.pictures.text.tokens == [said] * 40
    app.close()


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_saving_says_which_files_were_written_and_a_folder_that_cannot_be_is_one_sentence(app, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "explored", lambda record: Figure())  # which takes seconds
    app.saving.folder.value = str(tmp_path / "view")
    app.saving.button.click()
    assert app.saving.status.value.startswith("saved ") and app.saving.status.value.count(str(tmp_path)) == 5
    record = open_record(tmp_path / "view" / "view.nc")
    np.testing.assert_array_equal(record.attention_map, view_record(app.controller).attention_map)
    app.saving.folder.value = str(tmp_path / "view" / "view.nc")
    app.saving.button.click()
    assert "cannot write to" in app.saving.status.value and "alert" in app.saving.status.value


@pytest.mark.slow
def test_a_static_picture_in_the_notebook_follows_once_the_changes_have_stopped(app, monkeypatch):
    monkeypatch.setattr(figures, "explored", lambda record: Figure())
    monkeypatch.setattr(app, "_picture", SimpleNamespace(update=lambda page: left.append(page.data)))
    monkeypatch.setattr(app._mailbox, "later", lambda seconds, call: waiting.append(call) or Waiting(waiting, call))
    left: list[str] = []
    waiting: list = []
    for window in (12, 13):
        app.controller.change(policy="window", window=window)
        assert app.wait(60)
    app.controller.choose(5)
    assert left == [] and len(waiting) == 1  # each change puts it off
    app.controller.busy = "something"
    waiting.pop()()
    assert left == [] and len(waiting) == 1
    app.controller.busy = ""
    waiting.pop()()
    assert "layer 1, head 1 · window 13" in left[0] and "data:image/png;base64," in left[0] and is_harmless(left[0])
    monkeypatch.setattr(app, "_drawing", None)


class Waiting:
    """A call that is made later, and may be cancelled."""

    def __init__(self, waiting, call):
        self.waiting, self.call = waiting, call

    def cancel(self):
        if self.call in self.waiting:
            self.waiting.remove(self.call)


def test_every_control_has_a_name_and_an_explanation_of_one_line(app):
    words, every = app.children[0].words, descendants(app)
    asked = [each for each in every if is_asked(each)]
    buttons = [each for each in every if isinstance(each, (w.Button, w.ToggleButton))]
    assert len(asked) > 18 and len(buttons) > 10
    for each in [*asked, *buttons]:
        assert each.description.strip() and 6 < len(each.tooltip or "") < 130, each
        assert "\n" not in each.tooltip and each.tooltip[0].islower()
    assert words == {each.description: each.tooltip for each in asked}
    assert len({each.description for each in asked}) == len(asked)  # so that a name says which one is meant


def test_the_help_opens_and_closes_and_defines_each_word_once(app):
    guide = app.guide
    assert guide.panel.layout.display == "none"
    guide.button.value = True
    assert guide.panel.layout.display is None
    for word, told in DEFINITIONS.items():
        assert guide.panel.value.count(f"<dt>{word}</dt><dd>{told}.</dd>") == 1
    assert {"sink", "mass", "rate", "null", "policy"} <= set(DEFINITIONS)
    labels = {each.description for each in descendants(app) if is_asked(each) or isinstance(each, w.Button)}
    named = {*re.findall("<i>(.*?)</i>", guide.panel.value)} - {"evict / restore", "streaming"}  # a canvas's, a tab's
    options = {label for each in descendants(app) if isinstance(each, w.Dropdown) for label, _ in each.options}
    assert named <= labels | options  # what the tour names is there
    guide.button.value = False
    assert guide.panel.layout.display == "none"


def test_a_map_option_beyond_its_control_stays_what_was_asked_for(app):
    app.controller.show(hiding="hidden", hidden=20)
    assert app.map_controls.fields["hidden"].value == 16 and app.controller.map_options.hidden == 20
    app.map_controls.fields["hidden"].value = 3
    assert app.controller.map_options.hidden == 3
    app.controller.show(hiding="nothing", hidden=1)


@pytest.mark.parametrize("name", ["controls", "map_controls", "compare"])
def test_widgets_that_are_set_ask_for_nothing_also_when_they_are_set_once_more_meanwhile(app, monkeypatch, name):
    app.controller.change(policy="window", window=20)
    assert app.wait(60)
    bar, asked = getattr(app, name), []
    widget = (
        bar.history if name == "compare" else next(each for each in bar.fields.values() if isinstance(each, w.Dropdown))
    )
    for ask in ("change", "show"):
        monkeypatch.setattr(app.controller, ask, lambda **fields: asked.append(fields))
    with bar._silence:
        bar.show()  # as it happens when something changes while this is shown
        widget.index = 1 if widget.index == 0 else 0
    assert asked == [] and not bar._silence
    widget.index = 1 if widget.index == 0 else 0
    assert len(asked) == 1
    monkeypatch.undo()
    bar.show()


def test_without_a_kernel_the_notebook_says_what_is_missing(app):
    bundle = app._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "Run this cell" in bundle["text/html"] and "application/vnd.jupyter.widget-view+json" in bundle
