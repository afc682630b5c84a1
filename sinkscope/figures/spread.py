"""How spread out attention is: its entropy by layer, and how far back it reaches."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.errors import SinkscopeError
from sinkscope.figures.need import is_causal, layer_ticks, lengths, need, over
from sinkscope.figures.nulls import null_distance, null_entropy
from sinkscope.figures.style import (
    BLUE,
    COLUMN,
    INK,
    VERMILION,
    depth_colours,
    number,
    paper_figure,
    plain_ticks,
)


def entropy_by_layer(record: xr.Dataset) -> Figure:
    """Mean entropy (nats) of each head over queries and sequences, the mean of each layer, and the uniform
    null.
    """
    need(record, "entropy_by_layer", "entropy")
    heads = mean_entropy(record)
    layer = np.arange(heads.shape[0])
    null = null_entropy(record)
    with paper_figure(record, "entropy_by_layer", COLUMN, 2.5) as figure:
        axes = figure.subplots()
        axes.plot(
            np.repeat(layer, heads.shape[1]),
            heads.ravel(),
            ".",
            color="0.62",
            markersize=3,
            label="one head",
            gid="heads",
        )
        axes.plot(layer, over(np.nanmean, heads, axis=1), color=BLUE, label="mean of the layer", gid="mean")
        form = "mean ln(i + 1)" if is_causal(record) else "ln T"
        axes.axhline(
            null,
            color=VERMILION,
            linestyle=(0, (5, 1.5)),
            label=f"uniform null, {form} = {number(null)}",
            gid="null",
        )
        axes.set(xlabel="layer", ylabel="entropy of attention (nats)", xticks=layer_ticks(len(layer)))
        axes.set_ylim(bottom=0)
        axes.margins(x=0.03)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=6.5)
    return figure


def mean_entropy(record: xr.Dataset) -> np.ndarray:
    """Entropy in nats, mean over every query of every sequence, [layer, head]; NaN for a head that is not
    there.
    """
    values = record["entropy"].transpose("layer", "head", "sequence", "query").values.astype(np.float64)
    flat = values.reshape(*values.shape[:2], -1)
    counts = np.isfinite(flat).sum(axis=-1)
    return np.where(counts > 0, np.nansum(flat, axis=-1) / np.maximum(counts, 1), np.nan)


def distance_profile(record: xr.Dataset) -> Figure:
    """Mean attention at each distance back from the query, one line per layer, their mean, and the uniform
    null.

    Distance 0 is the token itself. At distance d only the queries i >= d count, so the profile is a
    probability.
    """
    need(record, "distance_profile", "distance_mass")
    if not is_causal(record):
        raise SinkscopeError("distance_profile is defined for causal attention, and this record is an encoder's.")
    layers = mean_by_distance(record)
    distance = np.arange(layers.shape[1])
    with paper_figure(record, "distance_profile", COLUMN, 2.7) as figure:
        axes = figure.subplots()
        scale = mpl.colors.Normalize(0, max(len(layers) - 1, 1))
        colours = mpl.cm.ScalarMappable(scale, depth_colours())
        for layer, line in enumerate(layers):
            axes.plot(
                distance,
                line,
                color=colours.to_rgba(np.asarray(layer)),
                linewidth=0.5,
                alpha=0.8,
                gid=f"layer-{layer}",
            )
        mean = over(np.nanmean, layers, axis=0)
        axes.plot(distance, mean, color=INK, linewidth=1.3, label="mean over layers", gid="mean")
        null = null_distance(len(distance))
        axes.plot(distance, null, color=VERMILION, linestyle=(0, (5, 1.5)), label="uniform null", gid="null")
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.xaxis.set_major_formatter(plain_ticks)
        axes.set_yscale("log")
        positive = layers[np.isfinite(layers) & (layers > 0)]
        if len(positive):
            axes.set_ylim(max(float(np.percentile(positive, 0.5)) / 2, 1e-9), 1.3 * float(positive.max()))
        axes.set_xlim(-0.1, max(len(distance) - 1, 1))
        axes.set(xlabel="distance from query to key (tokens)", ylabel="mean attention\n(probability, log scale)")
        if len(layers) > 1:
            bar = figure.colorbar(colours, ax=axes, fraction=0.05, aspect=30, ticks=layer_ticks(len(layers), 7))
            bar.set_label("layer")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=6.5)
    return figure


def mean_by_distance(record: xr.Dataset) -> np.ndarray:
    """[layer, distance]: attention at each distance, mean over heads and over the queries that reach back so
    far.
    """
    total = record["distance_mass"].transpose("layer", "distance", "sequence", "head").values.astype(np.float64)
    distance = np.arange(total.shape[1])[:, None]
    queries = np.maximum(lengths(record)[None, :] - distance, 0)[None, :, :, None]
    counted = np.where(np.isfinite(total), queries, 0).sum(axis=(2, 3))
    mass = np.nansum(total, axis=(2, 3))
    return np.where(counted > 0, mass / np.maximum(counted, 1), np.nan)
