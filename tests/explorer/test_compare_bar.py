"""The widgets for comparing, for the history and for tables: they ask the controller, and show what it says."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope import SinkscopeError, explore, figures
from sinkscope.explorer import launch, tables
from sinkscope.explorer.saving import code_of
from sinkscope.explorer.tables import copied
from sinkscope.explorer.wiring import answer
from tests.explorer.hostile import Tokenizer
from tests.explorer.references import text
from tests.support.zoo import build


@pytest.fixture(scope="module")
def app():
    made = explore(build("llama"), text=text(), tokenizer=Tokenizer("word "))
    assert made.wait(60)
    launch._OPEN.clear()
    made.controller.change(policy="window", window=20)
    assert made.wait(60)
    yield made
    made.close()


@pytest.mark.slow
def test_the_difference_is_drawn_and_hovering_tells_both_numbers(app, monkeypatch):
    sent = []
    monkeypatch.setattr(app.pictures.map, "send", sent.append)
    app.map_controls.fields["compare"].value = "difference"
    frame = app.pictures.map.frame
    assert frame["diverging"] and frame["farthest"] and frame["low"] == -frame["high"]
    assert frame["caption"].endswith("· dense") and " minus " in frame["caption"]
    assert app.pictures.map.pixels == app.controller.tile().pixels.tobytes()
    for query, key in ((40, 4), (40, 39), (4, 40)):
        answer(app.controller, app.pictures.map, {"kind": "hover", "query": query, "key": key, "request": 1})
    dense, maps, unit = app.controller.dense.reading.maps, app.controller.maps, app.controller.unit
    for told, key in zip(sent[:2], (4, 39), strict=True):
        cell = slice(40, 41), slice(key, key + 1)
        both = [np.nan_to_num(each.probabilities(unit, *cell)).item() for each in (maps, dense)]
        assert told["difference"] == both[0] - both[1] and told["partner"]["probability"] == both[1]
    assert sent[0]["probability"] is None and "difference" not in sent[2]  # evicted; seen by neither


@pytest.mark.slow
def test_side_by_side_there_is_a_second_map_with_the_same_part_and_query(app):
    app.map_controls.fields["compare"].value = "side by side"
    assert app.pictures.children[-1] is app.pictures.partner
    app.controller.show(region=(10, 30, 5, 25))
    app.controller.choose_query(22)
    one, two = app.pictures.map, app.pictures.partner
    assert one.frame["link"] == two.frame["link"] != "" and two.view == [10, 30, 5, 25] and two.query == 22
    assert [one.frame[name] for name in ("query", "key", "low", "high")] == [
        two.frame[name] for name in ("query", "key", "low", "high")
    ]
    assert two.frame["caption"].endswith("· dense") and one.frame["caption"].endswith("· window 20")
    app.controller.show(region=None, compare="nothing")
    assert app.pictures.partner not in app.pictures.children and one.frame["link"] == ""


@pytest.mark.slow
def test_the_history_is_a_list_to_return_by_and_buttons_go_back_and_forth(app):
    bar = app.compare
    app.controller.change(window=30)
    assert app.wait(60)
    labels = [label for label, _ in bar.history.options]
    assert [label.split(":")[0] for label in labels[:3]] == ["1. dense", "2. window 20", "3. window 30"]
    bar.history.value = 1
    assert app.wait(60) and app.controller.name == "window 20"
    bar.buttons["undo"].click()
    assert app.wait(60) and app.controller.name == "window 30"
    bar.buttons["redo"].click()
    assert app.wait(60) and app.controller.name == "window 20"


@pytest.mark.slow
def test_what_is_pinned_is_named_and_stands_in_losses_words_and_state(app):
    bar = app.compare
    bar.buttons["pin setting"].click()
    app.controller.change(window=12)
    assert app.wait(60)
    assert "window 20" in bar.partner.value and not bar.buttons["unpin"].disabled
    assert app.pictures.losses.frame["names"] == ["dense", "window 12", "pinned: window 20"]
    assert "Pinned: <b>window 20</b>" in app.headline.value and "pinned: window 20" in app.next_tokens.value
    assert "pinned: window 20" in app.continuation.value
    again = explore(build("llama"), text=text(), tokenizer=Tokenizer("word "), state=app.state)
    assert again.wait(60) and again.state == app.state and again.controller.name == "window 12"
    assert again.controller.comparison.partner.setting == "window 20"
    again.close()
    bar.buttons["unpin"].click()
    assert len(app.pictures.losses.frame["names"]) == 2 and bar.partner.value == ""


def test_a_state_of_another_text_is_refused_before_anything_is_shown(app):
    state = app.state
    with pytest.raises(SinkscopeError, match="of another text"):
        explore(build("llama"), text=text(40), tokenizer=Tokenizer("word "), state=state)
    with pytest.raises(SinkscopeError, match="of another model"):
        explore(build("gemma2"), text=text(), tokenizer=Tokenizer("word "), state=state)
    assert f"state={state!r}" in code_of(app.controller)


def test_a_table_is_saved_by_its_button_and_refused_in_a_sentence(app, tmp_path):
    saving = app.saving
    saving.folder.value, saving.table.value = str(tmp_path), "row"
    saving.csv.click()
    assert (tmp_path / "row.csv").exists() and "row.csv" in saving.status.value
    (tmp_path / "row.csv").write_text("mine")
    saving.csv.click()
    assert "is another" in saving.status.value and (tmp_path / "row.csv").read_text() == "mine"
    assert app.save_csv(tmp_path / "heads.csv", "heads").exists()


@pytest.mark.slow
@pytest.mark.parametrize("compare", ["nothing", "difference", "side by side"])
def test_the_saved_view_keeps_scale_part_preview_and_partner(app, compare):
    controller = app.controller
    controller.show(scale="linear", region=(10, 40, 0, 30), hiding="hidden", hidden=2, compare=compare)
    record = app.record
    dense, maps, unit = controller.dense.reading.maps, controller.maps, controller.unit
    part = slice(10, 40), slice(0, 30)
    one, two = (each.probabilities(unit, *part) for each in (maps, dense))
    one[:, :2] = two[:, :2] = np.nan
    unseen = np.isnan(one) & np.isnan(two)
    expected = {
        "nothing": [one],
        "side by side": [one, two],
        "difference": [np.where(unseen, np.nan, np.nan_to_num(one) - np.nan_to_num(two))],
    }[compare]
    drawn = [axes.images[0].get_array() for axes in figures.explored(record).axes if axes.images]
    for number, values in enumerate(expected):
        np.testing.assert_allclose(record[f"shown_map_{number}"].values, values, atol=1e-7)
        np.testing.assert_allclose(np.ma.filled(drawn[number].astype(float), np.nan), values, atol=1e-7)
    assert f"shown_map_{len(expected)}" not in record and record["shown_map_0"].shown_query_0[0] == 10
    controller.show(scale="log", region=None, hiding="nothing", compare="nothing")
    assert "shown_map_0" not in app.record


def test_a_canvas_is_answered_with_its_table_or_with_the_reason(app, monkeypatch):
    pictures, sent = app.pictures, []
    for canvas, what in ((pictures.atlas, "heads"), (pictures.map, "map"), (pictures.text, "row")):
        monkeypatch.setattr(canvas, "send", sent.append)
        canvas._handle_custom_msg({"kind": "copy"}, [])
        assert sent[-1] == {"kind": "copy", **copied(app.controller, what)} and sent[-1]["rows"] > 5
    monkeypatch.setattr(tables, "MOST_COPIED", 5)
    pictures.map._handle_custom_msg({"kind": "copy"}, [])
    assert "zoom in, or save the table" in sent[-1]["problem"]
