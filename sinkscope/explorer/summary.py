"""The numbers in words, as HTML in which every token is escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from sinkscope.explorer.controller import Controller
from sinkscope.explorer.pictures import CHANGED, DENSE
from sinkscope.explorer.results import Continuation, Price

STYLE = """<style>
.sinkscope-app table.sinkscope-next td, .sinkscope-app table.sinkscope-next th {padding: 0 6px; text-align: left;}
.sinkscope-app table.sinkscope-next caption {text-align: left; font-weight: bold;}
.sinkscope-app .sinkscope-continuation p {margin: 2px 0 0 12px; text-indent: -12px;}
.sinkscope-app .widget-html-content {line-height: 1.35; overflow-wrap: anywhere;}
</style>"""
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})


def token_text(controller: Controller, token: int) -> str:
    """The text of a token of the vocabulary, its white space made visible; not escaped."""
    tokenizer = None if controller.model is None else controller.model.tokenizer
    return f"#{token}" if tokenizer is None else tokenizer.decode([token]).translate(VISIBLE)


def headline(controller: Controller) -> str:
    """The configuration shown, and what it does to perplexity."""
    name, loss = escape(controller.name), controller.loss
    if controller.now.reading is None:
        return f"<b>{name}</b>" if controller.saved is not None else "<b>reading the text …</b>"
    note = f"<br><i>{escape(controller.now.reading.note)}.</i>" if controller.now.reading.note else ""
    if loss is None or controller.now is controller.dense:
        only = "" if loss is None else f": perplexity {loss.dense:.2f} over {loss.tokens:,} tokens"
        return f"Shown: <b>{name}</b>{only}{note}"
    return (
        f"Shown: <b>{name}</b>: perplexity <b>{loss.changed:.2f}</b> against {loss.dense:.2f} dense "
        f"(× {loss.changed / loss.dense:.2f}), over the same {loss.tokens:,} tokens from {loss.first:,} on{note}"
    )


def next_tokens(controller: Controller) -> str:
    """The likeliest next tokens at the chosen query as a table, dense beside the configuration."""
    rows = controller.guesses()
    at = f"next token after token {controller.query}"
    if not rows:
        return f"<b>{at}</b><br>not read under {escape(controller.name)}"
    same = controller.now is controller.dense
    columns = [("dense", DENSE, 1)] + ([] if same else [(controller.name, CHANGED, 2)])
    head = "".join(f"<th>{escape(name)}</th>" for name, _, _ in columns)
    body = "".join(
        f"<tr><td><code>{escape(token_text(controller, row[0]))}</code></td>"
        + "".join(f"<td>{_bar(row[place], colour)}</td>" for _, colour, place in columns)
        + "</tr>"
        for row in rows
    )
    return f"<table class='sinkscope-next'><caption>{at}</caption><tr><th>token</th>{head}</tr>{body}</table>"


def continuations(controller: Controller) -> str:
    """The greedy continuations of the text, dense beside the configuration."""
    pairs = [("dense", controller.dense.continuation)]
    if controller.now is not controller.dense:
        pairs.append((controller.name, controller.now.continuation))
    lines = "".join(f"<p><i>{escape(name)}:</i> {_so_far(each)}</p>" for name, each in pairs)
    return f"<div class='sinkscope-continuation'><b>greedy continuation</b>{lines}</div>"


def _so_far(continuation: Continuation | None) -> str:
    if continuation is None:
        return "…"
    return escape(continuation.text) + ("" if continuation.done else " …")


def prices(controller: Controller) -> str:
    """Bytes and operations of the configuration, beside the model as it is."""
    now, dense = controller.now.price, controller.dense.price
    if now is None:
        return ""
    other = "" if dense is None or now is dense else f" (dense: {_price(dense)})"
    return f"cache and cost at the last token: {_price(now)}{other}"


def _price(price: Price) -> str:
    return f"{price.kv_bytes / 1e6:,.2f} MB of keys and values, {price.flops / 1e9:,.3g} GFLOP"


def _bar(probability: Any, colour: str) -> str:
    if probability is None:
        return "<i>below those kept</i>"
    width = 60 * probability
    bar = f"<span style='display:inline-block;height:0.7em;width:{width:.1f}px;background:{colour}'></span>"
    return f"{bar} {probability:.3f}"
