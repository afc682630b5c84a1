"""All heads at once: one canvas of thumbnails, from which a head is selected."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from sinkscope.explorer.canvases.numbers import finite
from sinkscope.explorer.canvases.sources import STYLE, module


class Atlas(anywidget.AnyWidget):
    """Thumbnails of the attention of all heads; click, arrow keys, Home and End select one.

    Set ``pixels`` and ``frame`` together inside ``with atlas.hold_sync():``.

    pixels: uint8 [unit, side, side] as bytes; a unit is a head's place in the labels; rows are queries, the first on
        top; 1 to 255 run along the colour scale, 0 is not seen.
    frame: ``side``, ``labels`` (one per unit), ``columns`` (heads per row), ``request`` (rising integer), ``caption``.
    order: the units in the order shown, row by row.
    scores: one number per unit, called ``score_name``, shown on hover and read out with the label; – if not finite.
    selected: the unit selected.
    dimmed: what is shown is stale, a new run is under way.
    """

    _esm = module("atlas.js")
    _css = STYLE

    pixels = traitlets.Bytes(b"").tag(sync=True)
    frame = traitlets.Dict().tag(sync=True)
    order = traitlets.List(traitlets.CInt()).tag(sync=True)
    scores = traitlets.List(traitlets.CFloat(allow_none=True)).tag(sync=True)
    score_name = traitlets.Unicode("").tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)

    @traitlets.validate("scores")
    def _only_what_json_carries(self, proposal: Any) -> list[float | None]:
        return [finite(score) for score in proposal.value]
