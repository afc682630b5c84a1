"""What a token costs while a model writes: time and cache memory against cache size."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from sinkscope.figures.columns import need_columns
from sinkscope.figures.style import COLOURS, DASHES, MARKERS, PAGE, paper_figure
from sinkscope.figures.ticks import logarithmic_heights

COLUMNS = ("policy", "cache_size", "milliseconds", "low", "high", "kv_bytes")
MEBIBYTE = 2**20


def decode_cost(table: pd.DataFrame) -> Figure:
    """Time per token (ms, with its interval) and key-value memory (MiB) against cache size, one line per policy.

    table  one row for each policy and cache size: policy, cache_size, milliseconds, low, high, kv_bytes; attrs as a
           record has them. Rows of a policy without a cache size (below 1: dense) are drawn across, as a level.

    Both axes are logarithmic: a slope of one is a cost in proportion to the cache. Policies that cost the same have
    nested marks. Raises SinkscopeError if a column is missing or the table is empty.
    """
    need_columns(table, "decode_cost", *COLUMNS)
    names = list(dict.fromkeys(table["policy"]))
    with paper_figure(table, "decode_cost", PAGE, 2.7) as figure:
        time, memory = figure.subplots(1, 2)
        for row, name in enumerate(names):
            own = table[table["policy"] == name].sort_values("cache_size")
            _draw(time, row, len(names), own, "milliseconds", 1.0)
            _draw(memory, row, len(names), own, "kv_bytes", MEBIBYTE)
        for axes, label in ((time, "time per token (ms)"), (memory, "key-value memory (MiB)")):
            axes.set(xscale="log", xlabel="cache size (tokens)", ylabel=label)
            _mark_sizes(axes, table["cache_size"].to_numpy())
            logarithmic_heights(axes)
        figure.legend(*time.get_legend_handles_labels(), loc="outside upper left", ncols=4, handlelength=3.2)
    return figure


def _draw(axes: Axes, row: int, rows: int, own: pd.DataFrame, column: str, unit: float) -> None:
    name, bounded = str(own["policy"].iloc[0]), own["cache_size"].to_numpy() > 0
    colour, dash = COLOURS[row % len(COLOURS)], DASHES[row % len(DASHES)]
    size, value = own["cache_size"].to_numpy(), own[column].to_numpy(np.float64) / unit
    for level in value[~bounded]:
        label = None if bounded.any() else f"{name} (whole text)"
        axes.axhline(level, color=colour, linestyle=dash, label=label, gid=f"level-{name}")
    if not bounded.any():
        return
    if column == "milliseconds":
        low, high = own["low"].to_numpy(np.float64)[bounded], own["high"].to_numpy(np.float64)[bounded]
        axes.vlines(size[bounded], low, high, color=colour, linewidth=0.9, gid=f"interval-{name}")
    axes.plot(
        size[bounded],
        value[bounded],
        color=colour,
        linestyle=dash,
        marker=MARKERS[row % len(MARKERS)],
        markersize=3 + 1.4 * (rows - 1 - row),
        markerfacecolor="white" if row < rows - 1 else colour,
        label=name,
        gid=f"{column}-{name}",
    )


def _mark_sizes(axes: Axes, sizes: np.ndarray) -> None:
    """The cache sizes of the table, thinned where there are many."""
    there = np.unique(sizes[sizes > 0])
    marks = there[:: max(1, int(np.ceil(len(there) / 7)))]
    axes.xaxis.set_major_locator(FixedLocator(list(marks)))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{mark:,}" for mark in marks]))
    axes.xaxis.set_minor_locator(NullLocator())
