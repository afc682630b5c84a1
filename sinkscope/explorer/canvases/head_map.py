"""The attention map of one head, token by token, with zoom, pan and exact numbers on hover."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from sinkscope.explorer.canvases.numbers import finite
from sinkscope.explorer.canvases.sources import STYLE, module


class HeadMap(anywidget.AnyWidget):
    """Queries downwards, keys to the right. The browser holds one tile; another one is asked for through ``view``.

    Set ``pixels`` and ``frame`` together inside ``with head_map.hold_sync():``.

    pixels: uint8 [rows, cols] as bytes, the tile: 1 to 255 from ``low`` to ``high``, 0 where the key is not seen.
    frame: ``rows``, ``cols``; ``query`` [q0, q1] and ``key`` [k0, k1], the half-open token ranges the tile covers;
        ``length`` of the text in tokens; ``low`` and ``high``, the values of 1 and 255 on the shown scale, in ``unit``;
        ``scale`` ("log", "linear" or "logit"), ``unit`` ("probability", "logit" or "log10 probability"); ``diverging``
        (colours centred on zero); ``request`` (rising integer), ``caption``; ``preview``, shown over the map if not "".
    tokens: the text of every token, "" where unknown.
    view: [q0, q1, k0, k1], the part shown; empty is everything. The browser sets it after zoom and pan and shows the
        old tile until one that covers it comes; Python sets it to [] to show everything. It empties itself when
        a frame of another length is set.
    query: the chosen query.
    dimmed: what is shown is stale, a new run is under way.

    Messages: the browser sends ``{"kind": "hover", "query", "key", "request"}`` and is answered by ``answer``.
    """

    _esm = module("map_view.js", "map_drawing.js", "head_map.js")
    _css = STYLE

    pixels = traitlets.Bytes(b"").tag(sync=True)
    frame = traitlets.Dict().tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    view = traitlets.List(traitlets.Int()).tag(sync=True)
    query = traitlets.Int(0).tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)

    @traitlets.observe("frame")
    def _forget_the_view_of_another_text(self, change: Any) -> None:
        if change.old and change.old.get("length") != change.new.get("length"):
            self.view = []

    def answer(self, question: dict[str, Any], probability: float | None, logit: float | None) -> None:
        """Answer a hover question, as it came, with its cell's exact numbers; None twice says the key is not seen."""
        if probability is None and logit is None:
            self.send({**question, "hidden": True})
        else:
            self.send({**question, "probability": finite(probability), "logit": finite(logit)})
