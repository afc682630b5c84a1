"""Drawings on a page: plain dictionaries of data and layout, as plotly takes them; plotly itself is not needed.

plotly reads a small HTML in every text it shows, so every text goes through `page_text`, and a token through
`style.visible` before.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import ceil, log10
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.image import imsave

from sinkscope.figures import marks as m
from sinkscope.figures.checks import PALETTE, check_drawing
from sinkscope.figures.style import OVER_PICTURE, colour_map, extent, layer_ticks, log_ticks, plain_number

MOST_POINTS = 4096
"""Of one line; all the lines without a name in a panel have four times as many together."""
_TITLE, _TICKS, _BAR = 22, 60, 48  # pixels, of height
_BAR_WIDTH = 0.12  # of the width, with its ticks and its label
_GAPS = {1: 0.0, 2: 0.12, 3: 0.1}  # of the width, between so many columns


class Place(NamedTuple):
    """Of a panel: the share of the page's plot that its axes take, and the number in the names of its axes."""

    left: float
    right: float
    bottom: float
    top: float
    mark: str


def plotly_figure(drawing: m.Drawing, themed: bool = True) -> dict[str, Any]:
    """A drawing as plotly takes it: {"data": [..], "layout": {..}}, ready for JSON.

    >>> drawing = figures.mass_by_layer.describe(record)
    >>> sorted(figures.plotly_figure(drawing))
    ['data', 'layout']

    Args:
        drawing: of any figure, as `figures.norms.describe(record)`.
        themed: colours as names beginning with "@", for which the page of a report puts those of its light or dark
            theme. Otherwise those of the paper, so that `plotly.graph_objects.Figure` takes it.
    """
    check_drawing(drawing)
    page = _Page(drawing, themed)
    for panel, place in zip(drawing.panels, _places(drawing), strict=True):
        page.add(panel, place)
    return {"data": page.data, "layout": page.layout}


def page_text(text: object) -> str:
    """Text as plotly may show it: no tag or entity of it understood as one, lines kept."""
    return html.escape(str(text), quote=False).replace("\n", "<br>")


