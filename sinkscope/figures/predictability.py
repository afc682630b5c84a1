"""Sink mass against how predictable the next token is: by bins of entropy, and head by head as rank correlations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkscope.analysis.predictability import mean_mass_by_bin, predictability_table
from sinkscope.figures.mass import tokens_named
from sinkscope.figures.style import BLUE, DASHES, FAINT, INK, PAGE, QUIET, VERMILION, number, paper_figure

STRONGEST = 3
MEASURE = "next_entropy"
KINDS = {"below": (BLUE, "////"), "neither": (FAINT, None), "above": (VERMILION, "\\\\\\\\")}


def predictability(record: xr.Dataset, bins: int = 10, start: int | None = None) -> Figure:
    """Sink mass by entropy of the next token, and the rank correlation of the two in every head.

    record  of `sinkscope.predictability`.
    bins    of equal numbers of queries.
    start   the first query that counts; as the record says, or 64, when None.

    Left: mean over layers and heads with its 95% interval, the heads that give the first keys most, and the uniform
    null, that of even attention from the same queries: entropy falls along a text, and so does 1/(i + 1). Right:
    Spearman correlations; coloured are heads whose 95% interval lies beyond both zero and the correlation of even
    attention. Of heads without any relation up to 5% would. Raises SinkscopeError as `predictability_table` does.
    """
    start = int(record.attrs.get("start", 64)) if start is None else start
    table = predictability_table(record, start=start)
    table = table[table["measure"] == MEASURE]
    binned = mean_mass_by_bin(record, MEASURE, bins, start)
    with paper_figure(record, "predictability", PAGE, 2.9) as figure:
        left, right = figure.subplots(1, 2)
        _bins(left, binned, int(record.attrs.get("first", record.sizes["sink"])))
        _correlations(right, table)
        titles = (None, f"95% intervals of {table['correlation'].notna().sum():,} heads, against zero and null")
        for axes, title in zip((left, right), titles, strict=True):
            axes.legend(
                loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=6.5, ncols=2, borderaxespad=0.2, alignment="left",
                columnspacing=1.0, title=title, title_fontsize=6.5,
            )  # fmt: skip
    return figure


def sides(table: pd.DataFrame) -> pd.Series:
    """Of each row, whether its interval lies "below" or "above" both zero and the null, or "neither".

    "none" where a head has no correlation.
    """
    low, high = np.minimum(table["null"], 0), np.maximum(table["null"], 0)
    found = np.select(
        [table["correlation"].isna(), table["high"] < low, table["low"] > high], ["none", "below", "above"], "neither"
    )
    return pd.Series(found, index=table.index)


def strongest_heads(binned: xr.Dataset, count: int = STRONGEST) -> list[tuple[int, int]]:
    """(layer, head) of those with the largest mass over all bins, largest first."""
    mass = binned["sink_mass"].mean("bin").transpose("layer", "head")
    order = np.argsort(-np.nan_to_num(mass.values, nan=-1.0), axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, mass.shape)
    return [
        (int(mass["layer"].values[row]), int(mass["head"].values[column]))
        for row, column in zip(rows, columns, strict=True)
    ]


def _bins(axes: Axes, binned: xr.Dataset, first: int) -> None:
    x = binned["middle"].values
    axes.fill_between(x, binned["lower"], binned["upper"], color=BLUE, alpha=0.25, linewidth=0, gid="band-mean")
    axes.plot(x, binned["mean"], color=BLUE, marker="o", label="mean of all heads (band: 95%)", gid="mean")
    for row, (layer, head) in enumerate(strongest_heads(binned)):
        line = binned["sink_mass"].sel(layer=layer, head=head)
        axes.plot(
            x, line, color=QUIET, linestyle=DASHES[row + 1], linewidth=0.9, label=f"layer {layer}, head {head}",
            gid=f"head-{layer}-{head}",
        )  # fmt: skip
    axes.plot(
        x, binned["null"], color=VERMILION, linestyle=(0, (5, 1.5)), linewidth=1.0, label="uniform null", gid="null"
    )
    axes.set(xlabel="entropy of the next token (nats, median of bin)")
    axes.set_ylabel(f"mass on the {tokens_named(first)}\n(probability)")
    axes.set_ylim(0, min(1.02, 1.05 * max(axes.get_ylim()[1], float(np.nanmax(binned["mean"])))))


def _correlations(axes: Axes, table: pd.DataFrame) -> None:
    kinds, values = sides(table), table["correlation"].to_numpy(np.float64)
    edges, names = np.linspace(-1, 1, 41), {"below": "below both", "neither": "neither", "above": "above both"}
    bottom = np.zeros(len(edges) - 1)
    for kind, (colour, hatch) in KINDS.items():
        group = values[(kinds == kind).to_numpy()]
        counts, _ = np.histogram(np.clip(group, -1, 1), edges)  # rounding may leave them a little beyond
        axes.bar(
            edges[:-1], counts, np.diff(edges), bottom=bottom, align="edge", facecolor=colour, edgecolor="white",
            linewidth=0.3, hatch=hatch, label=f"{names[kind]}: {len(group):,}", gid=kind,
        )  # fmt: skip
        bottom += counts
    null = float(table["null"].iloc[0])
    axes.axvline(0, color=INK, linewidth=0.6, zorder=3)
    if np.isfinite(null):
        label = f"uniform null: {number(null, 2).replace('-', '−')}"
        axes.axvline(null, color=VERMILION, linestyle=(0, (5, 1.5)), linewidth=1.0, zorder=3, label=label, gid="null")
    found = np.abs(values[np.isfinite(values)]).max(initial=0.1)
    reach = min(1.0, float(np.ceil(10 * max(found, abs(np.nan_to_num(null)))) / 10))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, max(1.0, 1.05 * bottom.max()))
    axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="Spearman correlation of sink mass and entropy", ylabel="heads")
