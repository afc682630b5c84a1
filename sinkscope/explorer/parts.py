"""Named parts of the text that is looked at: its words, special tokens, turns, .. , and the attention between them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.results import HeadMaps
from sinkscope.figures.style import share, visible
from sinkscope.spans import Spans

if TYPE_CHECKING:
    from sinkscope.explorer.controller import Controller
    from sinkscope.explorer.pixels import MapOptions

SPAN_NAMES = {
    "none": "none",
    "words": "words",
    "sentences": "sentences",
    "special tokens": "special",
    "images": "images",
    "turns of the chat": "chat",
    "your own": "own",
}
MOST_SHOWN = 24  # spans whose table fits a screen
HOW_TO = {
    "chat": "give explore() messages, or spans=sinkscope.Spans.chat(...)",
    "own": "give explore(..., spans=sinkscope.Spans(...))",
}


class Parts:
    """The spans of a controller's text.

    Attributes:
        given: those that nobody finds in a text alone, by name: of its chat, and the user's own.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.given: dict[str, Spans] = {}
        self._found: dict[str, Spans] = {}

    def of(self, kind: str) -> Spans:
        """Spans of a kind of `SPAN_NAMES`; SinkscopeError where the text has none."""
        if kind in self.given:
            return self.given[kind]
        if kind not in self._found:
            self._found[kind] = self._find(kind)
        return self._found[kind]

    def _find(self, kind: str) -> Spans:
        if kind in HOW_TO:
            raise SinkscopeError(f"no such spans of this text are known; {HOW_TO[kind]}.")
        model = self._controller.model
        if model is None:
            raise SinkscopeError("spans are found in the ids of a text, which a saved record is opened without.")
        if kind == "images":
            return Spans.images(model.original, model.ids)
        if model.tokenizer is None:
            raise SinkscopeError(f"{kind} are found with a tokenizer; give explore() one.")
        find = {"words": Spans.words, "sentences": Spans.sentences, "special": Spans.special}[kind]
        return find(model.tokenizer, model.ids)

    @property
    def shown(self) -> Spans | None:
        """Those that were chosen; None for none."""
        kind = self._controller.map_options.spans
        return None if kind == "none" else self.of(kind)

    @property
    def words(self) -> np.ndarray | None:
        """[token] the number of the word of each, where cells are words."""
        if self._controller.map_options.cells != "words":
            return None
        return self.of("words").numbers(len(self._controller.tokens))

    def why_not(self, options: MapOptions) -> str:
        """Why maps cannot be shown with these spans or cells, in words; empty where they can."""
        for kind in {options.spans, "words" if options.cells == "words" else "none"} - {"none"}:
            try:
                self.of(kind).check(len(self._controller.tokens))
            except SinkscopeError as problem:
                return str(problem).rstrip(".")
        return ""

    @property
    def bands(self) -> dict[str, list]:
        """Names, and [number, start, stop] of every range, for a canvas; nothing where no spans were chosen."""
        spans = self.shown
        return {} if spans is None else {"names": list(spans.names), "ranges": [list(each) for each in spans.ranges()]}

    def table(self) -> pd.DataFrame:
        """A row for each pair of spans: the mass that the queries of one give to the keys of the other, and its null.

        The null is even attention over all tokens up to the query.

        Raises:
            SinkscopeError: no spans were chosen, or the map does not hold every token.
        """
        controller, spans = self._controller, self.shown
        if spans is None:
            raise SinkscopeError("no spans are chosen, so there is no table of them; choose some of the list `spans`.")
        maps = controller.head_maps
        assert maps is not None
        length = len(controller.tokens)
        if maps.cells != length:
            raise SinkscopeError("the map shown does not hold every token of the text, so spans have no table.")
        mass = span_masses(maps, controller.unit, spans)
        even = np.tri(length) / np.arange(1, length + 1)[:, None]
        pairs = pd.MultiIndex.from_product([spans.names, spans.names], names=["query span", "key span"])
        table = pd.DataFrame({"mass": mass.ravel(), "null": _between(even, spans, length).ravel()}, index=pairs)
        return table.reset_index().assign(shown=f"{maps.name(controller.unit)} · {controller.name}")

    def html(self) -> str:
        """The same as a table of spans by spans, or a sentence on why there is none; empty without spans."""
        if self._controller.map_options.spans == "none" or self._controller.maps is None:
            return ""
        try:
            table, names = self.table(), list(self.of(self._controller.map_options.spans).names)
        except SinkscopeError as problem:
            return f"<i>{escape(str(problem))}</i>"
        if len(names) > MOST_SHOWN:
            return f"<i>{len(names)} spans are too many for a table here; save the table of spans as CSV.</i>"
        cells = table["mass"].to_numpy().reshape(len(names), -1)
        head = "".join(f"<th scope='col'>{_named(name)}</th>" for name in names)
        body = "".join(
            f"<tr><th scope='row'>{_named(name)}</th>{''.join(map(_cell, row))}</tr>"
            for name, row in zip(names, cells, strict=True)
        )
        how = "the mean over the queries of a span (rows) of the attention summed over the keys of another (columns)"
        what = escape(f"{table['shown'].iloc[0]}: {how}")
        return f"<table class='sinkscope-spans'><caption>{what}</caption><tr><th></th>{head}</tr>{body}</table>"


def span_masses(maps: HeadMaps, unit: int, spans: Spans) -> np.ndarray:
    """What `sinkscope.SpanMass` measures, of one map: [query_span, key_span]."""
    whole = slice(0, maps.cells)
    return _between(np.nan_to_num(maps.probabilities(unit, whole, whole)), spans, maps.cells)


def _between(weights: np.ndarray, spans: Spans, length: int) -> np.ndarray:
    is_in = (spans.numbers(length)[:, None] == np.arange(len(spans))).astype(np.float64)  # [token, span]
    return is_in.T @ (weights @ is_in) / is_in.sum(0)[:, None]


def _named(name: str) -> str:
    return escape(visible(name, spaces=False))


def _cell(mass: float) -> str:
    shade = f"background:color-mix(in srgb, var(--sinkscope-shade) {60 * min(mass, 1):.0f}%, transparent)"
    return f"<td style='{shade}'>{share(mass)}</td>"
