"""The application: widgets around a controller, which ask it and show what it says."""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import IPython.display
import ipywidgets as w
import xarray as xr
from torch import Tensor

from sinkscope.arguments import checks_types
from sinkscope.attention.placement import is_same
from sinkscope.explorer.background import Interrupts, Mailbox
from sinkscope.explorer.canvases import Message
from sinkscope.explorer.configuration import CONTROLS, Choice, Control, LayerRange, Number
from sinkscope.explorer.controller import NEEDS_MODEL, Controller, sentence
from sinkscope.explorer.display import STYLE, Pictures, alert, continuations, headline, next_tokens, prices
from sinkscope.explorer.pixels import MAP_CONTROLS, RANKINGS, saved_overview
from sinkscope.explorer.results import Change, HeadMaps
from sinkscope.explorer.saving import NEEDS_KERNEL, SaveBar, save_view, static_picture, view_record
from sinkscope.explorer.streaming import StreamingTab
from sinkscope.explorer.text_model import TextModel


class Explorer(w.VBox):
    """What `sinkscope.explore` shows; its `controller` does all of it without widgets.

    Args:
        model, tokens, saved: as those of a `Controller`.
        long_ids: [token] of the text that the streaming tab plays; given with a model.
        code_text: an expression for the token ids in saved code.
        note: what has to be said about the text.
    """

    def __init__(
        self,
        model: TextModel | None,
        tokens: list[str],
        saved: HeadMaps | None = None,
        long_ids: Tensor | None = None,
        code_text: str | None = None,
        note: str = "",
    ) -> None:
        self.streaming: StreamingTab | None = None
        self._mailbox = Mailbox()
        self._code_text, self._picture, self._has_picture = code_text, None, False
        self._shown_in: int | None = None  # number of the cell that displayed it last
        self._interrupts = Interrupts(self._interrupted)
        self.controller = Controller(model, tokens, saved, self._mailbox.deliver, self._changed)
        self.controls, self.map_controls = Controls(self.controller), MapControls(self.controller)
        self.pictures = Pictures(self.controller)
        self.headline, self.busy = w.HTML(), w.HTML()
        self._note = f"<i>{escape(note)}</i>" if note else ""
        self.problem = w.HTML(self._note)
        self.next_tokens, self.continuation, self.price = w.HTML(), w.HTML(), w.HTML()
        self.saving = SaveBar(self.save_to)
        if model is not None and long_ids is not None:
            self.streaming = StreamingTab(model, long_ids, self._mailbox.deliver, self.controller.cancel)
        super().__init__(self._laid_out())
        self.add_class("sinkscope-app")
        self._wire()
        if saved is not None:
            self.controller.now.overview = saved_overview(saved)
            self._draw_reading()
            self._note = self._note or "<i>A saved record was opened without its model, so policies are at rest.</i>"
            self._say("")
        self.controller.begin()

    # --- life -----------------------------------------------------------------------------------------------------

    @checks_types
    def wait(self, timeout: float | None = 60) -> bool:
        """Wait until nothing is under way, and show what came; False after `timeout` seconds."""
        return self._mailbox.pump(lambda: not self.controller.busy, timeout)

    @property
    def record(self) -> xr.Dataset:
        """What is shown, as a record: `sinkscope.figures.explored` draws it, `sinkscope.explore` opens it again."""
        return view_record(self.controller)

    @checks_types
    def save_to(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the view into a folder: the figure, the record, and the lines of code that make them again.

        Raises:
            SinkscopeError: nothing was read yet, or the folder cannot be written.
        """
        return save_view(self.controller, folder, self._code_text)

    def close(self) -> None:
        """Stop, and leave nothing behind: no thread, no hook, no model."""
        self._interrupts.stop()
        self.controller.close()
        if self.streaming is not None:
            self.streaming.close()
        for widget in descendants(self):
            widget.close()
        super().close()

    def show(self) -> Explorer:
        """Display the application, and below it a still picture for readers without a kernel."""
        self._ipython_display_()
        self._picture = IPython.display.display(IPython.display.HTML(""), display_id=True)
        return self

    def _ipython_display_(self) -> None:
        """Display the application, unless the cell that runs has done so and now ends with it."""
        cell = getattr(IPython.get_ipython(), "execution_count", None)
        if cell is None or cell != self._shown_in:
            self._shown_in = cell
            IPython.display.display(self._repr_mimebundle_(), raw=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/plain": "sinkscope explorer", "text/html": f"<p>{escape(NEEDS_KERNEL)}</p>"}

    def _interrupted(self) -> None:
        self.controller.cancel()
        self._say("interrupted: what is shown is as it was")

    # --- building -------------------------------------------------------------------------------------------------

    def _laid_out(self) -> list[w.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}
        predictions = w.VBox([self.next_tokens, self.continuation], layout={"flex": "1 1 300px", "min_width": "260px"})
        consequences = w.Box([self.pictures.losses, predictions], layout=wrap)
        heads = w.VBox([self.map_controls, self.pictures, consequences, self.price, self.saving])
        tabs = w.Tab([heads], titles=["heads"])
        if streaming := self.streaming:
            tabs.children, tabs.titles = [heads, streaming], ["heads", "streaming"]
            tabs.observe(lambda at: streaming.make_chart() if at["new"] else streaming.pause(), "selected_index")
        top = w.HBox([self.headline, self.busy], layout={"justify_content": "space-between"})
        return [w.HTML(STYLE), top, self.problem, self.controls, tabs]

    def _wire(self) -> None:
        controller, pictures = self.controller, self.pictures
        pictures.atlas.observe(lambda change: controller.choose(change["new"]), "selected")
        pictures.map.observe(lambda change: controller.choose_query(change["new"]), "query")
        pictures.map.observe(lambda change: controller.show(region=tuple(change["new"]) or None), "view")
        pictures.map.on_msg(self._hovered)
        pictures.text.observe(lambda change: controller.choose_query(change["new"]), "query")
        pictures.text.observe(self._tokens_evicted, "evicted")
        self.map_controls.ranking.observe(self._ranked, "value")
        self.saving.button.on_click(lambda _: self._draw_picture())
        if controller.model is None:
            pictures.text.can_evict, pictures.text.why_not = False, NEEDS_MODEL
        self.saving.button.disabled = controller.maps is None

    # --- what the widgets ask ---------------------------------------------------------------------------------------

    def _tokens_evicted(self, change: dict[str, Any]) -> None:
        evicted = tuple(sorted(change["new"]))
        if evicted != self.controller.configuration.chosen_tokens:
            self.controller.change(policy="chosen", evicted=evicted)

    def _ranked(self, change: dict[str, Any]) -> None:
        self.pictures.ranking = change["new"]
        self.pictures.draw_order()

    def _hovered(self, _: Any, content: dict[str, Any], __: Any) -> None:
        if content.get("kind") == Message.HOVER:
            self.pictures.map.answer(content, *self.controller.numbers(int(content["query"]), int(content["key"])))

    # --- what the controller says -------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        try:
            self._draw[change](self)
        except Exception as error:  # a picture that fails must not take the rest with it
            self._say(sentence(error))

    def _draw_busy(self) -> None:
        busy = self.controller.busy
        live = f"<span role='status' aria-live='polite'>⏳ {escape(busy)} …</span>"
        self.busy.value = live if busy else "<span role='status'>ready</span>"
        if busy:
            self._interrupts.start()
            self._say("")
            if self.streaming:
                self.streaming.pause()
        else:
            self._interrupts.stop()
        self.controls.show()
        self.pictures.dim()

    def _draw_configuration(self) -> None:
        self.controls.show()
        self.pictures.text.evicted = list(self.controller.configuration.chosen_tokens)

    def _draw_reading(self) -> None:
        self.pictures.draw_head()
        self._draw_words()
        self.pictures.dim()
        self.saving.button.disabled = False
        self._draw_overview()
        if self.pictures.chart is not None:
            self.pictures.draw_losses()

    def _draw_overview(self) -> None:
        if self.controller.now.overview is not None:
            self.pictures.draw_overview(self.controller.now.overview.units)
            self.pictures.dim()
            if self.pictures.chart is None:  # last: the page stands still while it loads what draws charts
                self.pictures.draw_losses()

    def _draw_query(self) -> None:
        self.pictures.draw_query()
        self._draw_words()

    def _draw_map_options(self) -> None:
        self.map_controls.show()
        self.pictures.draw_head()

    def _draw_problem(self) -> None:
        self._say(self.controller.problem)
        self.pictures.dim()

    def _draw_continuation(self) -> None:
        self.continuation.value = continuations(self.controller)
        newest = self.controller.now.continuation
        if self._picture is not None and newest is not None and newest.done and not self._has_picture:
            self._draw_picture()

    def _draw_price(self) -> None:
        self.price.value = prices(self.controller)

    def _say(self, problem: str) -> None:
        self.problem.value = alert(problem) if problem else self._note

    def _draw_words(self) -> None:
        self.headline.value = headline(self.controller)
        self._draw_price()
        if self.controller.model is not None:
            self.next_tokens.value = next_tokens(self.controller)
            self.continuation.value = continuations(self.controller)

    def _draw_picture(self) -> None:
        if self._picture is not None:
            self._has_picture = True
            self._picture.update(IPython.display.HTML(static_picture(self.controller)))

    _draw: ClassVar[dict[Change, Callable[[Explorer], None]]] = {
        Change.BUSY: _draw_busy, Change.CONFIGURATION: _draw_configuration, Change.READING: _draw_reading,
        Change.OVERVIEW: _draw_overview, Change.PRICE: _draw_price, Change.CONTINUATION: _draw_continuation,
        Change.MAP_OPTIONS: _draw_map_options, Change.UNIT: lambda app: app.pictures.draw_head(),
        Change.QUERY: _draw_query, Change.PROBLEM: _draw_problem,
    }  # fmt: skip


def descendants(widget: w.Widget) -> list[w.Widget]:
    """All widgets that a widget is made of: those inside it, and the layouts and styles of all of them."""
    found = []
    for name in widget.keys:
        value = getattr(widget, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, w.Widget):
                found += [part, *descendants(part)]
    return found


# --- the widgets that ask ---------------------------------------------------------------------------------------------


class Controls(w.Box):
    """Shows the controller's configuration, a widget for each field, and asks; what does not matter is greyed."""

    def __init__(self, controller: Controller) -> None:
        self._controller, self._is_silent = controller, False
        look = {"style": {"description_width": "76px"}, "layout": {"width": "232px"}}
        self.fields = {name: widget_of(control, controller, **look) for name, control in CONTROLS.items()}
        self.reset = w.Button(description="reset", tooltip="back to the model as it is", layout={"width": "60px"})
        self.stop = w.Button(description="stop", tooltip="stop what is under way", layout={"width": "60px"})
        for name, widget in self.fields.items():
            widget.observe(lambda _, name=name: self._ask(name), "value")
        self.reset.on_click(lambda _: controller.reset())
        self.stop.on_click(lambda _: controller.cancel())
        children = [*self.fields.values(), self.reset, self.stop]
        super().__init__(children, layout={"flex_flow": "row wrap", "align_items": "center"})
        self.show()

    def show(self) -> None:
        controller, configuration = self._controller, self._controller.configuration
        self._is_silent = True
        try:
            for name, widget in self.fields.items():
                show_value(widget, CONTROLS[name], getattr(configuration, name))
                widget.disabled = controller.model is None or name not in configuration.uses
        finally:
            self._is_silent = False
        self.stop.disabled = controller.model is None or not controller.busy
        self.reset.disabled = controller.model is None

    def _ask(self, name: str) -> None:
        widget = self.fields[name]
        if not self._is_silent:
            is_all = isinstance(CONTROLS[name], LayerRange) and widget.value == (widget.min, widget.max)
            self._controller.change(**{name: None if is_all else widget.value})


class MapControls(w.Box):
    """Shows the controller's map options and the `ranking` of the overview, and asks. None runs the model."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        look = {"style": {"description_width": "initial"}, "layout": {"width": "auto", "max_width": "330px"}}
        rankings = Choice("heads by", "the order of the heads", {label: name for name, label in RANKINGS.items()})
        self.ranking = widget_of(rankings, controller, **look)
        self.fields = {name: widget_of(control, controller, **look) for name, control in MAP_CONTROLS.items()}
        if controller.model is None:
            scale = self.fields["scale"]
            scale.options = [(label, value) for label, value in scale.options if value != "logit"]
        for name, widget in self.fields.items():
            widget.observe(lambda change, name=name: controller.show(**{name: change["new"]}), "value")
        super().__init__([self.ranking, *self.fields.values()], layout={"flex_flow": "row wrap"})
        self.show()

    def show(self) -> None:
        options = self._controller.map_options
        for name, widget in self.fields.items():
            show_value(widget, MAP_CONTROLS[name], getattr(options, name))
            widget.disabled = name not in options.uses


def widget_of(control: Control, controller: Controller, **look: Any) -> w.ValueWidget:
    """The widget of a control, for the controller's text and model; `look` is its style and layout."""
    look |= {"description": control.label, "tooltip": control.tooltip}
    if isinstance(control, Choice):
        kind = w.SelectionSlider if control.is_ordered else w.Dropdown
        return kind(options=list(control.values.items()), equals=is_same, **look)
    if isinstance(control, Number):
        low, high = control.limits(len(controller.tokens))
        high = max(low, high)
        if control.is_typed:
            return w.BoundedIntText(low, low, high, **look | {"layout": {"width": "90px"}})
        return w.IntSlider(low, low, high, **look)
    layers = [0] if controller.model is None else controller.model.anatomy.numbers
    low, high = min(layers), max(layers)
    return w.IntRangeSlider(value=(low, high), min=low, max=high, **look)


def show_value(widget: w.ValueWidget, control: Control, value: Any) -> None:
    """Set a widget to the value of a field, also to one that only code can ask for."""
    if isinstance(control, Choice) and not any(is_same(value, each) for _, each in widget.options):
        widget.options = [*control.values.items(), (control.label_of(value), value)]
    elif isinstance(control, Number):
        value = min(max(value, widget.min), widget.max)
    elif isinstance(control, LayerRange) and value is None:
        value = (widget.min, widget.max)
    widget.value = value
