"""What a figure is made of: a drawing of panels, each with two axes and the marks between them.

A figure is described once, in these words, and rendered twice: by matplotlib for paper and by plotly for the page of a
report. Both show the same marks on the same scales. Nothing here draws, and nothing here knows either library.

A figure of your own is one function, from a record (or a table) to a `Drawing`, under the decorator:

>>> import numpy as np
>>> import xarray as xr
>>> from sinkscope.figures import figure, plotly_figure
>>> from sinkscope.figures.marks import Axis, Drawing, Line, Look, Panel, Reference
>>> @figure
... def kurtosis(record):
...     '''Kurtosis of the hidden states, by layer.'''
...     mean = record["kurtosis"].mean(["sequence", "token"]).values
...     layers = np.arange(len(mean))
...     line = Line(layers, mean, Look("blue", marker="circle"), name="mean over tokens", id="mean")
...     normal = Reference(y=3.0, look=Look("quiet", "dotted", 0.8), name="normal distribution")
...     panel = Panel([line, normal], x=Axis("layer"), y=Axis("kurtosis", limits=(0, None)))
...     return Drawing([panel], record.attrs)
>>> record = xr.Dataset({"kurtosis": (("sequence", "layer", "token"), np.full((2, 3, 8), 5.0))}, attrs={"model": "own"})
>>> kurtosis(record).get_size_inches().tolist()  # a matplotlib Figure: .savefig("kurtosis.pdf")
[3.25, 2.6]
>>> kurtosis.describe(record).panels[0].marks[0].y
array([5., 5., 5.])
>>> plotly_figure(kurtosis.describe(record), themed=False)["data"][0]["y"]  # plotly.graph_objects.Figure takes it
[5, 5, 5]

`sinkscope.report` puts both where they belong. A plain function that returns a matplotlib Figure does as well: it has
no `describe`, and the page shows its picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, cast

import numpy as np

COLUMN = 3.25  # inches: one column of a paper
PAGE = 6.75  # inches: the full width

Numbers: TypeAlias = Any
"""One number for each point: an array, a sequence or a pandas column; where it may be left out, None."""
COLOURS = ("blue", "vermilion", "green", "purple", "orange", "sky")
"""In the order in which series take them; told apart with any colour vision, and with the dashes also in grey.

The others are "ink" (text), "quiet" (what stands behind), "faint", and "grid" (what only divides)."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


@dataclass(frozen=True)
class Look:
    """Of a line, a point or a bar.

    Args:
        colour: one of the named colours, or "#rrggbb".
        dash, width: of the line: one of `DASHES`, or "dotted" (for what is only a level) [pt].
        marker, size: one of `MARKERS`, "point" (a small one), or "" for none [pt].
        hollow: markers and bars in outline.
        opacity: from 0 to 1.
    """

    colour: str = "ink"
    dash: str = "solid"
    width: float = 1.2
    marker: str = ""
    size: float = 2.5
    hollow: bool = False
    opacity: float = 1.0

    @classmethod
    def of(cls, row: int, **changes: Any) -> Look:
        """The look of the series of this number: its colour and its dash."""
        return cls(**{"colour": COLOURS[row % len(COLOURS)], "dash": DASHES[row % len(DASHES)], **changes})


def marker_of(row: int) -> str:
    """The marker of the series of this number."""
    return MARKERS[row % len(MARKERS)]


class _Numeric:
    def __post_init__(self) -> None:
        """Fields of `Numbers` become arrays of float64."""
        for each in fields(cast(Any, self)):
            value = getattr(self, each.name)
            if each.type == "Numbers" and value is not None:
                object.__setattr__(self, each.name, np.atleast_1d(np.asarray(value, dtype=np.float64)))


