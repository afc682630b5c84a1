"""What is drawn as lines between two columns of tokens: of the heads of one layer, up to 64 tokens."""

from __future__ import annotations

from itertools import count

import numpy as np

from sinkscope.explorer.canvases import Lines
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.pixels import FIRST
from sinkscope.explorer.results import HeadMaps

MOST = 64  # tokens in a column
POOLED = "this map was pooled, so it has no lines between single tokens"
_REQUESTS = count(1)


def places_of(maps: HeadMaps, query: int) -> list[int]:
    """The tokens in the columns: the first ones, and those up to the query or, before that, to the last that fits."""
    first, stop = maps.tokens.start, maps.tokens.stop
    last = min(stop, max(min(query, stop - 1) + 1, first + MOST))
    recent = range(max(first + FIRST, last - (MOST - FIRST)), last)
    return [*range(first, min(first + FIRST, stop)), *recent]


def weights_between(maps: HeadMaps, units: list[int], places: list[int]) -> np.ndarray:
    """What each of the tokens gives to each: [unit, query, key], NaN where a key is not seen."""
    rows = np.array(places) - maps.first
    early = int((rows < FIRST).sum())
    parts = [slice(0, early), *([slice(int(rows[early]), int(rows[-1]) + 1)] if len(rows) > early else [])]
    whole = slice(0, maps.cells)
    return np.stack(
        [np.concatenate([maps.probabilities(unit, part, whole) for part in parts])[:, rows] for unit in units]
    )


def draw_lines(canvas: Lines, controller: Controller) -> None:
    """Show the lines of the layer of the head shown; those of that head, unless others of the layer were chosen."""
    maps, query = controller.now_maps, controller.query
    if maps is None:
        return
    layer = maps.units[controller.unit].layer
    units = [at for at, each in enumerate(maps.units) if each.layer == layer]
    kept = [at for at in canvas.heads if at in units]
    frame = {"request": next(_REQUESTS), "units": units, "labels": [f"head {maps.units[at].head}" for at in units]}
    values = np.zeros(0, np.float32)
    if maps.cells != maps.length:
        frame |= {"caption": POOLED, "tokens": [], "places": []}
    else:
        places = places_of(maps, query)
        values = weights_between(maps, units, places).astype("<f4")
        words = [controller.tokens[place] for place in places]
        frame |= {"caption": f"layer {layer} · {controller.name}", "tokens": words, "places": places}
    with canvas.hold_sync():
        canvas.heads = kept if controller.unit in kept else [controller.unit]
        canvas.query, canvas.values, canvas.frame = query, values.tobytes(), frame
