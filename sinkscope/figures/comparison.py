"""Sink strength against the collapse of window attention, one point for each model."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkscope.figures.columns import need_columns
from sinkscope.figures.style import COLOURS, MARKERS, PAGE, QUIET, VERMILION, number, paper_figure
from sinkscope.figures.ticks import logarithmic_heights

STRENGTHS = {
    "sink_rate": ("rate", "sink rate (fraction of heads with α > {epsilon})"),
    "sink_mass": ("mass", "mass on the first token (probability)"),
}
COLUMNS = ("model", "sink_rate", "rate_low", "rate_high", "rate_null", "sink_mass", "mass_low", "mass_high",
           "mass_null", "collapse", "collapse_low", "collapse_high", "cache_size", "T")  # fmt: skip


def comparison(table: pd.DataFrame) -> Figure:
    """Collapse, as perplexity of the window over that of sinks + window, against sink rate and mass.

    table  of `sinkscope.compare`.

    Whiskers are 95% intervals, of the collapse a paired block bootstrap over positions, of the strengths over texts
    (none with one text). Hollow points differ from the first model in more than the model, and the legend says in what.
    Dashed lines: strength under uniform attention. Dotted: no collapse. Raises SinkscopeError if a column is missing or
    the table is empty.
    """
    need_columns(table, "comparison", *COLUMNS)
    with paper_figure(table, "comparison", PAGE, 2.7 + 0.11 * len(table)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (column, (bounds, label)) in zip(panels, STRENGTHS.items(), strict=True):
            for row, each in enumerate(table.to_dict("records")):
                _point(axes, row, each, column, bounds)
            for null in table[f"{bounds}_null"].unique():
                axes.axvline(
                    null, color=VERMILION, linestyle=(0, (5, 1.5)), linewidth=0.8, zorder=1, gid=f"null-{column}"
                )
            axes.axhline(1, color=QUIET, linestyle=":", linewidth=0.8, zorder=1, gid="none")
            axes.set_xlabel(label.format(epsilon=table.attrs.get("epsilon", 0.3)))
            axes.set_xlim(-0.02, min(1.02, 1.1 * max(table[f"{bounds}_high"].max(), table[column].max())))
        logarithmic_heights(panels[0])
        panels[0].set_ylabel("collapse: perplexity of window\nover sinks + window (log scale)")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside upper left",
            ncols=2,
            fontsize=6.5,
            title=f"T = {int(table['T'].iloc[0]):,}; whiskers: 95%; dashed: uniform null of the mass "
            f"{number(float(table['mass_null'].iloc[0]))}; dotted: no collapse",
            title_fontsize=6.5,
            alignment="left",
        )
    return figure


def _point(axes: Axes, row: int, each: dict[Any, Any], column: str, bounds: str) -> None:
    colour, marker = COLOURS[row % len(COLOURS)], MARKERS[(row // len(COLOURS) + row) % len(MARKERS)]
    differs = str(each.get("differs", "") or "")
    other = f" (other {differs.replace('_', ' ')})" if differs else ""
    x, y = float(each[column]), float(each["collapse"])
    axes.hlines(y, each[f"{bounds}_low"], each[f"{bounds}_high"], color=colour, linewidth=0.9, gid=f"across-{row}")
    axes.vlines(x, each["collapse_low"], each["collapse_high"], color=colour, linewidth=0.9, gid=f"interval-{row}")
    axes.plot(
        [x], [y], color=colour, marker=marker, markersize=5, linestyle="none",
        markerfacecolor="white" if differs else colour, gid=f"model-{row}", zorder=3,
        label=f"{each['model']}, cache of {int(each['cache_size']):,}{other}",
    )  # fmt: skip