@dataclass(frozen=True, eq=False)
class Series(_Numeric):
    """Numbers against numbers, what `Line` and `Points` share.

    Args:
        x, y: where; NaN leaves a gap.
        look: how.
        name: in the legend; marks of one name share one entry.
        id: of the artist in matplotlib (its gid, so that a figure can be read back).
        low, high: bounds of an interval of y; NaN where there is none.
        hover: what the page says of a point, as "layer {x}: {y:.3f}" (formats are those of d3). By default the name, x
            and y under the labels of their axes.
        texts: for each point, what {text} stands for in `hover`.
    """

    x: Numbers
    y: Numbers
    look: Look = Look()
    name: str = ""
    id: str = ""
    low: Numbers = None
    high: Numbers = None
    hover: str = ""
    texts: Sequence[str] | None = None

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval of y at any point."""
        return self.low is not None and bool(np.isfinite(self.low).any())


@dataclass(frozen=True, eq=False)
class Line(Series):
    """Points joined in their order, the interval as a band.

    Args:
        band: opacity of the band.
        whiskers: the interval as whiskers at the points instead.
    """

    band: float = 0.2
    whiskers: bool = False

    @property
    def has_band(self) -> bool:
        """Whether there is an interval, and it is a band."""
        return self.has_interval and not self.whiskers


@dataclass(frozen=True, eq=False)
class Points(Series):
    """Points apart, the intervals as whiskers.

    Args:
        left, right: bounds of an interval of x.
        behind: below all lines.
    """

    left: Numbers = None
    right: Numbers = None
    behind: bool = False

    @property
    def has_interval_across(self) -> bool:
        """Whether there is an interval of x at any point."""
        return self.left is not None and bool(np.isfinite(self.left).any())


@dataclass(frozen=True, eq=False)
class Bars(Series):
    """Bars around x from `base` up by y, the intervals as whiskers.

    Args:
        width: of all, in units of x.
        base: where each begins.
        hatch: "/", "\\\\" or "" for none.
        edge: colour of the outline, if not that of the bars.
    """

    width: float = 0.8
    base: Numbers = 0.0
    hatch: str = ""
    edge: str = ""


@dataclass(frozen=True)
class ColourBar:
    """The scale of an image, or of the colours of lines.

    Args:
        label: with its unit.
        map: what is shown; each has colours of its own, for they must not be taken for each other ("depth": layers).
        low, high, log: its ends, None for those of the data, and whether it is logarithmic.
        open_end: values beyond this end share its colour.
        mark, mark_colour: a value marked on it, as the null; None for none.
        place: of its panel.
        small: in smaller letters, beside many others.
    """

    label: str
    map: Literal["probability", "logit", "factor", "depth"] = "probability"
    low: float | None = None
    high: float | None = None
    log: bool = False
    open_end: Literal["", "low", "high"] = ""
    mark: float | None = None
    mark_colour: str = "blue"
    place: Literal["right", "below"] = "right"
    small: bool = False


@dataclass(frozen=True, eq=False)
class Image(_Numeric):
    """Cells [row, column] in colours, row 0 on top; NaN is grey.

    Args:
        cells: the numbers.
        bar: their scale.
        origin: x and y of the first cell's middle.
        step: from one cell's middle to the next.
        square: whether cells are as high as wide.
        digits: cells carry their number with so many; None for none.
        hover: as of `Series`, with {x}, {y} and {z}.
    """

    cells: Numbers
    bar: ColourBar
    origin: tuple[float, float] = (0.0, 0.0)
    step: float = 1.0
    square: bool = False
    digits: int | None = None
    hover: str = ""


@dataclass(frozen=True)
class Reference:
    """A line across the whole panel, at one x or at one y; look, name and id as of `Series`."""

    x: float | None = None
    y: float | None = None
    look: Look = Look("quiet", "dotted", 0.8)
    name: str = ""
    id: str = ""


@dataclass(frozen=True)
class Text:
    """Words on one side of a point, in letters of this size [pt]; on paper they may be turned [degrees]."""

    x: float
    y: float
    text: str
    side: Literal["right", "above"] = "right"
    rotation: float = 0.0
    size: float = 6.5
    colour: str = "ink"
    id: str = ""


Mark: TypeAlias = Series | Image | ColourBar | Reference | Text


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Args:
        label: with its unit.
        scale: "linear" or "log".
        limits: first and last value; None for that of the data. The first may be the larger one.
        ticks: the values marked; "round" for 1, 2, 5, 10, 20 .. on a logarithmic axis, more closely over a short one;
            None for those that the renderer finds.
        names: what stands at `ticks`, if not their numbers.
        name_colours: of those names.
        plain: numbers as 1,000, not 10 to a power.
        margin: room at both ends, as a share of the axis.
        has_tick_marks, has_line: an axis of named rows needs neither.
    """

    label: str = ""
    scale: Literal["linear", "log"] = "linear"
    limits: tuple[float | None, float | None] = (None, None)
    ticks: Sequence[float] | Literal["round"] | None = None
    names: Sequence[str] | None = None
    name_colours: Sequence[str] | None = None
    plain: bool = False
    margin: float | None = None
    has_tick_marks: bool = True
    has_line: bool = True


