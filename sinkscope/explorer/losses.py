"""The loss of every token under a setting against the model as it is, as a plotly widget."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from sinkscope.figures.style import BLUE, VERMILION

SMOOTH = 16  # tokens in a running mean
DENSE, CHANGED = BLUE, VERMILION
GREY = "#808080"  # legible on light and dark pages


WIDTH, HEIGHT = 560, 230  # pixels; left to itself plotly measures a box that is not laid out yet


def loss_figure() -> go.FigureWidget:
    """An empty chart: losses of single tokens as points, running means as lines."""
    figure = go.FigureWidget()
    for name, colour, symbol, dash in (("dense", DENSE, "circle", "solid"), ("policy", CHANGED, "diamond", "dash")):
        points = {"color": colour, "size": 3, "opacity": 0.45, "symbol": symbol}
        figure.add_scatter(x=[], y=[], mode="markers", marker=points, name=f"{name}: each token", showlegend=False)
        figure.add_scatter(x=[], y=[], mode="lines", line={"color": colour, "width": 2, "dash": dash}, name=name)
    figure.update_layout(
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 50, "r": 10, "t": 26, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 11, "color": GREY},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="x",
    )
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    figure.update_xaxes(title="token", **axis)
    figure.update_yaxes(title="loss (nats)", rangemode="tozero", **axis)
    return figure


def draw_losses(figure: Any, dense: np.ndarray, changed: np.ndarray | None, name: str, query: int) -> None:
    """Show losses [token]; `changed` is None where nothing but the model as it is was read.

    Args:
        name: of the setting.
        query: the chosen token, marked by a line.
    """
    pairs = [(dense, "dense"), (np.full(0, np.nan) if changed is None else changed, name)]
    with figure.batch_update():
        for place, (losses, label) in enumerate(pairs):
            points, line = figure.data[2 * place], figure.data[2 * place + 1]
            seen = np.flatnonzero(np.isfinite(losses))
            points.x, points.y = seen.tolist(), losses[seen].tolist()
            means = running_mean(losses[seen])
            line.x, line.y, line.name = seen.tolist(), means.tolist(), label
            line.showlegend = bool(len(seen))
        figure.layout.shapes = [
            {
                "type": "line",
                "x0": query,
                "x1": query,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": GREY, "width": 1},
            }
        ]


def running_mean(values: np.ndarray, width: int = SMOOTH) -> np.ndarray:
    """The mean of each value and up to `width - 1` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - width)
    return (sums[last] - sums[first]) / (last - first)
