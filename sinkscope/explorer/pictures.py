"""The pictures of the explorer, drawn from its controller: the canvases, and the chart of the losses."""

from __future__ import annotations

from typing import Any

import ipywidgets as w
import numpy as np

from sinkscope.explorer.canvases import Atlas, HeadMap, TokenText
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.losses import HEIGHT, WIDTH, draw_losses, loss_figure
from sinkscope.explorer.overview import RANKINGS

WIDEST_ROW = 12  # heads in a row of the overview, where rows are layers


class Pictures(w.Box):
    """Overview, map and text of one head, side by side where there is room.

    Args:
        controller: what is drawn.

    Attributes:
        atlas, map, text: the canvases.
        losses: where the chart of the losses stands; it is made with the first losses, as it takes a browser seconds.
        ranking: by what heads are ordered.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller, self._request = controller, 0
        self.ranking, self.chart = "layer", None
        self.atlas = Atlas(layout={"flex": "0 0 auto", "width": "210px"})
        self.map = HeadMap(tokens=controller.tokens, layout={"flex": "0 1 440px", "min_width": "340px"})
        self.text = TokenText(tokens=controller.tokens, layout={"flex": "1 1 300px", "min_width": "280px"})
        self.losses = w.Box([], layout={"width": f"{WIDTH}px", "height": f"{HEIGHT + 6}px", "flex": "0 0 auto"})
        self.map.query = self.text.query = controller.query
        children = [self.atlas, self.map, self.text]
        super().__init__(children, layout={"flex_flow": "row wrap", "align_items": "flex-start"})

    def draw_head(self) -> None:
        """The map and the row of the head shown."""
        self.atlas.selected = self._controller.unit
        self._draw_map()
        self.draw_row()

    def draw_query(self) -> None:
        """The chosen query, everywhere."""
        query = self._controller.query
        self.map.query = self.text.query = query
        self.draw_row()
        if self.chart is not None and self.chart.layout.shapes:
            self.chart.layout.shapes[0].update(x0=query, x1=query)

    def draw_row(self) -> None:
        """The chosen query's row; empty where the map has no such query."""
        controller, found = self._controller, self._controller.row()
        if controller.maps is None:
            return
        values, low, high = np.full(len(controller.tokens), np.nan), 0.0, 1.0
        if found is not None:
            values, low, high = found[0], found[1].low, found[1].high
        frame = {
            "query": controller.query,
            "scale": "log" if controller.view.scale == "log" else "linear",
            "unit": "logit" if controller.view.scale == "logit" else "probability",
            "low": low,
            "high": high,
            "request": self._next_request(),
            "caption": f"{controller.caption} · query {controller.query}",
        }
        with self.text.hold_sync():
            self.text.values, self.text.frame = values.astype("<f4").tobytes(), frame

    def draw_overview(self, units: np.ndarray) -> None:
        """All heads: bytes [unit, side, side]."""
        heads = len({unit.head for unit in self._controller.units})
        frame = {
            "side": units.shape[-1],
            "labels": [str(unit) for unit in self._controller.units],
            "columns": heads if heads <= WIDEST_ROW else 2 * WIDEST_ROW,
            "request": self._next_request(),
            "caption": self._controller.name,
        }
        with self.atlas.hold_sync():
            self.atlas.pixels, self.atlas.frame = units.tobytes(), frame
        self.draw_order()

    def draw_order(self) -> None:
        """Heads in the order of the ranking, with what they are ranked by; by layer, with their sink mass."""
        scores, named = self._controller.scores(self.ranking), self.ranking
        if scores is None:
            scores, named = self._controller.scores("mass"), "mass"
        with self.atlas.hold_sync():
            self.atlas.order = self._controller.ranked(self.ranking)
            self.atlas.scores = [] if scores is None else scores.tolist()
            self.atlas.score_name = RANKINGS[named]

    def draw_losses(self) -> None:
        """The losses of the setting shown beside those of the model as it is."""
        controller = self._controller
        dense, now = controller.dense.reading, controller.now.reading
        if dense is None or now is None:
            return
        if self.chart is None:
            self.chart = loss_figure()
            self.losses.children = [self.chart]
        draw_losses(self.chart, dense.losses, None if now is dense else now.losses, controller.name, controller.query)

    def dim(self) -> None:
        """Mark what belongs to another setting than the one that is being read."""
        controller = self._controller
        reading, overview = controller.now.reading, controller.now.overview
        wanted, busy = controller.setting, bool(controller.busy)
        self.map.dimmed = self.text.dimmed = busy and (reading is None or reading.setting != wanted)
        self.atlas.dimmed = busy and (overview is None or overview.setting != wanted)

    def _draw_map(self) -> None:
        tile, view = self._controller.tile(), self._controller.view
        if tile is None:
            return
        preview = f"{view.preview} · {tile.left:.1%} of the attention is left" if view.preview else ""
        frame: dict[str, Any] = {
            "rows": tile.pixels.shape[0],
            "cols": tile.pixels.shape[1],
            "query": list(tile.query),
            "key": list(tile.key),
            "length": len(self._controller.tokens),
            "low": tile.limits.low,
            "high": tile.limits.high,
            "scale": view.scale,
            "unit": tile.limits.unit,
            "diverging": tile.limits.diverging,
            "request": self._next_request(),
            "caption": self._controller.caption,
            "preview": preview,
        }
        if view.window is None:
            self.map.view = []
        with self.map.hold_sync():
            self.map.pixels, self.map.frame = tile.pixels.tobytes(), frame

    def _next_request(self) -> int:
        self._request += 1
        return self._request
