"""The help of the explorer: a tour of two minutes, the keys, and the words."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as w

from sinkscope.explorer.pixels import FIRST
from sinkscope.glossary import DEFINITIONS

TOUR = (
    "The map in the middle shows one head. Each row is a token that reads (query), each column a token that it may "
    "look at (key); bright is much attention. The strip at its left is the same map's first keys, widened: a bright "
    "strip is an attention sink.",
    "The overview at the left has all heads. Click another one, or use the arrow keys. With <i>sort heads by</i>, "
    f"<i>attention on the first {FIRST} tokens</i>, those with the largest sinks come first.",
    "Set <i>policy</i> to <i>window</i>. The first tokens now leave the cache; the line at the top and the losses say "
    "what that costs in perplexity.",
    "Set <i>policy</i> to <i>sinks + window</i>: a few first tokens stay beside the window. Compare the perplexity. "
    "<i>sink dose</i> makes the sinks weaker or stronger.",
    "Click a token in the text to see its row. With <i>evict / restore</i> a click takes a token away from later "
    "queries: try the first one.",
    "<i>compare</i> puts the model as it is, or what you pin, beside what is shown or subtracts it. "
    "<i>settings shown</i> leads back.",
    "The tab <i>streaming</i> plays a long text through two policies. <i>save view</i> keeps figure, data and code; "
    "<code>app.save_page('sinks.html')</code> writes a page that needs no kernel.",
)
KEYS = (
    "Keys. Overview: arrows, Home and End choose a head. Map: arrows move, + and − zoom, 0 or Escape shows everything, "
    "Shift with an arrow reads cell by cell. Text: arrows go from token to token, q chooses the query, e evicts or "
    "restores. Losses: left and right choose the query. C copies the table of what has the focus."
)


class Guide:
    """A button, and what it shows."""

    def __init__(self) -> None:
        self.button = w.ToggleButton(
            False, description="help", tooltip="a tour of two minutes, the keys, and the words"
        )
        self.button.layout.width = "60px"
        self.button.add_class("sinkscope-help")
        self.panel = w.HTML(guide(), layout={"display": "none"})
        self.panel.add_class("sinkscope-guide")
        self.button.observe(self._toggled, "value")

    def _toggled(self, change: dict[str, Any]) -> None:
        self.panel.layout.display = None if change["new"] else "none"


def guide() -> str:
    """The tour, the keys and the definitions, as HTML."""
    steps = "".join(f"<li>{step}</li>" for step in TOUR)
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(told)}.</dd>" for word, told in DEFINITIONS.items())
    return (
        f"<section aria-label='help'><b>A tour of two minutes</b><ol>{steps}</ol><p>{KEYS}</p>"
        f"<b>Words</b><dl>{words}</dl></section>"
    )
