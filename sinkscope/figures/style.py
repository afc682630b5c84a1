"""The one look of figures on paper, and limits, ticks, numbers, tokens and sources as a reader can read them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.ticker import LogLocator, MaxNLocator

from sinkscope.figures import marks as m
from sinkscope.figures.checks import PALETTE
from sinkscope.figures.fonts import FONT, glyphs

BLUE, VERMILION, INK, QUIET = (PALETTE[name] for name in ("blue", "vermilion", "ink", "quiet"))
MISSING = "#dfdfdf"
OVER_PICTURE = 0.6  # opacity of cells that lie over a picture
MAPS = {
    "probability": "magma_r",  # light is little, dark is much: reads the same in grey
    "logit": "viridis",  # another map for another unit: logits must not look like probabilities
    "difference": "RdBu_r",  # around zero: blue is less, red is more
    "factor": "YlGnBu",  # a factor is neither: how many times as much, light is once
}

_NOT_STYLE = ("backend", "interactive", "toolbar", "timezone", "webagg", "tk.", "savefig.directory", "date.epoch")
STYLE: dict[str, Any] = {
    **{key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith(_NOT_STYLE)},
    "font.family": [FONT],
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
    if high < 4 * low:
        return even_ticks(low, high, 8, steps=[1, 2, 5, 10])
    steps = (1, 2, 3, 5) if high < 12 * low else (1, 2, 5) if high < 1000 * low else (1,)
    return [float(mark) for mark in LogLocator(subs=steps).tick_values(low, high) if low <= mark <= high]


def plain_number(value: float, _: object = None) -> str:
    """At an axis: 0.5, 10, 1,000."""
    return f"{value:,.6g}"


def number(value: float, digits: int = 3) -> str:
    """A figure for a reader: three significant digits, thousands apart, never `1e+03`, and a minus sign, no hyphen."""
    if value != value:
        return "n/a"
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    sign, size = "−" if value < 0 else "", abs(value)
    if size and (size >= 1e6 or size < 1e-4):
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        return f"{sign}{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"
    if size >= 10 ** (digits - 1):
        return f"{sign}{size:,.0f}"
    return sign + (f"{size:.{digits}g}" if size < 1 else f"{size:.{digits - len(str(int(size)))}f}")


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage for a reader: −19.8%."""
    return f"{100 * value:.{digits}f}%".replace("-", "−")


def share(value: float, digits: int = 3) -> str:
    """A share of a whole, as `number`; one that this would round to 1 is told by what it lacks: 1 − 2 × 10⁻⁶."""
    if not 1 - 0.5 * 10.0**-digits <= value < 1:
        return number(value, digits)
    mantissa, exponent = f"{1 - value:.1e}".split("e")
    return f"1 − {mantissa.removesuffix('.0')} × 10{str(int(exponent)).translate(_RAISED)}"


def within(value: float, low: float, high: float) -> str:
    """`1.93 [1.80, 2.06]`; without an interval where there is none."""
    shown = [number(float(each)) for each in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if np.isfinite(low) and np.isfinite(high) else shown[0]


def ratio_said(row: Mapping[Hashable, Any], name: str = "ratio") -> str:
    """The same of a column of a table, with those of its bounds beside it."""
    return within(row[name], row[f"{name}_low"], row[f"{name}_high"])


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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
    have = glyphs()
    written = "".join(c if ord(c) in have else f"\\u{ord(c):04x}" for c in visible(text, spaces=spaces))
    return written if limit is None or len(written) <= limit else written[: limit - 1] + "…"


def _show(character: str, spaces: bool) -> str:
    if character == " ":
        return "␣" if spaces else " "
    if character in _ESCAPES:
        return _ESCAPES[character]
    if unicodedata.category(character)[0] in "CZ":  # control, format, surrogate, private, unassigned, separators
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def source_line(attributes: Mapping[str, Any]) -> str:
    """One line: model, revision, dtype, text, how much of it, BOS, what it was timed on, version, date."""
    get = attributes.get
    parts = [model_name(attributes)]
    if get("revision") and str(get("revision")) not in ("unknown", "None", "none"):
        parts.append(f"revision {str(get('revision'))[:12]}")
    parts += [str(get(key)) for key in ("dtype", "text") if get(key)]
    if get("tokens") is not None:
        sequences, tokens = max(int(get("sequences", 1)), 1), int(get("tokens", 0))
        equal = f"{sequences:,} × {tokens // sequences:,} tokens" if sequences > 1 else f"{tokens:,} tokens"
        parts.append(equal if tokens % sequences == 0 else f"{sequences:,} sequences, {tokens:,} tokens")
    parts += [f"{word}: {get(key)}" for key, word in (("bos", "BOS"), ("attention", "attention")) if get(key)]
    if get("threads"):
        parts.append(f"{get('device', 'cpu')}, {get('threads')} thread{'' if get('threads') == 1 else 's'}")
    if get("sinkscope"):
        parts.append(f"sinkscope {get('sinkscope')}")
    if get("date"):
        parts.append(str(get("date"))[:10])
    return visible(" · ".join(parts), spaces=False)


def model_name(attributes: Mapping[str, Any]) -> str:
    """What to call the model: its name, or the last part of its path."""
    name = str(attributes.get("model", "")) or "unknown model"
    return PurePath(name).name if name.startswith(("/", "~", ".")) or name[1:3] in (":\\", ":/") else name


def source_json(attributes: Mapping[str, Any]) -> str:
    """Every attribute of the record, as one line of ASCII JSON in a fixed order: the exact provenance.

    A model in a folder goes by its last name: what is published does not show the folders of a machine.
    """
    plain = {str(key): _plain(value) for key, value in attributes.items()}
    return json.dumps({**plain, "model": model_name(attributes)}, sort_keys=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def extent(marks: Sequence[m.Mark], axis: Literal["x", "y"], positive: bool = False) -> tuple[float, float]:
    """The lowest and the highest value of marks along an axis, intervals included; NaN where there is none."""
    found: list[Any] = [np.array([np.nan])]
    for mark in marks:
        if isinstance(mark, m.Series):
            bounds = ("low", "high") if axis == "y" else ("left", "right")
            found += [getattr(mark, name) for name in (axis, *bounds) if getattr(mark, name, None) is not None]
        if isinstance(mark, m.Bars):
            found += [mark.base + mark.y] if axis == "y" else [mark.x - mark.width / 2, mark.x + mark.width / 2]
        elif isinstance(mark, m.Reference) and getattr(mark, axis) is not None:
            found.append(np.array([getattr(mark, axis)]))
    values = np.concatenate([np.ravel(each) for each in found])
    values = values[np.isfinite(values) & ((values > 0) | (not positive))]
    return (float(values.min()), float(values.max())) if len(values) else (float("nan"), float("nan"))


def headroom(marks: Sequence[m.Mark], most: float = float("inf")) -> float | None:
    """The end of a y axis that begins at 0: a little above the highest mark, and no more than `most`."""
    high = extent(marks, "y")[1]
    return min(most, 1.05 * high) if high > 0 else None
