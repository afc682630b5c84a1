"""The one look of every figure on paper, and numbers and ticks that a reader can read, on paper and page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.ticker import LogLocator, MaxNLocator

# Okabe and Ito (2008): told apart with any colour vision; with the dashes also in grey.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
INK, QUIET, FAINT, GRID = "#1a1a1a", "#6b6b6b", "#c8c8c8", "#e0e0e0"
PALETTE = {
    "blue": BLUE, "vermilion": VERMILION, "green": GREEN, "orange": ORANGE, "purple": PURPLE, "sky": SKY, "ink": INK,
    "quiet": QUIET, "faint": FAINT, "grid": GRID,
}  # fmt: skip
MISSING = "#dfdfdf"
MAPS = {
    "probability": "magma_r",  # light is little, dark is much: reads the same in grey
    "logit": "viridis",  # another map for another unit: logits must not look like probabilities
    "factor": "YlGnBu",  # a factor is neither: how many times as much, light is once
}

_NOT_STYLE = ("backend", "interactive", "toolbar", "timezone", "webagg", "tk.", "savefig.directory", "date.epoch")
STYLE: dict[str, Any] = {
    **{key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith(_NOT_STYLE)},
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same drawing on every machine
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 2.2,
    "axes.linewidth": 0.6, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.2, "lines.markersize": 3, "image.interpolation": "nearest",
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "sinkscope",
    "savefig.dpi": 300, "figure.dpi": 150,
}  # fmt: skip


def colour_map(name: str) -> Colormap:
    """Of a `ColourBar`, grey where there is no value. Layers go without the light end, which a thin line loses."""
    if name == "depth":
        return LinearSegmentedColormap.from_list("depth", mpl.colormaps["viridis"](np.linspace(0, 0.88, 64)))
    return mpl.colormaps[MAPS[name]].with_extremes(bad=MISSING)


def depth_colours(layers: int) -> list[str]:
    """A colour for each layer, from first to last."""
    return [mpl.colors.to_hex(each) for each in colour_map("depth")(np.linspace(0, 1, max(layers, 2)))][:layers]


def layer_ticks(size: int, most: int = 12) -> list[int]:
    """Whole numbers to mark on an axis of `size` layers or heads."""
    step = next(s for s in (1, 2, 3, 5, 10, 20, 50, 100, 1000) if size / s <= most)
    return list(range(0, size, step))


def even_ticks(low: float, high: float, most: int = 5, **options: Any) -> list[float]:
    """At most so many round numbers at equal distances, between `low` and `high`."""
    marks = MaxNLocator(most, **options).tick_values(low, high)
    return [float(mark) for mark in marks if low <= mark <= high]


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers to mark on a logarithmic axis: 1, 2, 5, 10, 20 ..; more closely over little more than one power of ten,
    and at powers of ten alone over more than three."""
    marks: Sequence[float] | np.ndarray
    if high < 4 * low:
        marks = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(low, high)
    else:
        steps = (1, 2, 3, 5) if high < 12 * low else (1, 2, 5) if high < 1000 * low else (1,)
        marks = LogLocator(subs=steps).tick_values(low, high)
    return [float(mark) for mark in marks if low <= mark <= high]


def plain_number(value: float, _: object = None) -> str:
    """At an axis: 0.5, 10, 1,000."""
    return f"{value:,.6g}"


def number(value: float, digits: int = 3) -> str:
    """A figure for a reader: three significant digits, thousands apart, never `1e+03`."""
    if value != value:
        return "n/a"
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 1 else f"{value:.{digits - len(str(int(abs(value))))}f}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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