def rounded(values: Any, digits: int = 5) -> Any:
    """Numbers as lists with `digits` significant digits, None for what is not finite (JSON has no NaN)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1:
        return [rounded(row, digits) for row in array]
    kept = [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in array]
    return [int(value) if value is not None and value.is_integer() else value for value in kept]


def thinned(values: np.ndarray, most: int = MOST_POINTS, peaks: bool = True) -> np.ndarray:
    """Which points to draw: all of a short line; of a long one the first eighth of `most`, and behind them the highest
    of each stretch, or without `peaks` its first."""
    if len(values) <= most:
        return np.arange(len(values))
    first = most // 8
    stretches = np.array_split(np.arange(first, len(values)), most - first)
    return np.array([*range(first), *(each[peaks * np.argmax(np.nan_to_num(values[each]))] for each in stretches)])


def _places(drawing: m.Drawing) -> list[Place]:
    columns, rows = drawing.columns, ceil(len(drawing.panels) / drawing.columns)
    gap = _GAPS.get(columns, 0.05)
    ratios = np.array(drawing.ratios or [1.0] * columns, dtype=float)
    widths = ratios / ratios.sum() * (1 - gap * (columns - 1))
    lefts = [0.0, *accumulate(width + gap for width in widths[:-1])]
    height = drawing.page_height - 2 * _TICKS  # about what the page's margins leave
    panels = [drawing.panels[row * columns : (row + 1) * columns] for row in range(rows)]
    over = [_TITLE * max(1 + panel.title.count("\n") if panel.title else 0 for panel in row) / height for row in panels]
    under = [
        (_TICKS + _BAR if any(_has_bar(panel, "below") for panel in several) else _TICKS * (row < rows - 1)) / height
        for row, several in enumerate(panels)
    ]
    each = (1 - sum(over) - sum(under)) / rows
    found: list[Place] = []
    top = 1.0
    for row, several in enumerate(panels):
        top -= over[row]
        for column, panel in enumerate(several):
            beside = _BAR_WIDTH if columns > 1 and _has_bar(panel, "right") else 0.0
            number = len(found) + 1
            right = lefts[column] + widths[column] - beside
            found.append(Place(lefts[column], right, top - each, top, str(number) if number > 1 else ""))
        top -= each + under[row]
    return found


def _has_bar(panel: m.Panel, place: str) -> bool:
    bars = [mark if isinstance(mark, m.ColourBar) else getattr(mark, "bar", None) for mark in panel.marks]
    return any(bar is not None and bar.place == place for bar in bars)


class _Page:
    """The dictionaries while they grow, panel by panel."""

    def __init__(self, drawing: m.Drawing, themed: bool) -> None:
        self.drawing, self.themed = drawing, themed
        self.data: list[dict[str, Any]] = []
        self.named: set[str] = set()
        legends = [drawing.legend, *(panel.legend for panel in drawing.panels)]
        title = "; ".join(dict.fromkeys(each.title for each in legends if each is not None and each.title))
        marks = [mark for panel in drawing.panels for mark in panel.marks]
        self.layout: dict[str, Any] = {
            "height": drawing.page_height,
            "showlegend": any(getattr(mark, "name", "") for mark in marks),
            "legend": {"title": {"text": page_text(title), "font": {"size": 11}, "side": "top"}},
            "shapes": [],
            "annotations": [],
        }
        if any(isinstance(mark, m.Bars) for mark in marks):
            self.layout["barmode"] = "overlay"  # where a bar stands is in its numbers

    def add(self, panel: m.Panel, place: Place) -> None:
        self.panel, self.place = panel, place
        self.where = {"xaxis": f"x{place.mark}", "yaxis": f"y{place.mark}"} if place.mark else {}
        lines = sum(isinstance(mark, m.Line) and not mark.name for mark in panel.marks)
        self.most = max(256, min(MOST_POINTS, 4 * MOST_POINTS // max(lines, 1)))
        drawn: dict[type, Callable[[Any], None]] = {
            m.Bars: self._bars, m.Series: self._series, m.Image: self._image, m.ColourBar: self._lone_bar,
            m.Reference: self._reference, m.Text: self._text,
        }  # fmt: skip
        for mark in panel.marks:
            next(draw for kind, draw in drawn.items() if isinstance(mark, kind))(mark)
        self.layout[f"xaxis{place.mark}"] = self._axis("x", panel.x)
        self.layout[f"yaxis{place.mark}"] = self._axis("y", panel.y)
        if panel.title:
            size, colour = (11.0, "quiet") if panel.note else (12.5, "ink")
            above = {"xanchor": "left", "yanchor": "bottom", "yshift": 3}
            self._note(panel.title, place.left, place.top, above, size, colour)

    def _colour(self, name: str, is_band: bool = False) -> str:
        if self.themed and name in PALETTE:
            return f"@{name}-band" if is_band else f"@{name}"
        shown = PALETTE.get(name, name)
        return f"rgba({', '.join(str(int(shown[at : at + 2], 16)) for at in (1, 3, 5))}, 0.22)" if is_band else shown

    def _line(self, look: m.Look) -> dict[str, Any]:
        dash = "dot" if look.dash == "dotted" else look.dash
        return {"color": self._colour(look.colour), "dash": dash, "width": round(1.6 * look.width, 2)}

    def _series(self, mark: m.Series) -> None:
        look, colour, points = mark.look, self._colour(mark.look.colour), isinstance(mark, m.Points)
        kept = np.arange(len(mark.y))
        if isinstance(mark, m.Line):
            kept = thinned(mark.y) if mark.name else thinned(mark.y, self.most, peaks=False)
        x = rounded(mark.x[kept], 7)
        if isinstance(mark, m.Line) and mark.has_band:
            edge = {"mode": "lines", "x": x, "line": {"width": 0}, "legendgroup": page_text(mark.name)}
            fill = {"fill": "tonexty", "fillcolor": self._colour(look.colour, is_band=True)}
            self._silent(edge | {"y": rounded(mark.low[kept])})
            self._silent(edge | {"y": rounded(mark.high[kept])} | fill)
        trace: dict[str, Any] = {
            "type": "scatter", "mode": "markers" if points else "lines+markers" if look.marker else "lines", "x": x,
            "y": rounded(mark.y[kept]), "line": self._line(look), "cliponaxis": not points,
        }  # fmt: skip
        if look.marker:
            size, symbol = round(1.4 * look.size + 1.5, 1), look.marker
            if look.marker == "point":
                size, symbol = 4.0, "circle"
            trace["marker"] = {"size": size, "color": colour, "symbol": symbol + "-open" * look.hollow}
        if look.opacity < 1:
            trace["opacity"] = look.opacity
        self._whiskers(trace, mark, colour)
        self._trace(trace, mark, kept)

    def _bars(self, mark: m.Bars) -> None:
        colour, edge = self._colour(mark.look.colour), mark.edge or mark.look.colour
        trace: dict[str, Any] = {
            "type": "bar", "x": rounded(mark.x, 7), "y": rounded(mark.y), "width": mark.width,
            "marker": {"color": colour, "line": {"color": self._colour(edge), "width": 0.0 if mark.edge else 1.0}},
        }  # fmt: skip
        if mark.base.any():
            trace["base"] = rounded(np.broadcast_to(mark.base, mark.y.shape))
        if mark.hatch:
            trace["marker"]["pattern"] = {"shape": mark.hatch, **({"fillmode": "replace"} if mark.look.hollow else {})}
        self._whiskers(trace, mark, self._colour("ink"))
        self._trace(trace, mark, np.arange(len(mark.y)))

    def _whiskers(self, trace: dict[str, Any], mark: m.Series, colour: str) -> None:
        """Bars from the one bound to the other, as plotly counts them: from the point."""
        bars = {"type": "data", "symmetric": False, "color": colour, "width": 3, "thickness": 1.2}
        if mark.has_interval and not (isinstance(mark, m.Line) and mark.has_band):
            trace["error_y"] = bars | {"array": rounded(mark.high - mark.y), "arrayminus": rounded(mark.y - mark.low)}
        if isinstance(mark, m.Points) and mark.has_interval_across:
            trace["error_x"] = bars | {"array": rounded(mark.right - mark.x), "arrayminus": rounded(mark.x - mark.left)}

    def _trace(self, trace: dict[str, Any], mark: m.Series, kept: np.ndarray) -> None:
        name = page_text(mark.name)
        trace |= {"name": name, "legendgroup": name, "showlegend": bool(name) and name not in self.named, **self.where}
        if mark.texts is not None:
            trace["customdata"] = [page_text(mark.texts[each]) for each in kept]
        self.named.add(name)
        numbers = ((self.panel.x, "{x}"), (self.panel.y, "{y:.4~g}"))
        usual = [mark.name.replace("{", "(").replace("}", ")")] if mark.name else []
        usual += [f"{_line_of(axis.label)}: {shown}" for axis, shown in numbers if axis.names is None]
        trace["hovertemplate"] = _hover(mark.hover or "\n".join(usual), text="%{customdata}")
        self.data.append(trace)

    def _silent(self, trace: dict[str, Any]) -> None:
        """A trace that says nothing."""
        self.data.append({"type": "scatter", **trace, "hoverinfo": "skip", "showlegend": False, **self.where})

    def _image(self, mark: m.Image) -> None:
        bar, cells = mark.bar, mark.cells
        with np.errstate(divide="ignore", invalid="ignore"):
            shown = np.log10(np.clip(cells, bar.low, bar.high)) if bar.log else cells
        low, high = (None if each is None else _scaled(bar, each) for each in (bar.low, bar.high))
        if mark.picture is not None:
            self.data.append(_below(mark) | self.where)
        trace: dict[str, Any] = {
            "type": "heatmap", "z": rounded(shown), "x0": mark.origin[0], "dx": mark.step * mark.aspect,
            "y0": mark.origin[1], "dy": mark.step, "zmin": low, "zmax": high, "colorscale": _scale(bar.map),
            "hoverongaps": False, "showlegend": False, "showscale": bool(bar.place), **self.where,
        }  # fmt: skip
        if bar.place:
            trace["colorbar"] = self._colour_bar(bar)
        if bar.log:
            trace["customdata"] = rounded(cells)
        if mark.picture is not None:
            trace["opacity"] = OVER_PICTURE
        if mark.digits is not None:
            trace |= {"texttemplate": f"%{{z:.{mark.digits}f}}", "textfont": {"size": 11}}
        labels = ((self.panel.y.label, "{y}"), (self.panel.x.label, "{x}"), (bar.label, "{z:.4~g}"))
        usual = "\n".join(f"{_line_of(label)}: {shown}" for label, shown in labels)
        trace["hovertemplate"] = _hover(mark.hover or usual, z="%{customdata}" if bar.log else "%{z}")
        self.data.append({name: value for name, value in trace.items() if value is not None})

    def _lone_bar(self, bar: m.ColourBar) -> None:
        marker = {"color": [bar.low], "cmin": bar.low, "cmax": bar.high, "colorscale": _scale(bar.map),
                  "showscale": True, "colorbar": self._colour_bar(bar)}  # fmt: skip
        self._silent({"mode": "markers", "x": [None], "y": [None], "marker": marker})

    def _colour_bar(self, bar: m.ColourBar) -> dict[str, Any]:
        """Beside its panel or below; a mark on it is a triangle that points to it."""
        place, height = self.place, self.drawing.page_height - 2 * _TICKS
        made: dict[str, Any] = {
            "title": {"text": page_text(bar.label), "side": "right"}, "thickness": 12, "outlinewidth": 0,
            "x": place.right + 0.015, "xanchor": "left", "xpad": 0, "y": place.bottom, "yanchor": "bottom", "ypad": 0,
            "len": place.top - place.bottom,
        }  # fmt: skip
        if bar.place == "below":
            made |= {
                "orientation": "h", "title": {"text": page_text(bar.label), "side": "bottom"}, "thickness": 8,
                "x": place.left, "y": place.bottom - _TICKS / height, "yanchor": "top", "len": place.right - place.left,
            }  # fmt: skip
        if bar.small:
            made |= {"title": made["title"] | {"font": {"size": 10}}, "tickfont": {"size": 9}}
        if bar.log and bar.low is not None and bar.high is not None:
            ticks = log_ticks(bar.low, bar.high)
            names = [plain_number(tick) + " +" * (bar.open_end == "high" and tick == bar.high) for tick in ticks]
            made |= {"tickvals": [round(log10(tick), 6) for tick in ticks], "ticktext": names}
        elif bar.map == "depth" and bar.high is not None:
            made["tickvals"] = layer_ticks(int(bar.high) + 1, 7)
        if bar.mark is not None and np.isfinite(bar.mark) and bar.low is not None and bar.high is not None:
            share = (_scaled(bar, bar.mark) - _scaled(bar, bar.low)) / (_scaled(bar, bar.high) - _scaled(bar, bar.low))
            up = place.bottom + float(np.clip(share, 0, 1)) * (place.top - place.bottom)
            self._note("▸", made["x"], up, {"xanchor": "right", "yanchor": "middle"}, 14.0, bar.mark_colour)
        return made

    def _note(self, text: str, x: float, y: float, where: dict[str, Any], size: float, colour: str) -> None:
        self.layout["annotations"].append(
            {"text": page_text(text), "xref": "paper", "yref": "paper", "x": x, "y": y, "showarrow": False,
             "align": "left", "font": {"size": size, "color": self._colour(colour)}, **where}
        )  # fmt: skip

    def _reference(self, mark: m.Reference) -> None:
        x, y = f"x{self.place.mark}", f"y{self.place.mark}"
        ends: dict[str, Any] = {"x0": mark.x, "x1": mark.x, "y0": 0, "y1": 1, "xref": x, "yref": f"{y} domain"}
        if mark.x is None:
            ends = {"y0": mark.y, "y1": mark.y, "x0": 0, "x1": 1, "yref": y, "xref": f"{x} domain"}
        look, name = self._line(mark.look), page_text(mark.name)
        named = {"name": name, "showlegend": True, "legendgroup": name} if name and name not in self.named else {}
        self.named.add(name)
        layer = "above" if any(isinstance(each, m.Bars) for each in self.panel.marks) else "below"
        self.layout["shapes"].append({"type": "line", **ends, "line": look, "layer": layer, **named})

    def _text(self, mark: m.Text) -> None:
        words = page_text(mark.text) if mark.side == "above" else f"\u2002{page_text(mark.text)}"  # off the point
        font = {"size": round(1.75 * mark.size, 1), "color": self._colour(mark.colour)}
        place = "top center" if mark.side == "above" else "middle right"
        self._silent({"mode": "text", "x": [mark.x], "y": [mark.y], "text": [words], "textposition": place,
                      "textfont": font, "cliponaxis": False})  # fmt: skip

    def _axis(self, name: str, axis: m.Axis) -> dict[str, Any]:
        place, is_log = self.place, axis.scale == "log"
        domain = [place.left, place.right] if name == "x" else [place.bottom, place.top]
        made: dict[str, Any] = {"title": {"text": page_text(axis.label)}, "domain": [round(edge, 5) for edge in domain],
                                "anchor": ("y" if name == "x" else "x") + place.mark}  # fmt: skip
        made |= {"type": "log"} if is_log else {}
        low, high = self._limits(name, axis)
        if axis.limits != (None, None):
            made["range"] = [log10(low), log10(high)] if is_log else [low, high]
        made |= self._ticks(axis, *sorted((low, high)))
        at, columns = int(place.mark or 1) - 1, self.drawing.columns
        if self.drawing.shared == name:
            made |= {"matches": name} if at else {}
            is_outer = at % columns == 0 if name == "y" else at + columns >= len(self.drawing.panels)
            made |= {} if is_outer else {"showticklabels": False}
        images = [mark for mark in self.panel.marks if isinstance(mark, m.Image)]
        if images or axis.names is not None:
            made["showgrid"] = False
        if images and name == "y":
            made["autorange"] = "reversed"
        if any(image.square for image in images):
            made |= {"constrain": "domain"} | ({"scaleanchor": f"x{place.mark}"} if name == "y" else {})
        return made

    def _limits(self, name: str, axis: m.Axis) -> tuple[float, float]:
        """Both ends, those that are left open with a little room."""
        is_log = axis.scale == "log"
        low, high = extent(self.panel.marks, name, positive=is_log)  # type: ignore[arg-type]
        if not np.isfinite(low):
            low, high = (1.0, 10.0) if is_log else (0.0, 1.0)
        room = 0.05 * (log10(high / low) if is_log else high - low)
        ends = (low / 10**room, high * 10**room) if is_log else (low - room, high + room)
        first, last = (float(end if given is None else given) for given, end in zip(axis.limits, ends, strict=True))
        return first, last

    def _ticks(self, axis: m.Axis, low: float, high: float) -> dict[str, Any]:
        if axis.ticks is None:
            if axis.scale == "log":
                plain = {"exponentformat": "none", "separatethousands": True}
                return {"dtick": 1, **(plain if axis.plain else {"exponentformat": "power"})}
            return {"tickformat": ","} if axis.plain else {}
        if isinstance(axis.ticks, str):
            powers = range(int(np.floor(log10(low))) - 1, int(np.ceil(log10(high))) + 2)
            beyond = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            ticks = sorted({*log_ticks(low, high), *(tick for tick in beyond if not low <= tick <= high)})
            return {"tickvals": ticks, "ticktext": [plain_number(tick) for tick in ticks]}
        ticks = [float(tick) for tick in axis.ticks]
        steps = np.unique(np.round(np.diff(ticks), 9))
        if axis.names is None and axis.scale == "linear" and len(steps) == 1:  # so that there are some after a zoom
            return {"tick0": ticks[0], "dtick": float(steps[0])}
        names: Sequence[str] = axis.names if axis.names is not None else [plain_number(tick) for tick in ticks]
        return {"tickvals": ticks, "ticktext": [page_text(name) for name in names]}


def _line_of(label: str) -> str:
    return " ".join(label.split())


def _scaled(bar: m.ColourBar, value: float) -> float:
    return log10(value) if bar.log else float(value)


def _scale(name: str) -> list[list[Any]]:
    """A colour map as plotly takes it."""
    return [[round(float(at), 2), to_hex(colour_map(name)(at))] for at in np.linspace(0, 1, 11)]


def _hover(words: str, **fields: str) -> str:
    """{x:.3f} in plotly's writing, for what it calls otherwise as `fields` say; no box beside it."""

    def field(found: re.Match[str]) -> str:
        inner = fields.get(found[1], f"%{{{found[1]}}}")
        return f"{inner[:-1]}{found[2] or ''}}}"

    return re.sub(r"\{(x|y|z|text)(:[^}]*)?\}", field, page_text(words)) + "<extra></extra>"


def _below(mark: m.Image) -> dict[str, Any]:
    """The picture that the cells of an image lie over."""
    target = io.BytesIO()
    imsave(target, mark.picture, cmap="gray", vmin=0, vmax=1, format="png")
    made: dict[str, Any] = {"type": "image", "hoverinfo": "skip"}
    made["source"] = "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")
    for axis, first, cells, pixels in zip("yx", mark.origin[::-1], mark.cells.shape, mark.picture.shape, strict=True):
        cell = mark.step * (mark.aspect if axis == "x" else 1.0)
        step = cell * cells / pixels
        made |= {f"d{axis}": step, f"{axis}0": first - cell / 2 + step / 2}
    return made
