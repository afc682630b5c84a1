"""Drawings on paper: matplotlib Figures in vectors, with where the data came from in small letters below.

matplotlib has the style while a figure is drawn and loses it afterwards: neither what the user has set in `rcParams`
nor what we set leaks into the other. Nothing here touches pyplot.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from typing import Any, ParamSpec, Protocol, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Side
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from sinkscope.errors import SinkscopeError, first_line, shown
from sinkscope.figures import marks as m
from sinkscope.figures import style
from sinkscope.figures.checks import PALETTE, check_drawing

_DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 1.5)),
    "dot": (0, (1, 1)),
    "dashdot": (0, (5, 1.5, 1, 1.5)),
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (3, 1, 1, 1)),
    "dotted": ":",
}
_MARKERS = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P", "point": ".",
    "": None,
}  # fmt: skip
_HATCHES = {"/": "////", "\\": "\\\\\\\\", "": None}
_WIDEST_ROUND = 1000.0
"""Above this ratio of its ends a logarithmic scale is marked at powers of ten."""

P = ParamSpec("P")


class FigureFunction(Protocol[P]):
    """A figure: called, it is drawn on paper."""

    describe: Callable[P, m.Drawing]
    __name__: str

    def __call__(self, *args: P.args, **options: P.kwargs) -> PaperFigure: ...


def figure(describe: Callable[P, m.Drawing]) -> FigureFunction[P]:
    """Make a figure of a function that describes it, from a record (and options) to a `Drawing`.

    Called, the figure is drawn on paper; its `describe` gives the drawing, which `plotly_figure` takes. Its name is
    the function's. See `sinkscope.figures.marks` for an example.

    >>> @figures.figure
    ... def mass_by_head(record):
    ...     line = figures.marks.Line([0, 1], record.sink_mass.mean(["sequence", "layer", "query", "sink"]).values)
    ...     return figures.marks.Drawing([figures.marks.Panel([line])], record.attrs)
    >>> mass_by_head(record).savefig("mass_by_head.pdf")
    """

    if not callable(describe):
        raise SinkscopeError(f"a figure is made of a function from a record to a Drawing, not of {shown(describe)}.")

    @functools.wraps(describe)
    def described(*args: P.args, **options: P.kwargs) -> m.Drawing:
        return replace(describe(*args, **options), name=describe.__name__)

    @functools.wraps(describe)
    def draw(*args: P.args, **options: P.kwargs) -> PaperFigure:
        return matplotlib_figure(described(*args, **options))

    made = cast(Any, draw)
    made.describe = described
    made.__signature__ = inspect.signature(describe).replace(return_annotation="Figure")
    return cast(FigureFunction[P], made)


class PaperFigure(Figure):
    """A matplotlib Figure that keeps its style and its provenance wherever it is saved.

    It shows itself in Jupyter without pyplot. Saved twice it gives the same bytes: no file holds the time of saving.
    """

    name: str = ""
    attributes: Mapping[str, Any] = {}

    def savefig(self, fname: Any, **options: Any) -> None:
        """As matplotlib's, with the source of the numbers in the file.

        Raises:
            SinkscopeError: what is no file, cannot be written, or has a format that there is not.
        """
        if not (isinstance(fname, (str, os.PathLike)) or hasattr(fname, "write")):
            raise SinkscopeError(f"fname={shown(fname)} is not a path or an open file: give one.")
        kind = options.get("format") or str(getattr(fname, "name", fname)).rpartition(".")[2]
        own = self._metadata(str(kind).lower())
        if own is not None:
            options["metadata"] = {**own, **(options.get("metadata") or {})}
        with mpl.rc_context(cast(Any, style.STYLE)):
            try:
                super().savefig(fname, **options)
            except (OSError, ValueError) as problem:
                raise SinkscopeError(f"cannot write the figure to {shown(fname)}: {first_line(problem)}.") from problem

    def _repr_png_(self) -> bytes:
        target = io.BytesIO()
        self.savefig(target, format="png", dpi=150)
        return target.getvalue()

    def _metadata(self, kind: str) -> dict[str, Any] | None:
        """What a file of this kind holds: the source and no date of today; None where the format holds nothing."""
        title, version = self.name.replace("_", " "), f"sinkscope {self.attributes.get('sinkscope', '')}".strip()
        line, exact = style.source_line(self.attributes), style.source_json(self.attributes)
        held: dict[str, dict[str, Any]] = {
            "pdf": {"Title": title, "Subject": line, "Keywords": exact, "Creator": version, "CreationDate": None},
            "svg": {"Title": title, "Description": exact, "Source": line, "Creator": version, "Date": None},
            "png": {"Title": title, "Description": exact, "Source": line, "Software": version},
            "ps": {"Creator": version},
            "eps": {"Creator": version},
        }
        return held.get(kind)


def matplotlib_figure(drawing: m.Drawing) -> PaperFigure:
    """A drawing on paper.

    >>> drawing = figures.mass_by_layer.describe(record)
    >>> figures.matplotlib_figure(drawing).savefig("mass.pdf")
    """
    check_drawing(drawing)
    with mpl.rc_context(cast(Any, style.STYLE)):
        made = PaperFigure(figsize=(drawing.width, drawing.height), layout="constrained")
        made.name = drawing.name
        made.attributes = {str(key): value for key, value in drawing.attributes.items()}
        places = made.subplots(
            ceil(len(drawing.panels) / drawing.columns), drawing.columns, squeeze=False,
            sharex=drawing.shared == "x", sharey=drawing.shared == "y", width_ratios=drawing.ratios or None,
        ).ravel()  # fmt: skip
        for unused in places[len(drawing.panels) :]:
            unused.remove()
        drawn = list(zip(places, drawing.panels, strict=False))
        named = [_marks(axes, panel) for axes, panel in drawn]
        for axes, panel in drawn:
            _axes(axes, panel)
        together: dict[str, Any] = {}
        for (axes, panel), handles in zip(drawn, named, strict=True):
            if panel.legend is None:
                together |= handles
            else:
                _legend(axes, panel.legend, handles)
        if drawing.legend is not None:
            _legend(made, drawing.legend, together)
        words = style.drawable(style.source_line(made.attributes), spaces=False)
        source = "\n".join(textwrap.wrap(words, int(drawing.width * 26))[:4])
        made.supxlabel(source, x=0.01, ha="left", fontsize=5, color=style.QUIET, parse_math=False, linespacing=1.15)
        made.draw_without_rendering()  # ticks are made late: make them while the style is on
    return made


def _marks(axes: Axes, panel: m.Panel) -> dict[str, Any]:
    """Draw all marks of a panel; by name, the artists for its legend."""
    axes.set(xscale=panel.x.scale, yscale=panel.y.scale)
    named: dict[str, Any] = {}
    for mark in panel.marks:
        artist = next(draw for kind, draw in _DRAWN.items() if isinstance(mark, kind))(axes, mark)
        if artist is not None and mark.name:  # type: ignore[union-attr]
            named.setdefault(mark.name, artist)  # type: ignore[union-attr]
    return named


def _colour(name: str) -> str:
    return PALETTE.get(name, name)


def _line(look: m.Look) -> dict[str, Any]:
    alpha = look.opacity if look.opacity < 1 else None
    return {"color": _colour(look.colour), "linestyle": _DASHES[look.dash], "linewidth": look.width, "alpha": alpha}


def _series(axes: Axes, mark: m.Series) -> Any:
    look, points, colour = mark.look, isinstance(mark, m.Points), _colour(mark.look.colour)
    order = 1 if isinstance(mark, m.Points) and mark.behind else 3 if points else 2
    if isinstance(mark, m.Line) and mark.has_band:
        axes.fill_between(
            mark.x, mark.low, mark.high, color=colour, alpha=mark.band, linewidth=0, gid=f"band-{mark.id}"
        )
    else:
        _whiskers(axes, mark, colour)
    line = _line(look) | ({"linestyle": "none"} if points else {})
    (drawn,) = axes.plot(
        mark.x, mark.y, marker=_MARKERS[look.marker], markersize=look.size, zorder=order, clip_on=not points,
        markerfacecolor="white" if look.hollow else None, markeredgewidth=0.9 if look.hollow else None,
        label=mark.name or None, gid=mark.id or None, **line,
    )  # fmt: skip
    return drawn


def _whiskers(axes: Axes, mark: m.Series, colour: str) -> None:
    if mark.has_interval:
        axes.vlines(mark.x, mark.low, mark.high, color=colour, linewidth=0.9, gid=f"interval-{mark.id}", zorder=2.5)
    if isinstance(mark, m.Points) and mark.has_interval_across:
        axes.hlines(mark.y, mark.left, mark.right, color=colour, linewidth=0.9, gid=f"across-{mark.id}", zorder=2.5)


def _bars(axes: Axes, mark: m.Bars) -> Any:
    colour = _colour(mark.look.colour)
    drawn = axes.bar(
        mark.x, mark.y, mark.width, bottom=mark.base, facecolor="white" if mark.look.hollow else colour,
        edgecolor=_colour(mark.edge) if mark.edge else colour, hatch=_HATCHES[mark.hatch],
        linewidth=0.3 if mark.edge else 0.6, label=mark.name or None, gid=mark.id or None,
    )  # fmt: skip
    _whiskers(axes, mark, PALETTE["ink"])
    return drawn


def _image(axes: Axes, mark: m.Image) -> None:
    bar, cells = mark.bar, np.ma.masked_invalid(mark.cells)
    rows, columns = cells.shape
    if bar.log and bar.low is not None:
        cells = np.ma.maximum(cells, bar.low)
    across = mark.step * mark.aspect
    left, top = mark.origin[0] - across / 2, mark.origin[1] - mark.step / 2
    place: dict[str, Any] = {
        "aspect": "equal" if mark.square else "auto",
        "extent": (left, left + columns * across, top + rows * mark.step, top),
    }
    if mark.picture is not None:
        axes.imshow(mark.picture, cmap="gray", vmin=0, vmax=1, **place)
    drawn = axes.imshow(
        cells, cmap=style.colour_map(bar.map), norm=(LogNorm if bar.log else Normalize)(bar.low, bar.high),
        alpha=None if mark.picture is None else style.OVER_PICTURE, **place,
    )  # fmt: skip
    for (row, column), value in np.ndenumerate(mark.cells) if mark.digits is not None else ():
        if np.isfinite(value):
            ink = "white" if float(cast(Any, drawn.norm(value))) > 0.55 else PALETTE["ink"]
            axes.text(column, row, f"{value:.{mark.digits}f}", ha="center", va="center", color=ink, fontsize=7)
    axes.spines[:].set_zorder(-1)  # below the cells: a line that is half inside would cover the first ones
    if bar.place:
        _colour_bar(axes, drawn, bar)


def _colour_bar(axes: Axes, mappable: ScalarMappable, bar: m.ColourBar) -> None:
    below, extend = bar.place == "below", {"": "neither", "low": "min", "high": "max"}[bar.open_end]
    size: dict[str, Any] = {"fraction": 0.06, "aspect": 30}
    if below:
        size = {"fraction": 0.07, "pad": 0.04, "aspect": 18} if bar.small else {"fraction": 0.05, "pad": 0.02}
    drawn: Any = axes.figure.colorbar(mappable, ax=axes, extend=extend, location="bottom" if below else "right", **size)
    drawn.set_label(bar.label, fontsize=6.5 if bar.small else 8, parse_math=False)
    side = drawn.ax.xaxis if below else drawn.ax.yaxis
    low, high = drawn.vmin, drawn.vmax
    if bar.log and high < _WIDEST_ROUND * low:
        _fix(side, style.log_ticks(low, high), plain=True)
    elif bar.map == "depth":
        drawn.set_ticks(style.layer_ticks(int(high) + 1, 7))
    if bar.small:
        drawn.ax.tick_params(labelsize=6, length=2)
    if bar.mark is not None and np.isfinite(bar.mark):
        mark: Any = drawn.ax.axvline if below else drawn.ax.axhline
        mark(bar.mark, color=_colour(bar.mark_colour), linewidth=1.5, gid="null")


def _lone_bar(axes: Axes, bar: m.ColourBar) -> None:
    _colour_bar(axes, ScalarMappable(Normalize(bar.low, bar.high), style.colour_map(bar.map)), bar)


def _reference(axes: Axes, mark: m.Reference) -> Any:
    draw: Any = axes.axhline if mark.x is None else axes.axvline
    place = mark.y if mark.x is None else mark.x
    return draw(place, zorder=1.5, label=mark.name or None, gid=mark.id or None, **_line(mark.look))


def _text(axes: Axes, mark: m.Text) -> None:
    above = mark.side == "above"
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.annotate(
        mark.text, (mark.x, mark.y), xytext=(0, 5) if above else (7, 0), textcoords="offset points",
        rotation=mark.rotation, rotation_mode="anchor", ha="left" if mark.rotation or not above else "center",
        va="bottom" if above else "center", fontsize=mark.size, color=_colour(mark.colour), parse_math=False,
        gid=mark.id or None, zorder=6, bbox=box if above else None,
    )  # fmt: skip


_DRAWN: dict[type, Callable[[Axes, Any], Any]] = {
    m.Bars: _bars, m.Series: _series, m.Image: _image, m.ColourBar: _lone_bar, m.Reference: _reference, m.Text: _text,
}  # fmt: skip
"""How each kind of mark is drawn: what that gives stands in the legend."""


def _axes(axes: Axes, panel: m.Panel) -> None:
    """Limits, ticks and labels, once all panels have their marks."""
    for name, axis in (("x", panel.x), ("y", panel.y)):
        side: Side = getattr(axes, f"{name}axis")
        if axis.margin is not None:
            axes.margins(**cast(Any, {name: axis.margin}))
        low, high = axis.limits
        getattr(axes, f"set_{name}lim")(low, high)
        if axis.ticks is not None:
            is_round = isinstance(axis.ticks, str)
            ticks = style.log_ticks(*sorted(getattr(axes, f"get_{name}lim")())) if is_round else axis.ticks
            _fix(side, ticks, axis.names, plain=axis.plain or is_round)
        elif axis.plain:
            side.set_major_formatter(style.plain_number)
        side.set_label_text(axis.label, parse_math=False)
        if not axis.has_tick_marks:
            axes.tick_params(axis=cast(Any, name), length=0)
        if not axis.has_line:
            axes.spines["left" if name == "y" else "bottom"].set_visible(False)
        for label, colour in zip(side.get_ticklabels(), axis.name_colours or (), strict=False):
            label.set(color=_colour(colour), fontsize=6.5 if colour == "quiet" else 7)
    remark: dict[str, Any] = {"fontsize": 6.5, "color": style.QUIET, "loc": "left"} if panel.note else {}
    axes.set_title(panel.title, parse_math=False, **remark)
    if panel.has_frame:
        axes.spines[["top", "right"]].set_visible(True)
    if panel.above is not None:
        factor = panel.above.factor
        both_ways = (lambda x: np.asarray(x) * factor, lambda x: np.asarray(x) / factor)
        above = axes.secondary_xaxis("top", functions=both_ways)
        above.set_xlabel(panel.above.label, fontsize=7, parse_math=False)
        _fix(above.xaxis, panel.above.ticks, plain=True)


def _fix(side: Side, ticks: Any, names: Any = None, plain: bool = False) -> None:
    side.set_major_locator(FixedLocator(list(ticks)))
    side.set_minor_locator(NullLocator())
    if names is not None:
        side.set_major_formatter(FixedFormatter([str(name) for name in names]))
        for label in side.get_ticklabels():
            label.set_parse_math(False)
    elif plain:
        side.set_major_formatter(FuncFormatter(style.plain_number))


def _legend(on: Any, legend: m.Legend, named: Mapping[str, Any]) -> None:
    if not named and not legend.title:
        return
    place: dict[str, Any] = {"loc": legend.place}
    if isinstance(on, Figure):
        place = {"loc": "outside upper left"}
    elif legend.place == "above":
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
    made = on.legend(
        list(named.values()), list(named), ncols=legend.columns, fontsize=legend.size, handlelength=legend.handle,
        columnspacing=1.2 if legend.size < 7 else 2.0, title=legend.title or None, title_fontsize=min(legend.size, 6.5),
        alignment="left", **place,
    )  # fmt: skip
    for words in (made.get_title(), *made.get_texts()):
        words.set_parse_math(False)
