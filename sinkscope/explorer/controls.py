"""The controls of the model: one widget for each field of a setting."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from sinkscope.explorer.controller import Controller
from sinkscope.explorer.setting import GONE, KINDS, MOST_SINKS, NORMALISERS, Setting

DOSES = {"−∞ (gone)": GONE, **{f"{dose:+g}".replace("-", "−"): float(dose) for dose in (-8, -6, -4, -3, -2, -1)}}
DOSES |= {"0": 0.0, **{f"{dose:+g}": float(dose) for dose in (1, 2, 3, 4, 6)}}
WIDTH = "232px"


class Controls(w.Box):
    """Widgets whose values are the controller's setting, both ways.

    Args:
        controller: gets what is set; widgets that do not matter under a policy are greyed.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller, self._silent = controller, False
        length = len(controller.tokens)
        plain = Setting()
        style = {"description_width": "76px"}

        def slider(low: int, high: int, value: int, name: str, tip: str) -> w.IntSlider:
            return w.IntSlider(
                value, low, max(low, high), description=name, tooltip=tip, style=style, layout={"width": WIDTH}
            )

        def choice(options: Any, value: Any, name: str, tip: str) -> w.Dropdown:
            return w.Dropdown(
                options=options, value=value, description=name, tooltip=tip, style=style, layout={"width": WIDTH}
            )

        kinds = [(label, kind) for kind, label in KINDS.items()]
        self.fields: dict[str, w.ValueWidget] = {
            "kind": choice(kinds, plain.kind, "policy", "which keys a query may see"),
            "sinks": slider(0, min(MOST_SINKS, length), plain.sinks, "sinks", "first tokens kept, or dosed"),
            "window": slider(1, length, min(plain.window, length), "window", "last tokens kept"),
            "dose": w.SelectionSlider(
                options=list(DOSES.items()),
                value=0.0,
                description="sink dose",
                tooltip="added to the logits of the sinks",
                style=style,
                layout={"width": WIDTH},
            ),
            "positions": choice(
                [("in the cache", "cache"), ("in the text", "original")], "cache", "positions", "where sinks stand"
            ),
            "since": slider(1, length - 1, min(plain.since, length - 1), "evict from", "first query without them"),
            "normaliser": choice(list(NORMALISERS), plain.normaliser, "normaliser", "how scores become weights"),
            "layers": w.IntRangeSlider(
                value=(0, 0), min=0, max=0, description="in layers", style=style, layout={"width": WIDTH}
            ),
        }
        self.reset = w.Button(description="reset", tooltip="back to the model as it is", layout={"width": "60px"})
        self.stop = w.Button(description="stop", tooltip="stop what is under way", layout={"width": "60px"})
        for name, widget in self.fields.items():
            widget.observe(lambda change, name=name: self._changed(name, change["new"]), "value")
        self.reset.on_click(lambda _: controller.reset())
        self.stop.on_click(lambda _: controller.cancel())
        if controller.model is not None:
            self._layer_range(controller.model.anatomy.numbers)
        children = [*self.fields.values(), self.reset, self.stop]
        super().__init__(children, layout={"flex_flow": "row wrap", "align_items": "center"})
        self.show()

    def show(self) -> None:
        """Set all widgets to the controller's setting."""
        self._silent = True
        try:
            self._set_fields()
        finally:
            self._silent = False
        self.stop.disabled = self._controller.model is None or not self._controller.busy
        self.reset.disabled = self._controller.model is None

    def _set_fields(self) -> None:
        setting = self._controller.setting
        for name, widget in self.fields.items():
            value = getattr(setting, name)
            if name == "layers":
                value = (widget.min, widget.max) if value is None else value
            if name in ("window", "since"):
                value = min(value, widget.max)
            if name == "dose" and value not in DOSES.values():  # one that only code can ask for
                widget.options = [*DOSES.items(), (f"{value:+g}", value)]
            widget.value = value
            widget.disabled = self._controller.model is None or name not in {"kind", *setting.uses}

    def _layer_range(self, numbers: list[int]) -> None:
        self._silent = True
        layers = self.fields["layers"]
        layers.max, layers.min = max(numbers), min(numbers)
        layers.value = (min(numbers), max(numbers))
        self._silent = False

    def _changed(self, name: str, value: Any) -> None:
        if self._silent:
            return
        if name == "layers":
            layers = self.fields["layers"]
            value = None if value == (layers.min, layers.max) else tuple(value)
        self._controller.change(**{name: value})
