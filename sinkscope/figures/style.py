"""The one look of every figure: sizes, type, colours, and the small line that says where the data came from.

`paper_figure` lends matplotlib the style while a figure is drawn and takes it back afterwards: neither what
the user has set in `rcParams` nor what we set leaks into the other. Nothing here touches pyplot.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from sinkscope.figures.provenance import file_metadata, source_line
from sinkscope.figures.tokens import drawable

COLUMN = 3.25  # inches: one column of a paper
PAGE = 6.75  # inches: the full width

# Okabe and Ito (2008): told apart with any colour vision; with the dashes also in grey.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
INK, QUIET, FAINT = "#1a1a1a", "#6b6b6b", "#c8c8c8"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1)),
)
MARKERS = ("o", "s", "^", "D", "v", "P")

PROBABILITY_MAP = "magma_r"  # light is little, dark is much: reads the same in grey
LOGIT_MAP = "viridis"  # another map for another unit: logits must not look like probabilities
FACTOR_MAP = "YlGnBu"  # a factor is neither: how many times as much, light is once
MISSING = "#dfdfdf"

_NOT_STYLE = (
    "backend",
    "interactive",
    "toolbar",
    "timezone",
    "webagg",
    "tk.",
    "savefig.directory",
    "date.epoch",
)
STYLE: dict[str, Any] = {
    **{key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith(_NOT_STYLE)},
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same drawing on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "image.interpolation": "nearest",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "sinkscope",
    "savefig.dpi": 300,
    "figure.dpi": 150,
}


class PaperFigure(Figure):
    """A matplotlib Figure that keeps its style and its provenance wherever it is saved.

    It shows itself in Jupyter without pyplot. Saved twice it gives the same bytes: no file holds the time of
    saving.
    """

    name: str = ""
    attributes: Mapping[str, Any] = {}

    def savefig(self, fname: Any, **options: Any) -> None:
        kind = options.get("format") or str(getattr(fname, "name", fname)).rpartition(".")[2]
        own = file_metadata(self.name, self.attributes, str(kind).lower())
        if own is not None:
            options["metadata"] = {**own, **(options.get("metadata") or {})}
        with mpl.rc_context(cast(Any, STYLE)):
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        target = io.BytesIO()
        self.savefig(target, format="png", dpi=150)
        return target.getvalue()


@contextmanager
def paper_figure(record: xr.Dataset | pd.DataFrame, name: str, width: float, height: float) -> Iterator[PaperFigure]:
    """A figure to draw into, `width` x `height` inches, with the style on and the source line added at the
    end.
    """
    with mpl.rc_context(cast(Any, STYLE)):
        figure = PaperFigure(figsize=(width, height), layout="constrained")
        figure.name = name
        figure.attributes = {str(key): value for key, value in record.attrs.items()}
        yield figure
        lines = textwrap.wrap(
            drawable(source_line(figure.attributes), spaces=False), int(width * 26), break_long_words=True
        )
        figure.supxlabel(
            "\n".join(lines[:4]),
            x=0.01,
            ha="left",
            fontsize=5,
            color=QUIET,
            parse_math=False,
            linespacing=1.15,
        )
        figure.draw_without_rendering()  # ticks are made late: make them while the style is on


def depth_colours() -> Colormap:
    """Layers from first to last; without the light end, which a thin line on paper loses."""
    return LinearSegmentedColormap.from_list("depth", mpl.colormaps["viridis"](np.linspace(0, 0.88, 64)))


def plain_ticks(value: float, _: object = None) -> str:
    """Marks of a logarithmic axis of positions: 1, 10, 1,000."""
    return f"{value:,.0f}"


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
