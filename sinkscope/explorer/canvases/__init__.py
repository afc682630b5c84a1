"""What the explorer draws in the browser: widgets whose colours, limits and zoom live in JavaScript.

anywidget takes one module per widget as a text, and such a module cannot import a file beside it. So the files that the
widgets share are joined in front of the widget's own: all of them live in one scope, and no name is used twice. The
kinds of messages are declared here, and for JavaScript as the object `MESSAGES` in front of each module.

The bytes of a canvas and its `frame` are set together, inside `with canvas.hold_sync():`; the `request` in a frame is a
rising integer. `tokens` are the texts of all tokens, "" where unknown; `query` is the chosen one. `dimmed`: what is
shown is stale, a new run is under way.

A module knows nothing of a kernel. All it asks for is the `model` that its `render({model, el})` is given: `get(name)`,
`set(name, value)` and `save_changes()`, `on(event, listener)` and `off`, for "change:name" and "msg:custom", and
`send(message)`, which is answered by a "msg:custom" (with numbers, or with `words` to be shown for them). The names are
those of the traits below, and bytes are a DataView or an ArrayBuffer. Any object with these six draws the same canvases
in a page of its own, as `sinkscope.explorer.page` does.
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from importlib import resources
from typing import Any

import anywidget
import traitlets

__all__ = ["Atlas", "Explained", "Finder", "HeadMap", "Lines", "Losses", "Message", "Race", "TokenText"]

SHARED = ["colours.js", "stage.js", "texts.js"]
STYLE = (resources.files(__package__) / "canvases.css").read_text(encoding="utf-8")


class Message(StrEnum):
    """The kinds of message between a canvas and Python, each a dictionary whose ``kind`` it is."""

    HOVER = "hover"  # query, key, request: the browser asks for the numbers of a cell, and is answered
    COPY = "copy"  # the browser asks for the table of a canvas, and is answered with its CSV as `text`, or a `problem`


def module(*names: str) -> str:
    """One ES module: the kinds of messages, the shared files, then the files `names` in this order."""
    kinds = json.dumps({each.name: each.value for each in Message})
    files = [(resources.files(__package__) / name).read_text(encoding="utf-8") for name in [*SHARED, *names]]
    return "\n".join([f"const MESSAGES = Object.freeze({kinds});", *files])


def finite(value: float | None) -> float | None:
    """The value as a float, or None where it is infinite or not a number: JSON has neither."""
    return float(value) if value is not None and math.isfinite(value) else None


class Atlas(anywidget.AnyWidget):
    """Thumbnails of the attention of all heads; click, arrow keys, Home and End select one."""

    _esm = module("atlas.js")
    _css = STYLE

    # uint8 [unit, side, side] as bytes; a unit is a head's place in the labels; rows are queries, the first on top;
    # 1 to 255 run along the colour scale, 0 is not seen
    pixels = traitlets.Bytes(b"").tag(sync=True)
    # `side`, `labels` (one per unit), `places` ([layer, head] of each unit, for the numbers at the edges), `columns`
    # (heads per row), `request`, `caption`
    frame = traitlets.Dict().tag(sync=True)
    order = traitlets.List(traitlets.CInt()).tag(sync=True)  # the units in the order shown, row by row
    # one number per unit, called `score_name`, shown on hover and read out with the label; – if not finite
    scores = traitlets.List(traitlets.CFloat(allow_none=True)).tag(sync=True)
    score_name = traitlets.Unicode("").tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)  # the unit selected
    dimmed = traitlets.Bool(False).tag(sync=True)

    @traitlets.validate("scores")
    def _only_what_json_carries(self, proposal: Any) -> list[float | None]:
        return [finite(score) for score in proposal.value]


class HeadMap(anywidget.AnyWidget):
    """Queries downwards, keys to the right, the first keys also in a strip of their own that no zoom takes away.

    The browser holds one tile; another one is asked for through `view`.
    """

    _esm = module("map_view.js", "map_drawing.js", "head_map.js")
    _css = STYLE

    # uint8 [rows, cols] as bytes, the tile: 1 to 255 from `low` to `high`, 0 where the key is not seen
    pixels = traitlets.Bytes(b"").tag(sync=True)
    # uint8 [rows, any] as bytes, on the same scale: the first keys for the tile's queries; empty for no strip
    sinks = traitlets.Bytes(b"").tag(sync=True)
    # `rows`, `cols`; `query` [q0, q1] and `key` [k0, k1], the half-open token ranges the tile covers; `sinks` [k0, k1],
    # that of the keys in the strip, if there is one; `length` of the text in tokens; `low` and `high`, the values of 1
    # and 255 on the shown scale, in `unit`; `scale` ("log", "linear" or "logit"), `unit` ("probability", "logit" or
    # "log10 probability"); `diverging` (colours centred on zero); `request`, `caption`; `preview`, shown above the map
    # if not "", and `said`, below it; `spans`, named parts of the text: `names`, and `ranges` [number, start, stop]. Of
    # a comparison: `farthest`, whether it is a difference, whose farthest value from zero is kept; `link`, if not "",
    # with which maps show each other's pointer; `sides`, the captions of the two
    frame = traitlets.Dict().tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    # [q0, q1, k0, k1], the part shown; empty is everything. The browser sets it after zoom and pan and shows the old
    # tile until one that covers it comes; Python sets it to [] to show everything
    view = traitlets.List(traitlets.Int()).tag(sync=True)
    query = traitlets.Int(0).tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)

    @traitlets.observe("frame")
    def _forget_the_view_of_another_text(self, change: Any) -> None:
        if change.old and change.old.get("length") != change.new.get("length"):
            self.view = []

    def answer(
        self,
        question: dict[str, Any],
        probability: float | None,
        logit: float | None,
        partner: tuple[float | None, float | None] | None = None,
    ) -> None:
        """Answer a hover question, as it came, with its cell's exact numbers; None twice says the key is not seen.

        Those of a `partner` stand beside them where there is one, and the differences: a key that only one of the two
        sees has no probability in the other.
        """
        told: dict[str, Any] = {"probability": finite(probability), "logit": finite(logit)}
        if partner is not None:
            other, other_logit = map(finite, partner)
            told |= {"partner": {"probability": other, "logit": other_logit}}
            if other is not None or probability is not None:
                told["difference"] = (probability or 0.0) - (other or 0.0)
            if finite(logit) is not None and other_logit is not None:
                told["difference_logit"] = logit - other_logit  # type: ignore[operator]
        elif probability is None and logit is None:
            told = {"hidden": True}
        self.send({**question, **told})


class TokenText(anywidget.AnyWidget):
    """Every token can be chosen as the query or evicted, by a click or from the keyboard."""

    _esm = module("text_bars.js", "token_text.js")
    _css = STYLE

    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    # float32 [token], little-endian, as bytes: what the chosen query gives each key, in `unit` before the scale, so a
    # probability stays one when the scale is "log"; NaN where the key is not seen
    values = traitlets.Bytes(b"").tag(sync=True)
    # `query`; `scale` ("log" or "linear"); `unit` ("probability" or "logit"; "log10 " in front is ignored); `low` and
    # `high` on the shown scale, so log10 of the value when it is "log"; `request`, `caption`; `within`, written behind
    # each probability if they are not exact
    frame = traitlets.Dict().tag(sync=True)
    query = traitlets.Int(0).tag(sync=True)
    evicted = traitlets.List(traitlets.Int()).tag(sync=True)  # rising
    mode = traitlets.Enum(["query", "evict"], "query").tag(sync=True)  # what a click does; with Alt it does the other
    can_evict = traitlets.Bool(True).tag(sync=True)  # if not, `why_not` says why
    why_not = traitlets.Unicode("").tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)


class Losses(anywidget.AnyWidget):
    """The loss of each token under up to four settings, with running means; click and arrow keys choose the query."""

    _esm = module("curves.js", "losses.js")
    _css = STYLE

    # float32 [curve, token], little-endian, as bytes: nats, NaN where a token was not scored
    values = traitlets.Bytes(b"").tag(sync=True)
    # `names` (one per curve), `length` in tokens, `smooth` (tokens in a running mean), `request`, `caption`
    frame = traitlets.Dict().tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    query = traitlets.Int(0).tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)


class Race(anywidget.AnyWidget):
    """The perplexity of two policies along a long text, as it is read; on a logarithmic scale."""

    _esm = module("curves.js", "race.js")
    _css = STYLE

    # `curves`, each with `name`, `x` (tokens read) and `y` (perplexity of the last `recent` of them); `marks`, where a
    # cache is full; `length` of the text in tokens; `request`
    frame = traitlets.Dict().tag(sync=True)


class Finder(anywidget.AnyWidget):
    """Goes to a head by the numbers of its layer and its own, and to a token by its place or a part of the text."""

    _esm = module("finder.js")
    _css = STYLE

    places: traitlets.List[list[int]] = traitlets.List().tag(sync=True)  # [layer, head] of each unit
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)  # the unit that is shown
    query = traitlets.Int(0).tag(sync=True)


class Lines(anywidget.AnyWidget):
    """Lines between two columns of tokens, for several heads at once; click and arrow keys choose the query."""

    _esm = module("lines.js")
    _css = STYLE

    # float32 [unit, query, key], little-endian, as bytes: the weights between the tokens, NaN where a key is not seen
    values = traitlets.Bytes(b"").tag(sync=True)
    # `units` and `labels` (one for each head of `values`), `tokens` (texts in a column) and `places` (of these in the
    # text), `request`, `caption`
    frame = traitlets.Dict().tag(sync=True)
    heads: traitlets.List[int] = traitlets.List(traitlets.Int()).tag(sync=True)  # the units that are drawn
    query = traitlets.Int(0).tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)


class Explained(anywidget.AnyWidget):
    """Draws nothing: gives the controls of the application around it a name and an explanation of one line."""

    _esm = module("explained.js")
    _css = STYLE

    words = traitlets.Dict().tag(sync=True)  # the explanation of a control, by the name that stands beside it
