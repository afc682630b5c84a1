"""The widgets that ask a controller: for a setting, for another way to show a map, for something beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import ipywidgets as w

from sinkscope.attention.placement import is_same
from sinkscope.explorer.configuration import CONTROLS, Choice, Control, LayerRange, Number
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.pixels import MAP_CONTROLS, RANKINGS

RANKING = Choice("sort heads by", "the order of the heads in the overview", {
    label: name for name, label in RANKINGS.items()
})  # fmt: skip
HISTORY = Control("settings shown", "the settings that were shown, with their perplexities; choose one to return to it")


class Silence:
    """While widgets are set to what is shown they ask for nothing; a change meanwhile may set them once more."""

    def __init__(self) -> None:
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1

    def __bool__(self) -> bool:
        return self._depth > 0


class CompareBar(w.HBox):
    """The settings that were shown, the way back and forth among them, and what the map is compared with."""

    def __init__(self, controller: Controller) -> None:
        self._controller, self._silence = controller, Silence()
        self.history = w.Dropdown(options=[], description=HISTORY.label, tooltip=HISTORY.tooltip,
                                  style={"description_width": "initial"})  # fmt: skip
        made = {
            "undo": ("back to the setting shown before", controller.undo),
            "redo": ("forth to the setting that was undone", controller.redo),
            "pin setting": ("compare with the setting shown now, in place of dense", controller.comparison.pin_setting),
            "pin head": ("compare with the head shown now", controller.comparison.pin_head),
            "unpin": ("compare with the model as it is, and the same head", controller.comparison.unpin),
        }
        self.buttons = {
            name: w.Button(description=name, tooltip=tooltip, layout={"width": "auto"})
            for name, (tooltip, _) in made.items()
        }
        for name, (_, act) in made.items():
            self.buttons[name].on_click(lambda _, act=act: act())
        self.partner = w.Label()
        self.history.observe(self._asked, "value")
        layout = {"flex_flow": "row wrap", "align_items": "center"}
        super().__init__([self.history, *self.buttons.values(), self.partner], layout=layout)
        self.add_class("sinkscope-choosers")
        self.show()

    def show(self) -> None:
        controller, beside = self._controller, self._controller.comparison
        visits = controller.history.visits
        shown = None if controller.now.reading is None else controller.now.reading.configuration
        places = [place for place, visit in enumerate(visits) if visit.configuration == shown]
        options = [(f"{place + 1}. {visit}", place) for place, visit in enumerate(visits)]
        with self._silence:
            if list(self.history.options) != options:
                self.history.options = options
            self.history.value = places[0] if places else None
        self.history.disabled = controller.model is None
        self.buttons["undo"].disabled = not controller.can_undo
        self.buttons["redo"].disabled = not controller.history.can_go_forth
        self.buttons["pin setting"].disabled = controller.model is None
        self.buttons["unpin"].disabled = beside.pinned is None and beside.pinned_unit is None
        is_off = controller.map_options.compare == "nothing" and self.buttons["unpin"].disabled
        self.partner.value = "" if is_off else f"compared with {beside.partner.caption}"

    def _asked(self, change: dict[str, Any]) -> None:
        if not self._silence and change["new"] is not None:
            self._controller.change(**vars(self._controller.history.visits[change["new"]].configuration))


class Controls(w.Box):
    """Shows the controller's configuration, a widget for each field, and asks; what does not matter is greyed.

    `reset` and `stop` are its buttons, which stand elsewhere.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller, self._silence = controller, Silence()
        look = {"style": {"description_width": "initial"}}
        self._controls = {name: _with_own(control, controller.offered.get(name)) for name, control in CONTROLS.items()}
        self.fields = {name: widget_of(control, controller, **look) for name, control in self._controls.items()}
        self.reset = w.Button(description="reset", tooltip="back to the model as it is", layout={"width": "60px"})
        self.stop = w.Button(description="stop", tooltip="stop what is under way", layout={"width": "60px"})
        for name, widget in self.fields.items():
            widget.observe(lambda _, name=name: self._ask(name), "value")
        self.reset.on_click(lambda _: controller.reset())
        self.stop.on_click(lambda _: controller.cancel())
        super().__init__(list(self.fields.values()), layout={"flex_flow": "row wrap", "align_items": "center"})
        self.add_class("sinkscope-controls")
        self.show()

    def show(self) -> None:
        controller, configuration = self._controller, self._controller.configuration
        with self._silence:
            for name, widget in self.fields.items():
                show_value(widget, self._controls[name], getattr(configuration, name))
                widget.disabled = controller.model is None or name not in configuration.uses
        self.stop.disabled = controller.model is None or not controller.busy
        self.reset.disabled = controller.model is None

    def _ask(self, name: str) -> None:
        widget = self.fields[name]
        if not self._silence:
            is_all = isinstance(CONTROLS[name], LayerRange) and widget.value == (widget.min, widget.max)
            self._controller.change(**{name: None if is_all else widget.value})


class MapControls(w.Box):
    """Shows the controller's map options and the `ranking` of the overview, and asks. None runs the model."""

    def __init__(self, controller: Controller) -> None:
        self._controller, self._silence = controller, Silence()
        look = {"style": {"description_width": "initial"}}
        self.ranking = widget_of(RANKING, controller, **look)
        self.fields = {name: widget_of(control, controller, **look) for name, control in MAP_CONTROLS.items()}
        if controller.model is None:
            scale = self.fields["scale"]
            scale.options = [(label, value) for label, value in scale.options if value != "logit"]
        for name, widget in self.fields.items():
            widget.observe(lambda change, name=name: self._ask(name, change["new"]), "value")
        super().__init__([self.ranking, *self.fields.values()], layout={"flex_flow": "row wrap"})
        self.add_class("sinkscope-choosers")
        self.show()

    def show(self) -> None:
        options = self._controller.map_options
        with self._silence:
            for name, widget in self.fields.items():
                show_value(widget, MAP_CONTROLS[name], getattr(options, name))
                widget.disabled = name not in options.uses

    def _ask(self, name: str, value: Any) -> None:
        if not self._silence:
            self._controller.show(**{name: value})


def _with_own(control: Control, own: Mapping[str, Any] | None) -> Control:
    """A control whose list ends with the user's own."""
    return replace(control, values={**control.values, **own}) if own and isinstance(control, Choice) else control


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
            return w.BoundedIntText(low, low, high, **look | {"layout": {"width": "130px"}})
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


def explained(widgets: Iterable[w.Widget]) -> dict[str, str]:
    """What each control among these widgets, or inside them, is for: its tooltip, by the name that stands beside it."""
    every = [part for widget in widgets for part in (widget, *descendants(widget))]
    return {part.description: part.tooltip for part in every if is_asked(part) and part.tooltip}


def is_asked(widget: w.Widget) -> bool:
    """Whether it is a control with a name beside it; buttons carry theirs themselves."""
    return isinstance(widget, w.ValueWidget) and not isinstance(widget, (w.HTML, w.Label, w.ToggleButton))


def descendants(widget: w.Widget) -> list[w.Widget]:
    """All widgets that a widget is made of: those inside it, and the layouts and styles of all of them."""
    found = []
    for name in widget.keys:
        value = getattr(widget, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, w.Widget):
                found += [part, *descendants(part)]
    return found
