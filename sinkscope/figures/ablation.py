"""Perplexity against the number of sinks, for each cache size, way of counting positions, and kind of sink."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkscope.errors import SinkscopeError
from sinkscope.figures.columns import need_columns
from sinkscope.figures.style import COLOURS, COLUMN, INK, MARKERS, PAGE, paper_figure
from sinkscope.figures.ticks import logarithmic_heights

COLUMNS = ("sinks", "cache_size", "positions", "kind", "ppl", "low", "high")
KINDS = ("first", "line breaks", "random")
POSITIONS = ("cache", "original")
PANELS_IN_A_ROW = 3
WIDEST_BARS = 4.0
"""Above this ratio of perplexities the axis is logarithmic, where a bar's length means nothing: points then."""


class Series(NamedTuple):
    """One group of bars: where its sinks are, how positions are counted, and its look."""

    kind: str
    positions: str
    colour: str
    marker: str
    hollow: bool

    @property
    def label(self) -> str:
        return f"{self.kind}, {self.positions}"


def ablation(table: pd.DataFrame) -> Figure:
    """Perplexity for each number of sinks, one panel per cache size, with 95% intervals as whiskers.

    table  one row for each combination of sinks, cache_size, positions ("cache", "original") and kind ("first", "line
           breaks", "random"), with ppl, low, high; attrs as a record has them.

    Bars from zero; where the perplexities differ by more than a factor of 4, points on a logarithmic axis. Colour is
    the kind of sink; hatched or hollow are the positions of the text.
    Raises SinkscopeError if a column is missing, the table is empty, or a combination comes twice.
    """
    need_columns(table, "ablation", *COLUMNS)
    twice = table.duplicated(list(COLUMNS[:4]))
    if twice.any():
        row = ", ".join(f"{name}={table.loc[twice, name].iloc[0]}" for name in COLUMNS[:4])
        raise SinkscopeError(f"ablation takes one row for each combination, and {row} comes twice: choose one.")
    caches = sorted(table["cache_size"].unique())
    series = _series(table)
    values = table["ppl"].to_numpy(np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    logarithmic = bool(len(values)) and values.max() > WIDEST_BARS * values.min()
    rows = ceil(len(caches) / PANELS_IN_A_ROW)
    columns = ceil(len(caches) / rows)
    with paper_figure(table, "ablation", COLUMN if columns == 1 else PAGE, 0.9 + 1.9 * rows) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, cache in zip(panels.ravel(), caches, strict=False):
            _panel(axes, table[table["cache_size"] == cache], series, logarithmic)
            axes.set(xlabel="sinks kept (tokens)", title=f"cache of {cache:,} tokens")
        for axes in panels.ravel()[len(caches) :]:
            axes.remove()
        for axes in panels[:, 0]:
            axes.set_ylabel("perplexity (log scale)" if logarithmic else "perplexity")
        if logarithmic:
            logarithmic_heights(panels[0, 0])
        else:
            panels[0, 0].set_ylim(bottom=0)
        labelled = dict(
            pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels()[::-1], strict=True)
        )
        figure.legend(
            [labelled[each.label] for each in series],
            [each.label for each in series],
            loc="outside upper left",
            ncols=3,
            fontsize=6,
            handlelength=1.6,
            title="sinks, positions (in the cache or original); whiskers: 95%",
            title_fontsize=6,
            alignment="left",
            columnspacing=1.2,
        )
    return figure


def _series(table: pd.DataFrame) -> list[Series]:
    """Those of the table: known kinds and positions first, in their order."""
    kinds = _ordered(table["kind"], KINDS)
    positions = _ordered(table["positions"], POSITIONS)
    there = set(zip(table["kind"], table["positions"], strict=True))
    return [
        Series(kind, each, COLOURS[row % len(COLOURS)], MARKERS[row % len(MARKERS)], hollow=column > 0)
        for row, kind in enumerate(kinds)
        for column, each in enumerate(positions)
        if (kind, each) in there
    ]


def _ordered(values: pd.Series, known: tuple[str, ...]) -> list[str]:
    found = list(dict.fromkeys(values))
    return [*(each for each in known if each in found), *(each for each in found if each not in known)]


def _panel(axes: Axes, rows: pd.DataFrame, series: list[Series], logarithmic: bool) -> None:
    """One cache size: groups of bars or points, one group for each number of sinks."""
    counts = sorted(rows["sinks"].unique())
    width = 0.8 / len(series)
    members = [[each for each in series if len(_rows_of(rows[rows["sinks"] == count], each))] for count in counts]
    for each in series:
        own = _rows_of(rows, each)
        groups = np.searchsorted(counts, own["sinks"])
        place = np.array(
            [group + (members[group].index(each) - (len(members[group]) - 1) / 2) * width for group in groups]
        )
        ppl, gid = own["ppl"].where(np.isfinite(own["ppl"])).to_numpy(np.float64), f"{each.kind}-{each.positions}"
        face = "white" if each.hollow else each.colour
        if logarithmic:
            axes.plot(
                place,
                ppl,
                color=each.colour,
                marker=each.marker,
                markerfacecolor=face,
                markersize=3.5,
                markeredgewidth=0.8,
                linestyle="none",
                label=each.label,
                gid=gid,
                zorder=3,
            )
        else:
            axes.bar(
                place,
                ppl,
                width * 0.9,
                facecolor=face,
                edgecolor=each.colour,
                hatch="////" if each.hollow else None,
                linewidth=0.6,
                label=each.label,
                gid=gid,
            )
        ink = each.colour if logarithmic else INK
        axes.vlines(place, own["low"], own["high"], color=ink, linewidth=0.8, gid=f"interval-{gid}", zorder=2)
    axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    for edge in range(len(counts) - 1) if logarithmic else ():
        axes.axvline(edge + 0.5, color="0.88", linewidth=0.5, zorder=0)


def _rows_of(rows: pd.DataFrame, series: Series) -> pd.DataFrame:
    return rows[(rows["kind"] == series.kind) & (rows["positions"] == series.positions)]
