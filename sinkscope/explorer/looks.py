"""The controls of the pictures: how maps are shown and heads are ordered. None of them runs the model."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from sinkscope.explorer.controller import Controller
from sinkscope.explorer.overview import RANKINGS
from sinkscope.explorer.view import HIDINGS

SCALE_NAMES = {"log": "log probability", "linear": "probability", "logit": "logit"}


class Looks(w.Box):
    """Widgets whose values are the controller's view, and the ranking of the overview.

    Attributes:
        ranking: the dropdown by which heads are ordered.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        style, layout = {"description_width": "initial"}, {"width": "auto", "max_width": "330px"}
        scales = [(label, scale) for scale, label in SCALE_NAMES.items() if controller.model or scale != "logit"]
        self.fields: dict[str, w.ValueWidget] = {
            "scale": w.Dropdown(options=scales, value="log", description="scale", style=style, layout=layout),
            "hiding": w.Dropdown(
                options=[(label, name) for name, label in HIDINGS.items()],
                value="nothing",
                description="preview",
                tooltip="hide the sink columns at once, without running the model",
                style=style,
                layout=layout,
            ),
            "hidden": w.BoundedIntText(
                controller.view.hidden, 1, 16, description="keys", style=style, layout={"width": "90px"}
            ),
        }
        self.ranking = w.Dropdown(
            options=[(label, name) for name, label in RANKINGS.items()],
            value="layer",
            description="heads by",
            style=style,
            layout=layout,
        )
        for name, widget in self.fields.items():
            widget.observe(lambda change, name=name: controller.show(**{name: change["new"]}), "value")
        super().__init__([self.ranking, *self.fields.values()], layout={"flex_flow": "row wrap"})

    def show(self) -> None:
        """Set all widgets to the controller's view."""
        for name, widget in self.fields.items():
            widget.value = getattr(self._controller.view, name)

    def rest(self, *_: Any) -> None:
        """Grey what does not matter."""
        self.fields["hidden"].disabled = self._controller.view.hiding == "nothing"
