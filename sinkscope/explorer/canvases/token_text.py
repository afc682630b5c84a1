"""The text with its tokens shaded by one query's attention, and that row as bars; tokens are evicted here."""

from __future__ import annotations

import anywidget
import traitlets

from sinkscope.explorer.canvases.sources import STYLE, module


class TokenText(anywidget.AnyWidget):
    """Every token can be chosen as the query or evicted, by a click or from the keyboard.

    Set ``values`` and ``frame`` together inside ``with token_text.hold_sync():``.

    tokens: the text of every token, "" where unknown.
    values: float32 [token], little-endian, as bytes: what the chosen query gives each key, in ``unit`` before the
        scale, so a probability stays one when the scale is "log"; NaN where the key is not seen.
    frame: ``query``; ``scale`` ("log" or "linear"); ``unit`` ("probability" or "logit"; "log10 " in front is ignored);
        ``low`` and ``high`` on the shown scale, so log10 of the value when it is "log"; ``request``, ``caption``.
    query: the chosen query.
    evicted: the tokens evicted, rising.
    mode: "query" or "evict", what a click does; with Alt it does the other one.
    can_evict: whether tokens can be evicted; if not, ``why_not`` says why.
    dimmed: what is shown is stale, a new run is under way.
    """

    _esm = module("text_bars.js", "token_text.js")
    _css = STYLE

    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    values = traitlets.Bytes(b"").tag(sync=True)
    frame = traitlets.Dict().tag(sync=True)
    query = traitlets.Int(0).tag(sync=True)
    evicted = traitlets.List(traitlets.Int()).tag(sync=True)
    mode = traitlets.Enum(["query", "evict"], "query").tag(sync=True)
    can_evict = traitlets.Bool(True).tag(sync=True)
    why_not = traitlets.Unicode("").tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)
