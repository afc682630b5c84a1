"""Attention on the first tokens: by layer and head, and by layer with intervals."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.analysis import mass_by_layer as layer_masses
from sinkscope.analysis import sink_mass
from sinkscope.figures.need import first_keys, layer_ticks, need
from sinkscope.figures.nulls import null_mass
from sinkscope.figures.style import (
    BLUE,
    COLUMN,
    FAINT,
    INK,
    MISSING,
    PAGE,
    PROBABILITY_MAP,
    QUIET,
    VERMILION,
    number,
    paper_figure,
)


def tokens_named(first: int) -> str:
    return "first token" if first == 1 else f"first {first} tokens"


def sink_mass_heatmap(record: xr.Dataset, first: int = 1) -> Figure:
    """The mass each head of each layer puts on the first `first` keys, layer x head, with the null on the
    colour bar.
    """
    need(record, "sink_mass_heatmap", "sink_mass")
    first = first_keys(record, first)
    mass = sink_mass(record, first=first).transpose("layer", "head").values
    layers, heads = mass.shape
    width = PAGE if heads > 20 else COLUMN
    height = float(np.clip(0.9 + 0.105 * layers, 2.2, 8.0))
    with paper_figure(record, "sink_mass_heatmap", width, height) as figure:
        axes = figure.subplots()
        colours = mpl.colormaps[PROBABILITY_MAP].with_extremes(bad=MISSING)
        image = axes.imshow(np.ma.masked_invalid(mass), cmap=colours, vmin=0, vmax=1, aspect="auto")
        axes.set(xlabel="head", ylabel="layer", xticks=layer_ticks(heads, 24 if width > 4 else 12))
        axes.set_yticks(layer_ticks(layers, 31))
        axes.spines[["top", "right"]].set_visible(True)
        if layers <= 12 and heads <= 8:
            for (layer, head), value in np.ndenumerate(mass):
                if np.isfinite(value):
                    ink = "white" if value > 0.55 else INK
                    axes.text(head, layer, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7)
        bar = figure.colorbar(image, ax=axes, fraction=0.06, aspect=30)
        bar.set_label(f"mass on the {tokens_named(first)}\n(probability)")
        null = null_mass(record, first)
        bar.ax.axhline(null, color=BLUE, linewidth=1.5)
        axes.set_title(f"blue line on the scale: uniform null {number(null)}", fontsize=6.5, color=QUIET, loc="left")
    return figure


def mass_by_layer(record: xr.Dataset, first: int | None = None) -> Figure:
    """Mean mass per layer on the first token and on the first k, with 95% intervals over sequences and the
    nulls.

    A grey dot is one head's mass on the first token. `first`: draw that many first keys only.
    """
    need(record, "mass_by_layer", "sink_mass")
    kept = record.sizes["sink"]
    wanted = [first_keys(record, first)] if first is not None else sorted({1, min(4, kept)})
    with paper_figure(record, "mass_by_layer", COLUMN, 2.8) as figure:
        axes = figure.subplots()
        heads = sink_mass(record, first=wanted[0]).transpose("layer", "head").values
        layer = np.arange(heads.shape[0])
        axes.plot(
            np.repeat(layer, heads.shape[1]),
            heads.ravel(),
            ".",
            color=FAINT,
            markersize=2.5,
            zorder=1,
            label=f"one head, {tokens_named(wanted[0])}",
            gid="heads",
        )
        looks = zip(wanted, (BLUE, VERMILION), ("-", (0, (5, 1.5))), ("o", "s"), strict=False)
        for count, colour, dash, marker in looks:
            mean = layer_masses(record, first=count)
            axes.fill_between(layer, mean["lower"], mean["upper"], color=colour, alpha=0.25, linewidth=0)
            axes.plot(
                layer,
                mean["mean"],
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=2.5,
                zorder=3,
                label=tokens_named(count),
                gid=f"mean-{count}",
            )
            null = null_mass(record, count)
            axes.axhline(
                null,
                color=colour,
                linewidth=0.8,
                linestyle=":",
                zorder=2,
                label=f"null, {tokens_named(count)}: {number(null)}",
            )
        axes.set(xlabel="layer", ylabel="mean attention\n(probability)", xticks=layer_ticks(len(layer)))
        axes.set_ylim(0, min(1.02, axes.get_ylim()[1]))
        axes.margins(x=0.03)
        several = record.sizes["sequence"] > 1
        note = ("band: 95% interval over sequences" if several else "one sequence: no interval") + "; null: uniform"
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            fontsize=6.5,
            ncols=2,
            title=note,
            title_fontsize=6.5,
            alignment="left",
            columnspacing=1.2,
        )
    return figure
