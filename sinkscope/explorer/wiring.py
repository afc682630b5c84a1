"""What the widgets of an application ask of its controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.canvases import HeadMap, Message
from sinkscope.explorer.controller import NEEDS_MODEL, Controller
from sinkscope.explorer.display import alert
from sinkscope.explorer.tables import copied

if TYPE_CHECKING:
    from sinkscope.explorer.app import Explorer


def wire(app: Explorer) -> None:
    """Have the controller of an application hear of its widgets."""
    controller, pictures = app.controller, app.pictures

    def evict(change: dict[str, Any]) -> None:
        evicted = tuple(sorted(change["new"]))
        if evicted != controller.configuration.chosen_tokens:
            controller.change(policy="chosen", evicted=evicted)

    def rank(change: dict[str, Any]) -> None:
        pictures.ranking = change["new"]
        pictures.draw_order()

    for canvas in (pictures.atlas, app.finder):
        canvas.observe(lambda change: controller.choose(change["new"]), "selected")
    for canvas in (pictures.map, pictures.partner, pictures.text, pictures.losses, app.finder, app.lines):
        canvas.observe(lambda change: controller.choose_query(change["new"]), "query")
    for canvas in (pictures.map, pictures.partner):
        canvas.observe(lambda change: controller.show(region=tuple(change["new"]) or None), "view")
        canvas.on_msg(lambda canvas, content, _: answer(controller, canvas, content))
    tables = {pictures.atlas: "heads", pictures.map: "map", pictures.partner: "map", pictures.text: "row"}
    for canvas in tables:
        canvas.on_msg(lambda canvas, content, _: copy(controller, canvas, content, tables[canvas]))
    pictures.text.observe(evict, "evicted")
    app.map_controls.ranking.observe(rank, "value")

    def act(do: Callable[[], None]) -> None:
        try:
            do()
        except SinkscopeError as problem:
            app.writing.status.value = alert(str(problem))

    typed = app.writing
    typed.read.on_click(lambda _: act(lambda: app.read(typed.words.value, typed.length.value, chat=typed.kind.value)))
    typed.generate.on_click(lambda _: act(lambda: app.generate(typed.prompt, typed.count.value)))
    typed.stop.on_click(lambda _: app.rewriting.stop())
    if controller.model is None:
        pictures.text.can_evict, pictures.text.why_not = False, NEEDS_MODEL
    app.saving.button.disabled = controller.maps is None


def answer(controller: Controller, canvas: HeadMap, content: dict[str, Any]) -> None:
    """Tell a map the numbers of the cell that is pointed at."""
    if content.get("kind") == Message.HOVER:
        cell = int(content["query"]), int(content["key"])
        is_pair = controller.comparison.is_difference or controller.comparison.is_beside
        beside = controller.comparison.numbers(*cell) if is_pair else None
        canvas.answer(content, *controller.numbers(*cell), beside)


def copy(controller: Controller, canvas: w.Widget, content: dict[str, Any], what: str) -> None:
    """Send a canvas the table that it asks for."""
    if content.get("kind") == Message.COPY:
        try:
            told = copied(controller, what)
        except SinkscopeError as problem:
            told = {"problem": str(problem)}
        canvas.send({"kind": Message.COPY, **told})
