"""The widgets that ask: one for each field of the attention configuration, and one for each of the map options."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from sinkscope.explorer.configuration import CONTROLS, Choice, Control, LayerRange, Number, is_same
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.pixels import MAP_CONTROLS, RANKINGS

WIDTH = "232px"


def widget_of(control: Control, value: Any, length: int, layers: list[int], **look: Any) -> w.ValueWidget:
    """The widget of a control.

    Args:
        control: its entry.
        value: what it is set to at first.
        length: of the text in tokens.
        layers: numbers of the model's attention layers.
        look: style and layout.
    """
    look |= {"description": control.label, "tooltip": control.tooltip}
    if isinstance(control, Choice):
        kind = w.SelectionSlider if control.is_ordered else w.Dropdown
        return kind(options=list(control.values.items()), value=value, equals=is_same, **look)
    if isinstance(control, Number):
        low, high = control.limits(length)
        high = max(low, high)
        if control.is_typed:
            return w.BoundedIntText(value, low, high, **look | {"layout": {"width": "90px"}})
        return w.IntSlider(min(max(value, low), high), low, high, **look)
    low, high = min(layers, default=0), max(layers, default=0)
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


def value_of(widget: w.ValueWidget, control: Control) -> Any:
    """The value of a field that a widget asks for."""
    if isinstance(control, LayerRange):
        return None if widget.value == (widget.min, widget.max) else tuple(widget.value)
    return widget.value


class Controls(w.Box):
    """Widgets whose values are the controller's configuration, both ways.

    Args:
        controller: gets what is set; widgets that do not matter under a policy are greyed.

    Attributes:
        fields: the widgets, by field.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller, self._is_silent = controller, False
        layers = [] if controller.model is None else controller.model.anatomy.numbers
        values, look = (
            vars(controller.configuration),
            {"style": {"description_width": "76px"}, "layout": {"width": WIDTH}},
        )
        self.fields: dict[str, w.ValueWidget] = {
            name: widget_of(control, values[name], len(controller.tokens), layers, **look)
            for name, control in CONTROLS.items()
        }
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
        """Set all widgets to the controller's configuration."""
        controller, uses = self._controller, self._controller.configuration.uses
        self._is_silent = True
        try:
            for name, widget in self.fields.items():
                show_value(widget, CONTROLS[name], getattr(controller.configuration, name))
                widget.disabled = controller.model is None or name not in uses
        finally:
            self._is_silent = False
        self.stop.disabled = controller.model is None or not controller.busy
        self.reset.disabled = controller.model is None

    def _ask(self, name: str) -> None:
        if not self._is_silent:
            self._controller.change(**{name: value_of(self.fields[name], CONTROLS[name])})


class MapControls(w.Box):
    """Widgets whose values are the controller's map options, and the ranking of the overview. None runs the model.

    Attributes:
        ranking: the dropdown by which heads are ordered.
        fields: the widgets of the map options, by field.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        look = {"style": {"description_width": "initial"}, "layout": {"width": "auto", "max_width": "330px"}}
        rankings = Choice("heads by", "the order of the heads", {label: name for name, label in RANKINGS.items()})
        self.ranking = widget_of(rankings, "layer", 0, [], **look)
        self.fields: dict[str, w.ValueWidget] = {
            name: widget_of(control, getattr(controller.map_options, name), len(controller.tokens), [], **look)
            for name, control in MAP_CONTROLS.items()
        }
        if controller.model is None:
            scale = self.fields["scale"]
            scale.options = [(label, value) for label, value in scale.options if value != "logit"]
        for name, widget in self.fields.items():
            widget.observe(lambda change, name=name: controller.show(**{name: change["new"]}), "value")
        super().__init__([self.ranking, *self.fields.values()], layout={"flex_flow": "row wrap"})
        self.show()

    def show(self) -> None:
        """Set all widgets to the controller's map options, and grey what does not matter."""
        for name, widget in self.fields.items():
            show_value(widget, MAP_CONTROLS[name], getattr(self._controller.map_options, name))
            widget.disabled = name not in self._controller.map_options.uses
