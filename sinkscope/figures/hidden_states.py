"""Keys, values and hidden states: a sink's value is drained, its key stands apart, its activations are massive."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinkscope.errors import SinkscopeError
from sinkscope.figures.marks import COLUMN, PAGE, Axis, Drawing, Legend, Line, Look, Mark, Panel, Reference
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import layer_axis, need, numbers_of, over, tokens_named


@figure
def norms(record: xr.Dataset, first: int = 1) -> Drawing:
    """Mean key and value norm of the first `first` tokens and of the rest, layer by layer, over KV heads and sequences.

    The band holds the middle 90% of the rest (over tokens, KV heads and sequences).
    """
    record = need(record, "norms", "key_norm", "value_norm")
    if not 1 <= first < record.sizes["token"]:
        raise SinkscopeError(
            f"first={first} leaves no rest to compare with: choose between 1 and {record.sizes['token'] - 1}."
        )
    layers, panels = numbers_of(record, "layer"), []
    for variable, title in (("key_norm", "keys"), ("value_norm", "values")):
        head, rest = split(record[variable], first)
        low, high = over(np.nanpercentile, rest, [5, 95], axis=1)
        marks = [
            Line(layers, over(np.nanmean, rest, axis=1), Look("blue"), "all other tokens (band: middle 90%)", "rest",
                 low, high),
            Line(layers, over(np.nanmean, head, axis=1), Look("vermilion", "dash", marker="circle"),
                 tokens_named(first), "first"),
        ]  # fmt: skip
        panels.append(Panel(marks, x=layer_axis(layers), y=Axis(f"Euclidean norm of {title}", limits=(0, None))))
    return Drawing(panels, record.attrs, PAGE, 2.5, columns=2, legend=Legend(size=7))


def split(values: xr.DataArray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The norms of the first tokens and of the rest, each [layer, samples], NaN where there is none."""
    by_layer = values.transpose("layer", "token", "sequence", "kv_head").values.astype(np.float64)
    layers = by_layer.shape[0]
    return by_layer[:, :first].reshape(layers, -1), by_layer[:, first:].reshape(layers, -1)


@figure
def massive_activations(record: xr.Dataset, magnitude: float = 100.0, ratio: float = 1000.0) -> Drawing:
    """Largest magnitude after each layer, at the first token and elsewhere, against the layer's median magnitude.

    A massive activation (Sun et al. 2024) lies above both thresholds: `magnitude`, and `ratio` times the median. Log
    axis.
    """
    record = need(record, "massive_activations", "activation_max", "activation_median")
    first, rest, median = extremes(record)
    layers = numbers_of(record, "layer")
    marks: list[Mark] = [
        Line(layers, first, Look("vermilion", marker="circle"), "largest, first token", "first"),
        Line(layers, rest, Look("blue", "dash", marker="square"), "largest, other tokens", "rest"),
        Line(layers, median, Look("ink", width=0.8), "median", "median"),
        Line(layers, ratio * median, Look("quiet", "dot"), f"{ratio:,.0f} × median", "ratio"),
        Reference(y=magnitude, look=Look("quiet", "dashdot"), name=f"|a| = {magnitude:,.0f}", id="magnitude"),
    ]
    panel = Panel(marks, x=layer_axis(layers), y=Axis("magnitude of hidden values\n(model units, log scale)", "log"))
    return Drawing([panel], record.attrs, COLUMN, 2.7)


def extremes(record: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each [layer]: the largest magnitude at the first token and at any other (over sequences), and the mean median."""
    largest = record["activation_max"].transpose("layer", "token", "sequence").values.astype(np.float64)
    median = record["activation_median"].transpose("layer", "token", "sequence").values.astype(np.float64)
    layers = len(largest)
    first = over(np.nanmax, largest[:, :1].reshape(layers, -1), axis=1)
    rest = np.full(layers, np.nan)
    if largest.shape[1] > 1:
        rest = over(np.nanmax, largest[:, 1:].reshape(layers, -1), axis=1)
    return first, rest, over(np.nanmean, median.reshape(layers, -1), axis=1)
