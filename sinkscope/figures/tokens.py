"""Tokens as a reader can see them: every character shown, none of them able to break a drawing.

A token may be a newline, a null byte, half of an emoji, or `$\\frac{`: what has no ink gets an escape, and
what the font lacks gets its code point, so matplotlib neither warns nor draws an empty box.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from matplotlib import font_manager

SPACE = "␣"
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x00": "\\0"}


def visible(text: object, *, spaces: bool = True, limit: int | None = None) -> str:
    """`text` with spaces as ␣ (unless `spaces` is False) and control, format and unpaired characters escaped.

    With `limit`, at most that many characters, the last one then being "…".
    """
    shown = "".join(_show(character, spaces) for character in str(text))
    if not shown:
        return "(empty)" if spaces else ""
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def drawable(text: object, *, spaces: bool = True, limit: int | None = None) -> str:
    """As `visible`, and characters the figures' font has no glyph for written as their code points."""
    have = _glyphs()
    written = "".join(c if ord(c) in have else f"\\u{ord(c):04x}" for c in visible(text, spaces=spaces))
    return written if limit is None or len(written) <= limit else written[: limit - 1] + "…"


def texts_of(values: Iterable[object], *, limit: int = 14) -> list[str]:
    """Labels for several tokens, ready to draw."""
    return [drawable(value, limit=limit) for value in values]


def _show(character: str, spaces: bool) -> str:
    if character == " ":
        return SPACE if spaces else " "
    if character in _ESCAPES:
        return _ESCAPES[character]
    if unicodedata.category(character)[0] in "CZ":  # control, format, surrogate, private, unassigned, separators
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
