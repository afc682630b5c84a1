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

What no renderer could draw is refused where it is made, with a SinkscopeError. Text is shown as it is, "$" too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from sinkscope.arguments import several, whole_number
from sinkscope.errors import SinkscopeError, shown
from sinkscope.figures.checks import SERIES, Checked, check_axis, check_ends, check_layout, check_points

COLUMN = 3.25  # inches: one column of a paper
PAGE = 6.75  # inches: the full width

Numbers: TypeAlias = Any
"""One number for each point: an array, a sequence or a pandas column; where it may be left out, None."""
Dash: TypeAlias = Literal["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "dotted"]
Marker: TypeAlias = Literal["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "point", ""]
Hatch: TypeAlias = Literal["/", "\\", ""]
COLOURS = tuple(SERIES)
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS: tuple[Marker, ...] = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


@dataclass(frozen=True)
class Look(Checked):
    """Of a line, a point or a bar.

    Args:
        colour: one of the named colours, or "#rrggbb".
        dash, width: of the line: one of `DASHES`, or "dotted" (for what is only a level) [pt].
        marker, size: one of `MARKERS`, "point" (a small one), or "" for none [pt].
        hollow: markers and bars in outline.
        opacity: from 0 to 1.
    """

    colour: str = "ink"
    dash: Dash = "solid"
    width: float = 1.2
    marker: Marker = ""
    size: float = 2.5
    hollow: bool = False
    opacity: float = 1.0

    @classmethod
    def of(cls, row: int, **changes: Any) -> Look:
        """The look of the series of this number: its colour and its dash."""
        row = whole_number(row, "row", 0)
        return cls(**{"colour": COLOURS[row % len(COLOURS)], "dash": DASHES[row % len(DASHES)], **changes})


def marker_of(row: int) -> Marker:
    """The marker of the series of this number."""
    return MARKERS[whole_number(row, "row", 0) % len(MARKERS)]


@dataclass(frozen=True, eq=False)
class Series(Checked):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_points(self)

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
    hatch: Hatch = ""
    edge: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base.shape not in ((1,), self.x.shape):
            raise SinkscopeError(f"{len(self.x)} bars begin at one base or at one each; given are {self.base.size}.")


@dataclass(frozen=True)
class ColourBar(Checked):
    """The scale of an image, or of the colours of lines.

    Args:
        label: with its unit.
        map: what is shown; each has colours of its own, for they must not be taken for each other ("depth": layers).
        low, high, log: its ends, None for those of the data, and whether it is logarithmic.
        open_end: values beyond this end share its colour.
        mark, mark_colour: a value marked on it, as the null; None for none.
        place, small: of its panel ("" where another image shows it); in smaller letters, beside many others.
    """

    label: str
    map: Literal["probability", "logit", "difference", "factor", "depth"] = "probability"
    low: float | None = None
    high: float | None = None
    log: bool = False
    open_end: Literal["", "low", "high"] = ""
    mark: float | None = None
    mark_colour: str = "blue"
    place: Literal["right", "below", ""] = "right"
    small: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ends(self.low, self.high, self.log, "a colour bar", may_turn=False)


@dataclass(frozen=True, eq=False)
class Image(Checked):
    """Cells [row, column] in colours, row 0 on top; NaN is grey.

    Args:
        cells, bar: the numbers and their scale.
        origin, step: x and y of the first cell's middle, and from one to the next; across, `aspect` times that.
        square, digits: whether cells are as high as wide, and carry their number with so many digits; None for none.
        hover: as of `Series`, with {x}, {y} and {z}.
        picture: [y, x] of greys from 0 to 1, over which the cells lie and through which it shows; None for none.
    """

    cells: Numbers
    bar: ColourBar
    origin: tuple[float, float] = (0.0, 0.0)
    step: float = 1.0
    aspect: float = 1.0
    square: bool = False
    digits: int | None = None
    hover: str = ""
    picture: Numbers = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for cells in (self.cells, *([] if self.picture is None else [self.picture])):
            if cells.ndim != 2 or not cells.size:
                raise SinkscopeError(f"an image has rows and columns; given are cells of shape {cells.shape}.")


@dataclass(frozen=True)
class Reference:
    """A line across the whole panel, at one x or at one y; look, name and id as of `Series`."""

    x: float | None = None
    y: float | None = None
    look: Look = Look("quiet", "dotted", 0.8)
    name: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if (self.x is None) == (self.y is None):
            raise SinkscopeError(f"a Reference lies at one x or at one y; given are x={self.x} and y={self.y}.")


@dataclass(frozen=True)
class Text(Checked):
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
class Axis(Checked):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axis(self)


@dataclass(frozen=True)
class SecondAxis(Checked):
    """Another scale of the x axis, above the panel: `factor` times its values. The page leaves it out."""

    label: str
    factor: float
    ticks: Sequence[float]


@dataclass(frozen=True)
class Legend(Checked):
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
    place: Literal["above", "upper left", "upper right", "lower left", "lower right"] = "above"


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "marks", several(self.marks, "marks"))
        for mark in self.marks:
            if not isinstance(mark, get_args(Mark)):
                raise SinkscopeError(f"a {type(mark).__name__} is no mark, as a Line or an Image is one.")


@dataclass(frozen=True)
class Drawing(Checked):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "panels", several(self.panels, "panels"))
        object.__setattr__(self, "ratios", several(self.ratios, "ratios"))
        if not self.panels or not all(isinstance(panel, Panel) for panel in self.panels):
            raise SinkscopeError("a drawing has at least one panel, each a Panel.")
        if not isinstance(self.legend, (Legend, NoneType)):
            raise SinkscopeError(f"legend={shown(self.legend)} is no Legend: give one, or None.")
        check_layout(self)
