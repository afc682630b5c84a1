"""Effect against control: what interventions do to perplexity and sink mass, each above its control."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkscope.analysis.interventions import BASELINE, intervention_table
from sinkscope.figures.columns import need_columns
from sinkscope.figures.mass import tokens_named
from sinkscope.figures.nulls import null_mass_from
from sinkscope.figures.style import BLUE, INK, PAGE, QUIET, VERMILION, number, paper_figure
from sinkscope.figures.ticks import plain_marks

COLUMNS = ("intervention", "role", "ratio", "ratio_low", "ratio_high", "sink_mass", "mass_low", "mass_high")
LOOKS: dict[str, dict[str, Any]] = {
    "effect": {"color": BLUE, "marker": "o", "markersize": 4, "label": "intervention"},
    "control": {
        "color": VERMILION,
        "marker": "s",
        "markersize": 3.5,
        "markerfacecolor": "white",
        "label": "its control",
    },
}


def effects(given: xr.Dataset | pd.DataFrame) -> Figure:
    """Perplexity over that with nothing done, and sink mass, of each intervention and below it of its control.

    given  a record of `sinkscope.run_interventions`, or the table of `sinkscope.intervene`.

    Whiskers are 95% intervals, of the perplexity a paired block bootstrap over positions (logarithmic axis), of the
    mass over texts (none with one text). Dotted lines: with nothing done. Dashed: mass under uniform attention. Raises
    SinkscopeError as `intervention_table` does, if a column of the table is missing, or no intervention is in it.
    """
    table = intervention_table(given) if isinstance(given, xr.Dataset) else given
    need_columns(table, "effects", *COLUMNS)
    rows = table[table["role"] != "baseline"]
    need_columns(rows, "effects", *COLUMNS)
    base = table[table["intervention"] == BASELINE]
    y = places(rows["role"].tolist())
    with paper_figure(table, "effects", PAGE, 0.85 + 0.21 * (y[-1] + 1.2)) as figure:
        loss, mass = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
        _points(loss, rows, y, "ratio", "ratio")
        _points(mass, rows, y, "sink_mass", "mass")
        loss.axvline(1, color=QUIET, linestyle=":", linewidth=0.8, zorder=1, gid="none")
        values = rows[["ratio", "ratio_low", "ratio_high"]].to_numpy(np.float64)
        values = values[np.isfinite(values) & (values > 0)]
        for row, ratio in zip(y, rows["ratio"], strict=True):
            if not np.isfinite(ratio):
                loss.annotate(
                    "no ratio: other tokens", (1, row), xytext=(4, 0), textcoords="offset points", va="center",
                    fontsize=6, color=QUIET,
                )  # fmt: skip
        loss.set_xscale("log")
        low, high = min(values.min(initial=1.0), 0.98), max(values.max(initial=1.0), 1.02)
        span = np.log(high / low)
        loss.set_xlim(low * np.exp(-0.05 * span), high * np.exp(0.05 * span))
        plain_marks(loss.xaxis, *loss.get_xlim())
        loss.set_xlabel("perplexity over that with nothing done (log scale)")
        first = int(table.attrs.get("first", 1))
        mass.set_xlabel(f"mass on the {tokens_named(first)} (probability)")
        if len(base):
            mass.axvline(
                float(base["sink_mass"].iloc[0]), color=QUIET, linestyle=":", linewidth=0.8, zorder=1, gid="none"
            )
        null = null_mass_from(table.attrs)
        if np.isfinite(null):
            mass.axvline(null, color=INK, linestyle=(0, (5, 1.5)), linewidth=0.8, zorder=1, gid="null")
        most = mass.get_xlim()[1]
        mass.set_xlim(-0.02 * most, min(1.02, 1.03 * most))
        loss.set_ylim(y[-1] + 0.7, -0.7)
        loss.set_yticks(y, rows["intervention"])
        for label, role in zip(loss.get_yticklabels(), rows["role"], strict=True):
            label.set_color(QUIET if role == "control" else INK)
            label.set_fontsize(6.5 if role == "control" else 7)
        for axes in (loss, mass):
            axes.tick_params(axis="y", length=0)
        dashed = f"; dashed: uniform null {number(null)}" if np.isfinite(null) else ""
        figure.legend(
            *_once(loss),
            loc="outside upper left",
            ncols=2,
            title=f"whiskers: 95%; dotted: nothing done{dashed}",
            title_fontsize=6.5,
            alignment="left",
        )
    return figure


def places(roles: list[str]) -> list[float]:
    """Heights of the rows from the top down: a control close below its effect, a gap before the next."""
    found: list[float] = []
    for role in roles:
        found.append((found[-1] + (0.85 if role == "control" else 1.35)) if found else 0.0)
    return found


def _points(axes: Axes, rows: pd.DataFrame, y: list[float], column: str, bounds: str) -> None:
    place = np.asarray(y)
    for role, look in LOOKS.items():
        own = (rows["role"] == role).to_numpy()
        if own.any():
            low, high = (rows[f"{bounds}_{bound}"].to_numpy()[own] for bound in ("low", "high"))
            axes.hlines(place[own], low, high, color=look["color"], linewidth=1.0, gid=f"interval-{column}-{role}")
            axes.plot(
                rows[column].to_numpy()[own], place[own], linestyle="none", gid=f"{column}-{role}", zorder=3, **look
            )


def _once(axes: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)
