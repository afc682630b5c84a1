"""Dose and response: loss, sink mass and head output against a bias on the logits of the sinks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkscope.analysis import dose_table
from sinkscope.figures.columns import need_columns
from sinkscope.figures.mass import tokens_named
from sinkscope.figures.nulls import null_mass_from
from sinkscope.figures.style import BLUE, FAINT, INK, PAGE, QUIET, VERMILION, number, paper_figure
from sinkscope.figures.ticks import logarithmic_heights

COLUMNS = ("arm", "dose", "ratio", "ratio_low", "ratio_high", "sink_mass", "mass_low", "mass_high", "output",
           "output_low", "output_high")  # fmt: skip
LOOKS: dict[str, tuple[str, Any, str]] = {"sinks": (BLUE, "-", "o"), "random": (VERMILION, (0, (5, 1.5)), "s")}
WIDEST_LINEAR = 2.0
"""Above this ratio of an axis' values it is logarithmic."""


class Panel(NamedTuple):
    """One of the three responses: its columns, its label and the level that means no effect."""

    column: str
    bounds: str
    label: str
    level: float | None


def dose_response(given: xr.Dataset | pd.DataFrame) -> Figure:
    """Loss, sink mass and head output against the dose, the first keys beside as many random ones.

    given  a record of `sinkscope.dose_response`, or its `dose_table`.

    Perplexity and output are over those at the dose nearest to 0; bands are 95% intervals, of the perplexity a paired
    block bootstrap over positions, of the others over texts (none with one text). Minus infinity, the keys gone, stands
    apart at the left end. The dotted lines: no effect, and for the mass uniform attention. Raises SinkscopeError as
    `dose_table` does, or if a column of the table is missing.
    """
    table = dose_table(given) if isinstance(given, xr.Dataset) else given
    need_columns(table, "dose_response", *COLUMNS)
    count = int(table.attrs.get("count", 1))
    panels = (
        Panel("ratio", "ratio", "perplexity\n(times that at dose 0)", 1.0),
        Panel("sink_mass", "mass", f"mass on the {tokens_named(int(table.attrs.get('first', count)))}\n(probability)",
              null_mass_from(table.attrs)),
        Panel("output", "output", "norm of a head's output\n(times that at dose 0)", 1.0),
    )  # fmt: skip
    with paper_figure(table, "dose_response", PAGE, 2.75) as figure:
        drawn = figure.subplots(1, 3)
        for axes, panel in zip(drawn, panels, strict=True):
            _panel(axes, table, panel, count)
        handles, labels = drawn[0].get_legend_handles_labels()
        null = panels[1].level
        note = f"; of the mass: uniform null {number(null)}" if null is not None and np.isfinite(null) else ""
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=2,
            handlelength=3.2,
            title=f"bands and whiskers: 95%; dotted: no effect{note}",
            title_fontsize=6.5,
            alignment="left",
        )
    return figure


def places(doses: np.ndarray) -> np.ndarray:
    """Where doses stand on the axis: as they are, minus infinity to the left of all others."""
    finite = doses[np.isfinite(doses)]
    if not len(finite):
        return np.zeros(len(doses))
    span = max(float(np.ptp(finite)), 1.0)
    return np.where(np.isfinite(doses), doses, finite.min() - 0.22 * span)


def _panel(axes: Axes, table: pd.DataFrame, panel: Panel, count: int) -> None:
    for arm, own in table.groupby("arm", sort=False):
        own = own.sort_values("dose")
        colour, dash, marker = LOOKS.get(str(arm), (INK, "-", "o"))
        label = f"bias on the {tokens_named(count)}" if arm == "sinks" else f"bias on {_as_many(count, str(arm))}"
        doses, middle = own["dose"].to_numpy(np.float64), own[panel.column].to_numpy(np.float64)
        low, high = (own[f"{panel.bounds}_{bound}"].to_numpy(np.float64) for bound in ("low", "high"))
        x, finite = places(doses), np.isfinite(doses)
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3}
        if np.isfinite(low[finite]).any():
            axes.fill_between(x[finite], low[finite], high[finite], color=colour, alpha=0.2, linewidth=0,
                              gid=f"band-{arm}")  # fmt: skip
        axes.plot(x[finite], middle[finite], linestyle=dash, label=label, gid=f"{panel.column}-{arm}", **style)
        axes.vlines(x[~finite], low[~finite], high[~finite], color=colour, linewidth=0.9, gid=f"interval-{arm}")
        axes.plot(x[~finite], middle[~finite], linestyle="none", gid=f"{panel.column}-{arm}-gone", **style)
    if panel.level is not None and np.isfinite(panel.level):
        axes.axhline(panel.level, color=QUIET, linestyle=":", linewidth=0.8, zorder=1, gid="level")
    _mark_doses(axes, np.unique(table["dose"].to_numpy(np.float64)))
    values = table[[panel.column, f"{panel.bounds}_low", f"{panel.bounds}_high"]].to_numpy(np.float64)
    values = values[np.isfinite(values)]
    if panel.column == "ratio" and values.max() > WIDEST_LINEAR * values.min() > 0:
        logarithmic_heights(axes)
        axes.set_ylabel(panel.label.replace(")", ", log scale)"))
    else:
        axes.set_ylabel(panel.label)
        if panel.column != "ratio":
            axes.set_ylim(bottom=0)
    axes.set_xlabel("dose (bias on the logit, nats)")


def _as_many(count: int, arm: str) -> str:
    return f"a {arm} token" if count == 1 else f"{count} {arm} tokens"


def _mark_doses(axes: Axes, doses: np.ndarray) -> None:
    """Marks at whole doses, and one for minus infinity, with the axis cut before it."""
    x, finite = places(doses), doses[np.isfinite(doses)]
    shown = finite
    while len(shown) > 1 and np.diff(shown).min() < 0.11 * np.ptp(finite):
        nearest = int(np.argmin(np.diff(shown)))
        keeps_right = shown[nearest + 1] == 0 or (nearest + 2 == len(shown) and nearest > 0 and shown[nearest] != 0)
        shown = np.delete(shown, nearest if keeps_right else nearest + 1)
    labels = [f"{dose:+g}".replace("-", "−") if dose else "0" for dose in shown]
    marks = list(shown)
    if not np.isfinite(doses).all():
        gone = float(x.min())
        marks, labels = [gone, *marks], ["−∞", *labels]
        if len(finite):
            axes.axvline(
                (gone + finite.min()) / 2, color=FAINT, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0, gid="cut"
            )
    axes.set_xticks(marks, labels)
    axes.margins(x=0.06)
