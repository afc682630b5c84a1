"""What is shown of a controller: the canvases, and the numbers in words.

Words are HTML in which every token and every name is escaped.
"""

from __future__ import annotations

from html import escape
from itertools import count
from typing import Any

import ipywidgets as w
import numpy as np

from sinkscope.explorer.canvases import Atlas, HeadMap, Losses, TokenText
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.pixels import RANKINGS, Limits, MapOptions, Tile, tile_of
from sinkscope.explorer.results import HeadMaps, Price
from sinkscope.figures.style import share
from sinkscope.tokens import TokenTexts

WIDEST_ROW = 12  # heads in a row of the overview, where rows are layers
SMOOTH = 16  # tokens in a running mean
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "\\r"})


class Pictures(w.Box):
    """The canvases: overview, map, text of one head and losses, side by side where there is room.

    Attributes:
        partner: the map of what is compared with; it is there while both maps stand side by side.
        ranking: by what heads are ordered.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller, self._requests = controller, count(1)
        self.ranking = "layer"
        read: dict[str, Any] = {"tokens": controller.tokens, "query": controller.query}
        self.atlas, self.map, self.text, self.losses = Atlas(), HeadMap(**read), TokenText(**read), Losses(**read)
        self.partner = HeadMap(**read)
        reading = [self.text, self.losses] if controller.model is not None else [self.text]
        self._usual = [self.atlas, self.map, w.VBox(reading).add_class("sinkscope-reading")]
        self._is_beside = False  # whether the partner's map stands there too
        super().__init__(self._usual)
        self.add_class("sinkscope-pictures")

    def draw_head(self) -> None:
        self.atlas.selected = self._controller.unit
        self._draw_map()
        self.draw_row()
        self.dim()

    def draw_query(self) -> None:
        query = self._controller.query
        self.map.query = self.partner.query = self.text.query = self.losses.query = query
        self.draw_row()

    def draw_row(self) -> None:
        """The chosen query's row; empty where the map has no such query."""
        controller, scale = self._controller, self._controller.map_options.scale
        if controller.comparison.shown.maps is None:
            return
        values, ends = controller.row() or (np.full(len(controller.tokens), np.nan), Limits(0.0, 1.0, ""))
        frame = {
            "query": controller.query,
            "scale": "log" if scale == "log" else "linear",
            "unit": "logit" if scale == "logit" else "probability",
            "low": ends.low,
            "high": ends.high,
            "request": next(self._requests),
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
            "places": [[unit.layer, unit.head] for unit in self._controller.units],
            "columns": heads if heads <= WIDEST_ROW else 2 * WIDEST_ROW,
            "request": next(self._requests),
            "caption": self._controller.name,
        }
        with self.atlas.hold_sync():
            self.atlas.pixels, self.atlas.frame = units.tobytes(), frame
        self.draw_order()

    def draw_order(self) -> None:
        """Heads in the order of the ranking, with what they are ranked by; by layer, with their sink mass."""
        scores, ranking = self._controller.scores(self.ranking), self.ranking
        if scores is None:
            scores, ranking = self._controller.scores("mass"), "mass"
        with self.atlas.hold_sync():
            self.atlas.order = self._controller.ranked(self.ranking)
            self.atlas.scores = [] if scores is None else scores.tolist()
            self.atlas.score_name = RANKINGS[ranking]

    def draw_losses(self) -> None:
        controller = self._controller
        dense, now = controller.dense.reading, controller.now.reading
        if dense is None or now is None:
            return
        names = [name for name, _ in controller.side_by_side]
        losses = np.stack([each.reading.losses for _, each in controller.side_by_side if each.reading is not None])
        request = {"request": next(self._requests), "caption": controller.name}
        with self.losses.hold_sync():
            self.losses.values = losses.astype("<f4").tobytes()
            self.losses.frame = {"names": names, "length": losses.shape[1], "smooth": SMOOTH, **request}

    def dim(self) -> None:
        """Mark what belongs to another configuration than the one that is being read."""
        controller = self._controller
        reading, overview = controller.now.reading, controller.now.overview
        asked, is_busy = controller.configuration, bool(controller.busy)
        is_stale = is_busy and (reading is None or reading.configuration != asked)
        is_there = controller.ahead is not None and controller.ahead.configuration == asked
        self.map.dimmed = self.text.dimmed = is_stale and not (is_there and controller.comparison.is_ahead)
        self.partner.dimmed = self.losses.dimmed = is_stale
        self.atlas.dimmed = is_busy and (overview is None or overview.configuration != asked)

    def draw_partner(self) -> None:
        """What is compared with has changed."""
        if self._controller.map_options.compare != "nothing":
            self._draw_map()

    def _draw_map(self) -> None:
        beside = self._controller.comparison
        tile, other = beside.tiles()
        if tile is None:
            return
        self._draw_tile(self.map, tile, beside.caption)
        if other is not None:
            self._draw_tile(self.partner, other, beside.partner.caption)
        if self._is_beside != (other is not None):
            self._is_beside = not self._is_beside
            self.children = [*self._usual, self.partner] if self._is_beside else self._usual
            (self.add_class if self._is_beside else self.remove_class)("sinkscope-compared")

    def grow(self, maps: HeadMaps, tokens: list[str], said: str) -> None:
        """Show the map of a text that is being written, in the place of that which was."""
        unit = min(self._controller.unit, len(maps.units) - 1)
        told = {"length": len(tokens), "said": said, "spans": {}, "preview": "", "link": ""}
        self.map.tokens = tokens
        tile = tile_of(maps, unit, MapOptions())
        self._draw_tile(self.map, tile, f"{maps.name(unit)} · {said}", told | {"scale": "log"})

    def _draw_tile(self, canvas: HeadMap, tile: Tile, caption: str, growing: dict[str, Any] | None = None) -> None:
        options, beside = self._controller.map_options, self._controller.comparison
        got = f"the keys still shown were given {share_in_percent(tile.left)} of the attention"
        maps = beside.shown.maps
        tells_share = options.preview and not tile.is_difference and maps is not None and maps.sums_to_one
        preview = f"{options.preview} · {got}" if tells_share else options.preview
        if options.compare != "nothing" and beside.problem:
            preview = " · ".join(filter(None, [preview, beside.problem]))
        frame: dict[str, Any] = {
            "rows": tile.pixels.shape[0],
            "cols": tile.pixels.shape[1],
            "query": list(tile.query),
            "key": list(tile.key),
            "sinks": list(tile.sink_key),
            "length": len(self._controller.tokens),
            "scale": options.scale,
            **vars(tile.limits),
            "request": next(self._requests),
            "caption": caption,
            "preview": preview,
            "said": beside.said,
            "spans": self._controller.parts.bands,
            "farthest": tile.is_difference,
            "link": self.model_id if options.compare != "nothing" else "",
            "sides": [beside.shown.caption, beside.partner.caption],
            **(growing or {}),
        }
        maps = beside.shown.maps
        if growing is None and maps is not None and canvas.tokens != (texts := token_texts(self._controller, maps)):
            canvas.tokens = texts
        if options.region is None or canvas is self.partner:
            canvas.view = list(options.region or [])
        with canvas.hold_sync():
            canvas.pixels, canvas.sinks, canvas.frame = tile.pixels.tobytes(), tile.sinks.tobytes(), frame


