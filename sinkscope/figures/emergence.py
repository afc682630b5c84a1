"""How sinks emerge in training: small models on the Bigram-Backcopy task, and language models from scratch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkscope.analysis.lab import SINK, emergence_quantities, head_masses, intervals_said, language_table, t_interval
from sinkscope.errors import SinkscopeError
from sinkscope.figures.style import COLOURS, DASHES, INK, MARKERS, PAGE, QUIET, number, paper_figure, plain_ticks
from sinkscope.figures.ticks import logarithmic_heights

MASS, ROW_SUM = "BOS mass of non-triggers", "row sum of non-triggers"
VALUE_NORM, LOSS = "value norm of BOS / of others", "loss"
WHISKERS = 0.03  # of the steps, from one to the next
WIDEST_LINEAR = 3.0
"""Above this ratio of perplexities their axis is logarithmic."""


class Look(NamedTuple):
    """Of an arm."""

    colour: str
    dash: Any
    marker: str


def emergence(record: xr.Dataset, layer: int = 0) -> Figure:
    """What becomes of BOS over training, one line per arm: mean over seeds, with its 95% t interval as a faint band.

    record  of `lab.bigram_backcopy`.
    layer   which; heads are averaged.

    Attention of non-trigger queries on BOS, with the uniform null dotted; their attention on all tokens together, which
    softmax fixes at one; the norm of BOS's value over the others'; and how far the loss is above the best possible.
    Whiskers at the right are the means and intervals of the last step side by side.
    With fewer than three seeds there are no intervals.
    Raises SinkscopeError for a record of something else, or a layer it does not have.
    """
    quantities = emergence_quantities(record)
    if layer not in record["layer"].values:
        raise SinkscopeError(f"layer {layer} is out of range: this record has layers 0 to {record.sizes['layer'] - 1}.")
    quantities = {name: each.sel(layer=layer) if "layer" in each.dims else each for name, each in quantities.items()}
    best, last = float(record["best_loss"].sel(tokens="all")), int(record["step"].max())
    looks = _looks([str(arm) for arm in record["arm"].values])
    with paper_figure(record, "emergence", PAGE, 4.7) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        drawn = (
            (MASS, quantities[MASS], "attention on BOS\n(probability)"),
            (ROW_SUM, quantities[ROW_SUM], "attention on all tokens\n(sum of weights)"),
            (VALUE_NORM, quantities[VALUE_NORM], "norm of the value of BOS\n(times that of others)"),
            (LOSS, quantities[LOSS] - best, "loss above the best possible\n(nats)"),
        )
        for axes, (name, quantity, label) in zip(panels.ravel(), drawn, strict=True):
            for row, (arm, look) in enumerate(looks.items()):
                _line(axes, quantity.sel(arm=arm), look, arm, row)
            axes.set(ylabel=label, title=name if name != LOSS else "loss of all tokens")
            axes.xaxis.set_major_formatter(plain_ticks)
            axes.set_xticks([mark for mark in MaxNLocator(5).tick_values(0, last) if mark <= last])
            axes.set_xlim(0, last * (1 + WHISKERS * (len(looks) + 1)))
        mass, rows, norms, losses = panels.ravel()
        _nulls(mass, record)
        for axes in (mass, rows, norms):
            axes.set_ylim(bottom=0)
        for axes in (rows, norms):
            axes.axhline(1, color=QUIET, linestyle=":", linewidth=0.8, zorder=1, gid="one")
        low = np.nanmin((quantities[LOSS] - best).mean("seed").values)
        if low > 0:
            losses.set_ylim(bottom=low / 2)
            logarithmic_heights(losses)
            losses.set_ylabel("loss above the best possible\n(nats, log scale)")
        for axes in (norms, losses):
            axes.set_xlabel("training step")
        handles, labels = mass.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=4,
            handlelength=3.2,
            title=f"{_place(record, layer)}; mean over seeds; {_bands(record)}",
            title_fontsize=6.5,
            alignment="left",
        )
    return figure


def language_emergence(record: xr.Dataset) -> Figure:
    """Perplexity against the number of sinks kept, by arm, beside the attention of each head on the first token.

    record  of `lab.language_model`.

    Left: over the tokens from which every cache has evicted some, with 95% block bootstrap intervals over the held-out
    texts; dense attention at the right end. All policies read the same texts, so whiskers that overlap do not mean that
    they are equal: for their differences see `lab.language_table`.
    Right: every head of every layer, with the uniform null dotted and the threshold of a sink, 0.3, dashed.
    Several seeds stand beside each other. Raises SinkscopeError for a record of something else.
    """
    table, heads = language_table(record), head_masses(record)
    looks = _looks([str(arm) for arm in record["arm"].values])
    with paper_figure(record, "language_emergence", PAGE, 2.8) as figure:
        losses, masses = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _perplexities(losses, table, looks)
        _masses(masses, heads, looks)
        figure.legend(
            *losses.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=4,
            title=f"after {record.attrs['steps']:,} steps; whiskers: 95% over held-out texts",
            title_fontsize=6.5,
            alignment="left",
        )
    return figure


def _looks(arms: list[str]) -> dict[str, Look]:
    colours = (*COLOURS, INK)
    return {
        arm: Look(colours[row % len(colours)], DASHES[row % len(DASHES)], MARKERS[row % len(MARKERS)])
        for row, arm in enumerate(arms)
    }


def _line(axes: Axes, quantity: xr.DataArray, look: Look, arm: str, row: int) -> None:
    """Mean over seeds of [seed, step], and its interval; the last ones again to the right of all, in a place of their
    own."""
    step = quantity["step"].values
    mean, low, high = t_interval(quantity.transpose("seed", "step").values)
    axes.plot(step, mean, color=look.colour, linestyle=look.dash, linewidth=1.1, label=arm, gid=f"mean-{arm}")
    if np.isfinite(low).any():
        axes.fill_between(step, low, high, color=look.colour, alpha=0.07, linewidth=0, gid=f"band-{arm}")
        place = step[-1] * (1 + WHISKERS * (row + 1))
        axes.vlines(place, low[-1], high[-1], color=look.colour, linewidth=1.0, gid=f"whisker-{arm}")
        axes.plot(place, mean[-1], color=look.colour, marker=look.marker, markersize=2.5, clip_on=False)


def _nulls(axes: Axes, record: xr.Dataset) -> None:
    """The uniform nulls; a sink token is one more key and makes its arm's a little lower."""
    nulls = record["bos_null"].sel(tokens="non-trigger").values
    for null in np.unique(nulls):
        axes.axhline(
            null,
            color=QUIET,
            linestyle=":",
            linewidth=0.8,
            zorder=1,
            gid=f"null-{null:.4f}",
            label=f"uniform null, {number(null)}" if null == nulls.max() else None,
        )


