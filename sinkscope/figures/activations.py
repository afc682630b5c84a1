"""Massive activations: a handful of hidden values thousands of times the median (Sun et al. 2024)."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.figures.need import layer_ticks, need, over
from sinkscope.figures.style import BLUE, COLUMN, INK, QUIET, VERMILION, paper_figure


def massive_activations(record: xr.Dataset, magnitude: float = 100.0, ratio: float = 1000.0) -> Figure:
    """Largest magnitude after each layer, at the first token and elsewhere, against the layer's median
    magnitude.

    A massive activation lies above both thresholds: `magnitude`, and `ratio` times the median. Log axis.
    """
    need(record, "massive_activations", "activation_max", "activation_median")
    first, rest, median = extremes(record)
    layer = np.arange(len(median))
    with paper_figure(record, "massive_activations", COLUMN, 2.7) as figure:
        axes = figure.subplots()
        axes.plot(
            layer,
            first,
            color=VERMILION,
            marker="o",
            markersize=2.5,
            label="largest, first token",
            gid="first",
        )
        axes.plot(
            layer,
            rest,
            color=BLUE,
            linestyle=(0, (5, 1.5)),
            marker="s",
            markersize=2.5,
            label="largest, other tokens",
            gid="rest",
        )
        axes.plot(layer, median, color=INK, linestyle="-", linewidth=0.8, label="median", gid="median")
        axes.plot(
            layer,
            ratio * median,
            color=QUIET,
            linestyle=(0, (1, 1)),
            label=f"{ratio:,.0f} × median",
            gid="ratio",
        )
        axes.axhline(magnitude, color=QUIET, linestyle=(0, (5, 1.5, 1, 1.5)), label=f"|a| = {magnitude:,.0f}")
        axes.set_yscale("log")
        axes.set(xlabel="layer", ylabel="magnitude of hidden values\n(model units, log scale)")
        axes.set_xticks(layer_ticks(len(layer)))
        axes.margins(x=0.03)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=6.5)
    return figure


def extremes(record: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each [layer]: the largest magnitude at the first token and at any other (over sequences), and the mean
    median.
    """
    largest = record["activation_max"].transpose("layer", "token", "sequence").values.astype(np.float64)
    median = record["activation_median"].transpose("layer", "token", "sequence").values.astype(np.float64)
    layers = len(largest)
    first = over(np.nanmax, largest[:, :1].reshape(layers, -1), axis=1)
    rest = np.full(layers, np.nan)
    if largest.shape[1] > 1:
        rest = over(np.nanmax, largest[:, 1:].reshape(layers, -1), axis=1)
    return first, rest, over(np.nanmean, median.reshape(layers, -1), axis=1)