@dataclass(frozen=True)
class SecondAxis:
    """Another scale of the x axis, above the panel: `factor` times its values. The page leaves it out."""

    label: str
    factor: float
    ticks: Sequence[float]


@dataclass(frozen=True)
class Legend:
    """What the looks mean.

    Args:
        title: a line above, as what the bands are.
        columns: how many entries stand beside each other on paper.
        size: of the letters [pt].
        handle: length of the sample of a line, in letters; dashes need more than the usual.
        place: of a panel's own legend: "above" it, or a corner in it.
    """

    title: str = ""
    columns: int = 2
    size: float = 6.5
    handle: float = 2.2
    place: str = "above"


@dataclass(frozen=True)
class Panel:
    """Two axes and the marks between them, those below first.

    Args:
        title, note: above it, and whether that is a remark, small and to the left, and not a name.
        has_frame: a line all around.
        legend: of this panel alone.
        above: another scale of x.
    """

    marks: Sequence[Mark]
    x: Axis = Axis()
    y: Axis = Axis()
    title: str = ""
    note: bool = False
    has_frame: bool = False
    legend: Legend | None = None
    above: SecondAxis | None = None


@dataclass(frozen=True)
class Drawing:
    """A whole figure.

    Args:
        panels: from left to right, then from top to bottom.
        attributes: those of the record, which say where it comes from.
        width, height: on paper [inches].
        columns: panels in a row.
        ratios: widths of the columns; equal when empty.
        shared: axes that all panels have in common: "", "x", "y".
        legend: of all panels together.
        page_height: on the page [pixels].
        name: of the figure; the decorator puts it in.
    """

    panels: Sequence[Panel]
    attributes: Mapping[Any, Any] = field(default_factory=dict)
    width: float = COLUMN
    height: float = 2.6
    columns: int = 1
    ratios: Sequence[float] = ()
    shared: Literal["", "x", "y"] = ""
    legend: Legend | None = Legend()
    page_height: int = 360
    name: str = ""


def extent(marks: Sequence[Mark], axis: Literal["x", "y"], positive: bool = False) -> tuple[float, float]:
    """The lowest and the highest value of marks along an axis, intervals included; NaN where there is none."""
    found: list[Any] = [np.array([np.nan])]
    for mark in marks:
        if isinstance(mark, Series):
            bounds = ("low", "high") if axis == "y" else ("left", "right")
            found += [getattr(mark, name) for name in (axis, *bounds) if getattr(mark, name, None) is not None]
        if isinstance(mark, Bars):
            found += [mark.base + mark.y] if axis == "y" else [mark.x - mark.width / 2, mark.x + mark.width / 2]
        elif isinstance(mark, Reference) and getattr(mark, axis) is not None:
            found.append(np.array([getattr(mark, axis)]))
    values = np.concatenate([np.ravel(each) for each in found])
    values = values[np.isfinite(values) & ((values > 0) | (not positive))]
    return (float(values.min()), float(values.max())) if len(values) else (float("nan"), float("nan"))


def headroom(marks: Sequence[Mark], most: float = float("inf")) -> float | None:
    """The end of a y axis that begins at 0: a little above the highest mark, and no more than `most`."""
    high = extent(marks, "y")[1]
    return min(most, 1.05 * high) if high > 0 else None
