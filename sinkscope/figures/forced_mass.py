"""Forced mass: by how much sum-to-one would multiply all other weights if the first keys went, and what heads lose."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sinkscope.analysis import amplification as amplifications
from sinkscope.analysis import eviction_by_layer
from sinkscope.analysis.mass import NORMS
from sinkscope.figures.need import layer_ticks, need
from sinkscope.figures.style import (
    BLUE,
    COLUMN,
    FACTOR_MAP,
    INK,
    MISSING,
    PAGE,
    QUIET,
    VERMILION,
    number,
    paper_figure,
)
from sinkscope.figures.ticks import plain_marks

DARKEST = 100.0
"""A head that parks all it has would have a scale to itself: above this factor, all are equally dark."""
PARTS = {
    "change": ("change of the output", INK, "-", "o"),
    "lost_denominator": ("lost denominator", BLUE, (0, (5, 1.5)), "s"),
    "lost_value": ("lost value", VERMILION, (0, (1, 1)), "^"),
}


def forced_mass(record: xr.Dataset) -> Figure:
    """Amplification 1 / (1 - m) of each head, and beside it the change of a head's output by layer, in its two parts.

    record  with what `EvictionEffect` makes.

    Left: geometric mean over queries and texts, on a logarithmic scale that ends at 100; the line on it is that of
    uniform attention.
    Right: mean norm over the mean norm of the head's output, with 95% intervals over texts: the change, and the two
    vectors that add up to it. Norms of two vectors add up to no less than that of their sum. A record without norms has
    the left panel only. Raises SinkscopeError if the record has no amplification.
    """
    need(record, "forced_mass", "log_amplification")
    has_norms = all(name in record for name in NORMS)
    heads = amplifications(record).transpose("layer", "head").values
    height = float(np.clip(0.9 + 0.09 * len(heads), 2.6, 8.0))
    with paper_figure(record, "forced_mass", PAGE if has_norms else COLUMN, height) as figure:
        panels = figure.subplots(1, 2 if has_norms else 1, squeeze=False)[0]
        _heat(figure, panels[0], heads, record)
        if has_norms:
            _parts(panels[1], record)
    return figure


def uniform_amplification(record: xr.Dataset) -> float:
    """The geometric mean over the same queries for a head that spreads its attention evenly."""
    logs = record["log_amplification"]
    measured = logs.notnull().any([dim for dim in logs.dims if dim != "query"])
    query = record["query"].values[measured.values]
    mass = evicted(record) / (query + 1.0)
    mass = mass[mass < 1]
    return float(np.exp(-np.log1p(-mass).mean())) if len(mass) else float("nan")


def evicted(record: xr.Dataset) -> int:
    """How many keys the record is about: as the probe says, otherwise all before the first query measured."""
    named = re.search(r"EvictionEffect\(keys=[(\[]?([\d, ]+)", str(record.attrs.get("probes", "")))
    if named:
        return len([key for key in named[1].split(",") if key.strip()])
    logs = record["log_amplification"]
    measured = logs.notnull().any([dim for dim in logs.dims if dim != "query"])
    return int(np.append(record["query"].values[measured.values], record.sizes["query"]).min())


def _heat(figure: Figure, axes: Axes, heads: np.ndarray, record: xr.Dataset) -> None:
    layers, count = heads.shape
    largest = max(float(np.nanmax(heads, initial=1.0)), 1.05)
    high = min(largest, DARKEST)
    colours = mpl.colormaps[FACTOR_MAP].with_extremes(bad=MISSING)
    image = axes.imshow(np.ma.masked_invalid(heads), cmap=colours, norm=LogNorm(1.0, high), aspect="auto")
    axes.set(xlabel="head", ylabel="layer", xticks=layer_ticks(count), yticks=layer_ticks(layers, 16))
    axes.spines[["top", "right"]].set_visible(True)
    bar = figure.colorbar(image, ax=axes, fraction=0.06, aspect=30, extend="max" if largest > high else "neither")
    bar.set_label("amplification 1 / (1 − m)\n(factor, log scale)")
    plain_marks(bar.ax.yaxis, 1.0, high)
    null, keys = uniform_amplification(record), evicted(record)
    if np.isfinite(null):
        bar.ax.axhline(null, color=VERMILION, linewidth=1.5, gid="null")
    what = "the first key goes" if keys == 1 else f"the first {keys} keys go"
    axes.set_title(
        f"{what}; largest: {number(largest)}\nline on the scale: uniform null {number(null)}",
        fontsize=6.5,
        color=QUIET,
        loc="left",
    )


def _parts(axes: Axes, record: xr.Dataset) -> None:
    table = eviction_by_layer(record)
    for name, (label, colour, dash, marker) in PARTS.items():
        low, high = (table[f"{name}_{bound}"].to_numpy(np.float64) for bound in ("low", "high"))
        if np.isfinite(low).any():
            axes.fill_between(table["layer"], low, high, color=colour, alpha=0.2, linewidth=0, gid=f"band-{name}")
        axes.plot(
            table["layer"],
            table[name],
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=2.5,
            label=label,
            gid=name,
        )
    first = int(table["layer"].min())
    axes.set_xticks([first + tick for tick in layer_ticks(len(table))])
    axes.set(xlabel="layer", ylabel="norm of the vector\n(times the head's output)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.03)
    several = record.sizes.get("sequence", 1) > 1
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=0.2,
        ncols=2,
        columnspacing=1.0,
        fontsize=6.5,
        title="band: 95% over texts" if several else "one text: no interval",
        title_fontsize=6.5,
        alignment="left",
    )
