"""The collapse of window attention, decomposed: what is left of it with half of what a sink does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkscope.analysis.decomposition import PARTS, collapse_table
from sinkscope.figures.columns import need_columns
from sinkscope.figures.style import COLOURS, COLUMN, INK, MARKERS, QUIET, paper_figure
from sinkscope.figures.ticks import plain_marks

COLUMNS = ("part", "ppl", "ratio", "ratio_low", "ratio_high", "recovered")
ENDS = ("full sinks", "window")  # of the gap
SHORT = {
    "full sinks": "full sinks",
    "phantom, mean values": "phantom,\nmean values",
    "phantom, values zeroed": "phantom,\nvalues zeroed",
    "values only": "values only",
    "window": "window",
}


def collapse(given: xr.Dataset | pd.DataFrame) -> Figure:
    """Perplexity over that with full sinks, for what is left of the sinks, with paired 95% intervals.

    given  a record of `sinkscope.decompose`, or its `collapse_table`.

    Logarithmic axis, so that distances are losses in nats: below as ratios, above as the perplexities themselves.
    Beside each point, its perplexity and the share of the gap between window and full sinks that it closes. Raises
    SinkscopeError as `collapse_table` does, or if a column of the table is missing.
    """
    table = collapse_table(given) if isinstance(given, xr.Dataset) else given
    need_columns(table, "collapse", *COLUMNS)
    with paper_figure(table, "collapse", COLUMN, 0.75 + 0.34 * len(table) + 0.35) as figure:
        axes = figure.subplots()
        _points(axes, table)
        values = table[["ratio", "ratio_low", "ratio_high"]].to_numpy(np.float64)
        values = values[np.isfinite(values) & (values > 0)]
        low, high = min(values.min(), 1.0), max(values.max(), 1.02)
        span = np.log(high / low)
        axes.set_xscale("log")
        axes.set_xlim(low * np.exp(-0.06 * span), high * np.exp(0.5 * span))
        plain_marks(axes.xaxis, low, high)
        axes.axvline(1, color=QUIET, linestyle=":", linewidth=0.8, zorder=1, gid="full")
        axes.set_yticks(range(len(table)), [SHORT.get(part, part) for part in table["part"]])
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("perplexity over that with full sinks (log scale)")
        _perplexities(axes, table, low, high)
    return figure


def _points(axes: Axes, table: pd.DataFrame) -> None:
    right = np.nanmax(table[["ratio", "ratio_high"]].to_numpy(np.float64))
    order = list(PARTS)
    rows: Iterable[Any] = table.itertuples()
    for row, each in enumerate(rows):
        look = order.index(each.part) if each.part in order else row
        colour, marker = COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]
        axes.hlines(row, each.ratio_low, each.ratio_high, color=colour, linewidth=1.0, gid=f"interval-{each.part}")
        axes.plot([each.ratio], [row], color=colour, marker=marker, markersize=4, linestyle="none", gid=each.part)
        shown = f"{each.ppl:,.1f}"
        if np.isfinite(each.recovered) and each.part not in ENDS:
            shown += f"; closes {100 * each.recovered:.0f}%".replace("-", "−")
        axes.annotate(
            shown, (right, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=6.5, color=INK,
            gid=f"text-{each.part}",
        )  # fmt: skip


def _perplexities(axes: Axes, table: pd.DataFrame, low: float, high: float) -> None:
    """The axis above: the same places as perplexities."""
    whole = float(table["ppl"].iloc[0]) / float(table["ratio"].iloc[0])
    above = axes.secondary_xaxis("top", functions=(lambda x: np.asarray(x) * whole, lambda x: np.asarray(x) / whole))
    above.set_xlabel(f"perplexity ({_tokens(table)}whiskers: paired 95%)", fontsize=7)
    plain_marks(above.xaxis, low * whole, high * whole)


def _tokens(table: pd.DataFrame) -> str:
    return f"{int(table['tokens'].iloc[0]):,} tokens; " if "tokens" in table else ""