def _place(record: xr.Dataset, layer: int) -> str:
    layers, heads = record.sizes["layer"], record.sizes["head"]
    named = f"layer {layer} of {layers}" if layers > 1 else "one layer"
    return f"{named}, {f'mean of {heads} heads' if heads > 1 else 'one head'}"


def _bands(record: xr.Dataset) -> str:
    said = intervals_said(record.sizes["seed"])
    return said if said.startswith("no") else f"bands, and whiskers for the last step: {said}"


def _perplexities(axes: Axes, table: pd.DataFrame, looks: dict[str, Look]) -> None:
    """One group of points for each number of sinks, and one for dense attention."""
    bounded = table[table["cache_size"] > 0]
    places = {name: place for place, name in enumerate([*dict.fromkeys(bounded["policy"]), "dense"])}
    seeds = list(dict.fromkeys(table["seed"]))
    columns = [(arm, seed) for arm in looks for seed in seeds]
    for column, (arm, seed) in enumerate(columns):
        own = table[(table["arm"] == arm) & (table["seed"] == seed)]
        place = own["policy"].map(places).to_numpy(float) + 0.7 * ((column + 0.5) / len(columns) - 0.5)
        look, gid = looks[arm], f"{arm}-{seed}"
        axes.vlines(place, own["low"], own["high"], color=look.colour, linewidth=0.9, gid=f"interval-{gid}", zorder=2)
        axes.plot(
            place,
            own["ppl"],
            color=look.colour,
            marker=look.marker,
            markersize=3.5,
            linestyle="none",
            label=arm if seed == seeds[0] else None,
            gid=f"ppl-{gid}",
            zorder=3,
        )
    names = [*(f"{sinks:,}" for sinks in dict.fromkeys(bounded["sinks"])), "dense"]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    for edge in range(len(names) - 1):
        axes.axvline(edge + 0.5, color="0.88", linewidth=0.5, zorder=0)
    cache = int(bounded["cache_size"].iloc[0])
    axes.set(xlabel=f"sinks kept in a cache of {cache:,} tokens", ylabel="perplexity")
    values = table["ppl"].to_numpy()
    if values.max() > WIDEST_LINEAR * values.min():
        logarithmic_heights(axes)
        axes.set_ylabel("perplexity (log scale)")


def _masses(axes: Axes, heads: pd.DataFrame, looks: dict[str, Look]) -> None:
    """One point for each head, layers side by side within an arm."""
    layers = int(heads["layer"].max()) + 1
    for place, (arm, look) in enumerate(looks.items()):
        own = heads[heads["arm"] == arm]
        across = place + 0.7 * ((own["layer"] + 0.5) / layers - 0.5)
        axes.plot(
            across,
            own["mass"],
            color=look.colour,
            marker=look.marker,
            markersize=3,
            linestyle="none",
            markerfacecolor="white",
            gid=f"mass-{arm}",
        )
        null = own["null"].iloc[0]
        axes.hlines(null, place - 0.4, place + 0.4, color=QUIET, linestyle=":", linewidth=0.9, gid=f"null-{arm}")
    axes.axhline(SINK, color=QUIET, linestyle=(0, (5, 1.5)), linewidth=0.8, zorder=1, gid="threshold")
    axes.set_xticks(range(len(looks)), list(looks))
    axes.set_xlim(-0.5, len(looks) - 0.5)
    axes.set_ylim(0, max(1.15 * SINK, 1.05 * float(heads["mass"].max())))
    axes.set(xlabel="layers from first to last within an arm", ylabel="attention on the first token\n(probability)")
    axes.set_title(f"one point per head; dashed: {SINK}, a sink\ndotted: uniform null", fontsize=6.5)