def token_texts(controller: Controller, maps: HeadMaps) -> list[str]:
    """The text of every token, or of the word it is in, where maps have cells for those."""
    if not maps.is_spread:
        return controller.tokens
    sizes = np.diff(maps.starts, append=maps.length)
    own = [text for text, size in zip(maps.texts(controller.tokens), sizes, strict=True) for _ in range(size)]
    return [*controller.tokens[: maps.first], *own, *controller.tokens[maps.first + maps.length :]]


def share_in_percent(value: float) -> str:
    """A share as a percentage that is never rounded to nothing: 12.3%, 0.0021%."""
    return f"{value:.1%}" if value >= 0.001 or not value else f"{100 * value:.2g}%"


def alert(problem: str) -> str:
    """What went wrong, as screen readers say at once."""
    return f"<b role='alert'>{escape(problem)}</b>"


def token_text(controller: Controller, token: int) -> str:
    """The text of a token of the vocabulary, its white space made visible; not escaped."""
    tokenizer = None if controller.model is None else controller.model.tokenizer
    return f"#{token}" if tokenizer is None else TokenTexts(tokenizer).of(token).translate(VISIBLE)


def headline(controller: Controller) -> str:
    """The configuration shown, and what it does to perplexity."""
    name, loss, reading = escape(controller.name), controller.loss, controller.now.reading
    if reading is None:
        return f"<b>{name}</b>" if controller.saved is not None else "<b>reading the text …</b>"
    note = f"<br><i>{escape(reading.note)}.</i>" if reading.note else ""
    beside, pinned = controller.comparison.loss, controller.comparison.other
    if beside is not None and pinned is not None:
        note = (
            f"<br>Pinned: <b>{escape(pinned.configuration.name)}</b>: perplexity {beside.dense:.2f}, and "
            f"{beside.changed:.2f} as shown, on the {beside.tokens:,} tokens from position {beside.first:,} on{note}"
        )
    if loss is None or controller.now is controller.dense:
        only = "" if loss is None else f": perplexity {loss.dense:.2f} over {loss.tokens:,} tokens"
        return f"Shown: <b>{name}</b>{only}{note}"
    return (
        f"Shown: <b>{name}</b>: perplexity <b>{loss.changed:.2f}</b> against {loss.dense:.2f} dense "
        f"(× {loss.changed / loss.dense:.2f}) on the {loss.tokens:,} tokens from position {loss.first:,} on, where the "
        f"two can differ{note}"
    )


