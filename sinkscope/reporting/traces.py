"""The pieces of the interactive figures: lines, bands, texts and numbers as plotly takes them.

Colours are names beginning with "@": the page puts in those of its light or dark theme. plotly reads a small
HTML in every text it shows, so every token goes through `hover_text`.
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from sinkscope.figures.tokens import visible

Description = dict[str, Any]
COLOURS = ("@blue", "@vermilion", "@green", "@purple", "@orange", "@sky")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MOST_POINTS = 4096


def hover_text(token: object) -> str:
    """A token as plotly may show it: visible, and no tag or entity of it understood as one."""
    return html.escape(visible(token), quote=False)


MAGMA = [  # light is little, as on paper
    [0.0, "#fcfdbf"],
    [0.15, "#fec488"],
    [0.3, "#fb8861"],
    [0.45, "#e75263"],
    [0.6, "#b73779"],
    [0.75, "#812581"],
    [0.88, "#4a1079"],
    [1.0, "#0d0829"],
]


BLUES = [  # of factors, as on paper
    [0.0, "#ffffd9"],
    [0.125, "#edf8b1"],
    [0.25, "#c7e9b4"],
    [0.375, "#7fcdbb"],
    [0.5, "#41b6c4"],
    [0.625, "#1d91c0"],
    [0.75, "#225ea8"],
    [0.875, "#253494"],
    [1.0, "#081d58"],
]


def rounded(values: Any, digits: int = 5) -> Any:
    """Numbers as lists with `digits` significant digits, None for what is not finite (JSON has no NaN)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1:
        return [rounded(row, digits) for row in array]
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in array]


def thinned(values: np.ndarray, keep: list[int]) -> np.ndarray:
    """Positions to draw: all of a short text; of a long one the first 512, the highest of each stretch, and
    `keep`.
    """
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(512, len(values)), MOST_POINTS - 512)
    highest = [stretch[np.argmax(np.nan_to_num(values[stretch]))] for stretch in stretches]
    return np.unique([*range(512), *highest, *keep])


def line(
    x: Any, y: Any, name: str, row: int, dash: str | None = None, width: float = 2, mode: str = "lines"
) -> Description:
    line = {"color": COLOURS[row % 6], "dash": dash or DASHES[row % 6], "width": width}
    return {
        "type": "scatter",
        "mode": mode,
        "x": list(x),
        "y": rounded(y),
        "name": name,
        "line": line,
        "marker": {"size": 5, "color": COLOURS[row % 6]},
    }


def band(x: list[Any], lower: np.ndarray, upper: np.ndarray, colour: str) -> list[Description]:
    """Two invisible lines with the 95% interval filled between them; none where there is no interval."""
    if not np.isfinite(lower).any():
        return []
    edge = {
        "type": "scatter",
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [
        {**edge, "x": x, "y": rounded(lower)},
        {**edge, "x": x, "y": rounded(upper), "fill": "tonexty", "fillcolor": f"{colour}-band"},
    ]


def described(traces: list[Description], x: str, y: str, height: int = 360, **layout: Any) -> Description:
    xaxis = {"title": {"text": x}, **layout.pop("xaxis", {})}
    yaxis = {"title": {"text": y}, **layout.pop("yaxis", {})}
    return {"data": traces, "layout": {"height": height, "xaxis": xaxis, "yaxis": yaxis, **layout}}
