"""A token that must never become part of a page, and where it could."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import ipywidgets as w

HOSTILE = "<img src=x onerror=alert(1)>"
ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"
QUOTED = "\"'><script>alert(2)</script>"


class Tokenizer:
    """Every token is hostile."""

    bos_token_id = None

    def __init__(self, said: str = HOSTILE) -> None:
        self.said = said

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 100 for letter in text]}

    def decode(self, ids: Any) -> str:
        return self.said * len(ids)


class Elements(HTMLParser):
    """The names of all elements, and of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def is_harmless(page: str) -> bool:
    """Whether a page has only elements that the explorer writes, and no attribute that runs anything."""
    found = Elements(page)
    known = {"b", "i", "br", "p", "div", "span", "table", "caption", "tr", "th", "td", "code", "style", "details"}
    known |= {"section", "ol", "li", "dl", "dt", "dd"}  # of the help
    pictures = found.names & {"img"}
    ours = page.count("<img ") == page.count('src="data:image/png;base64,') if pictures else True
    handlers = {name for name in found.attributes if name.startswith("on")}
    return found.names <= known | {"img", "summary"} and not handlers and ours


def pages(widget: w.Widget) -> list[str]:
    """The HTML of all widgets inside a widget."""
    own = [widget.value] if isinstance(widget, w.HTML) else []
    return own + [page for child in getattr(widget, "children", ()) for page in pages(child)]