def next_tokens(controller: Controller) -> str:
    """The likeliest next tokens at the chosen query as a table, dense beside the configuration."""
    rows, at = controller.guesses(), f"next token after token {controller.query}"
    if not rows:
        both = (controller.dense.reading, controller.now.reading)
        comes = any(reading is None or not reading.is_scored for reading in both)
        return f"<b>{at}</b><br>{'…' if comes else f'not read under {escape(controller.name)}'}"
    columns = [name for name, _ in controller.side_by_side]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("token", *columns))
    body = ""
    for token, *probabilities in rows:
        if controller.now is controller.dense:
            del probabilities[1]  # which is the first once more
        bars = [_bar(each, at) for each, at in zip(probabilities, ("first", "second", "third"), strict=False)]
        cells = [f"<code>{escape(token_text(controller, token))}</code>", *bars]
        body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return f"<table class='sinkscope-next'><caption>{at}</caption><tr>{head}</tr>{body}</table>"


def continuations(controller: Controller) -> str:
    """The greedy continuations of the text, dense beside the configuration."""
    lines = ""
    for name, results in controller.side_by_side:
        so_far = results.continuation
        text = "…" if so_far is None else escape(so_far.text) + ("" if so_far.done else " …")
        lines += f"<p><i>{escape(name)}:</i> {text}</p>"
    return f"<div class='sinkscope-continuation'><b>greedy continuation</b>{lines}</div>"


def prices(controller: Controller) -> str:
    now, dense = controller.now.price, controller.dense.price
    if now is None:
        return ""
    other = "" if dense is None or now is dense else f" (dense: {_price(dense)})"
    return f"cache and cost at the last token: {_price(now)}{other}"


def _price(price: Price) -> str:
    if price.unknown:
        return f"unknown: {escape(price.unknown)}"
    return f"{price.kv_bytes / 1e6:,.2f} MB of keys and values, {price.flops / 1e9:,.3g} GFLOP"


def _bar(probability: Any, curve: str) -> str:
    if probability is None:
        return "<i>not in the top list</i>"
    look = f"width:{60 * probability:.1f}px;background:var(--sinkscope-{curve})"
    shown = share(probability) if probability >= 0.9995 else f"{probability:.3f}"
    return f"<span class='sinkscope-share' style='{look}'></span> {shown}"
