"""Key and value norms: a sink's value is drained, its key stands apart."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.errors import SinkscopeError
from sinkscope.figures.mass import tokens_named
from sinkscope.figures.need import layer_ticks, need, over
from sinkscope.figures.style import BLUE, PAGE, VERMILION, paper_figure


def norms(record: xr.Dataset, first: int = 1) -> Figure:
    """Mean key and value norm of the first `first` tokens and of the rest, layer by layer, over KV heads and
    sequences.

    The band holds the middle 90% of the rest (over tokens, KV heads and sequences).
    """
    need(record, "norms", "key_norm", "value_norm")
    if not 1 <= first < record.sizes["token"]:
        raise SinkscopeError(
            f"first={first} leaves no rest to compare with: choose between 1 and {record.sizes['token'] - 1}."
        )
    with paper_figure(record, "norms", PAGE, 2.5) as figure:
        panels = figure.subplots(1, 2)
        for axes, variable, title in zip(panels, ("key_norm", "value_norm"), ("keys", "values"), strict=True):
            head, rest = split(record[variable], first)
            layer = np.arange(rest.shape[0])
            low, high = over(np.nanpercentile, rest, [5, 95], axis=1)
            axes.fill_between(layer, low, high, color=BLUE, alpha=0.2, linewidth=0)
            axes.plot(
                layer,
                over(np.nanmean, rest, axis=1),
                color=BLUE,
                label="all other tokens (band: middle 90%)",
                gid="rest",
            )
            axes.plot(
                layer,
                over(np.nanmean, head, axis=1),
                color=VERMILION,
                linestyle=(0, (5, 1.5)),
                marker="o",
                markersize=2.5,
                label=tokens_named(first),
                gid="first",
            )
            axes.set(xlabel="layer", ylabel=f"Euclidean norm of {title}", xticks=layer_ticks(len(layer)))
            axes.set_ylim(bottom=0)
            axes.margins(x=0.03)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def split(values: xr.DataArray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The norms of the first tokens and of the rest, each [layer, samples], NaN where there is none."""
    by_layer = values.transpose("layer", "token", "sequence", "kv_head").values.astype(np.float64)
    layers = by_layer.shape[0]
    return by_layer[:, :first].reshape(layers, -1), by_layer[:, first:].reshape(layers, -1)
