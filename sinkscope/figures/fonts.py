"""The font of the figures: matplotlib's own, so that a drawing is the same on every machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

FONT = "DejaVu Sans"


@contextmanager
def hushed(name: str) -> Iterator[None]:
    """Let a logger say nothing but errors for as long as this lasts."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


# On the first run on a machine matplotlib lists all its fonts, and says so in red: nothing that a reader can act on.
with hushed("matplotlib.font_manager"):
    from matplotlib import font_manager


@lru_cache
def glyphs() -> frozenset[int]:
    """The code points that the font has a glyph for."""
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())
