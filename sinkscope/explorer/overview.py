"""Thumbnails of all heads, and what they can be ranked by."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import xarray as xr

from sinkscope.core.layer import Layer
from sinkscope.core.probes import Entropy, Maps, Received
from sinkscope.core.probing import measure_layer
from sinkscope.explorer.encoding import FAINTEST, encoded, limits, pooled, scaled
from sinkscope.explorer.head_maps import HeadMaps
from sinkscope.explorer.readings import Overview
from sinkscope.explorer.setting import Setting

SIDE = 64  # cells of a thumbnail along each side
FIRST = 4  # keys whose mass ranks the heads
RANKINGS = {
    "layer": "layer",
    "mass": f"attention on the first {FIRST} tokens",
    "entropy": "entropy (nats)",
    "peak": "largest importance of a token",
    "value": "value norm of the first token over the others'",
}


def thumbnails(layers: Iterable[Layer], check: Callable[[], None]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Bytes [unit, side, side] of all heads, and their mean entropy and largest importance, both [unit].

    Args:
        layers: the attention layers of one sequence.
        check: called before each layer; may raise.
    """
    maps, entropies, peaks = [], [], []
    for layer in layers:
        check()
        found = measure_layer((Maps(resolution=SIDE, pool="max"), Entropy(), Received()), 0, layer)
        maps.append(found["attention_map"].values[0])
        entropies.append(found["entropy"].values[0].mean(-1))
        readers = layer.rows - torch.arange(layer.rows, device=layer.lse.device)
        peaks.append((found["received"].values[0, :, : layer.rows] / readers).amax(-1))
    scores = {"entropy": torch.cat(entropies).cpu().numpy(), "peak": torch.cat(peaks).cpu().numpy()}
    return in_bytes(torch.cat(maps).cpu().numpy()), scores


def saved_overview(maps: HeadMaps) -> Overview:
    """The overview of saved maps; they can be ranked by the mass on the first tokens where those have cells."""
    whole = slice(0, maps.cells)
    each = [maps.probabilities(unit, whole, whole) for unit in range(len(maps.units))]
    units = in_bytes(np.nan_to_num(np.stack([pooled(one, SIDE) for one in each])))
    scores = {}
    if maps.first == 0 and 1 < maps.cells == maps.length:
        scores["mass"] = np.array([np.nansum(one[1:, :FIRST], axis=-1).mean() for one in each])
    return Overview(Setting(), units, scores)


def in_bytes(probabilities: np.ndarray) -> np.ndarray:
    """Bytes of max-pooled probabilities [unit, row, column]; 0 where there is none at all."""
    values = np.where(probabilities > 0, scaled(probabilities, "log"), np.nan)
    return encoded(values, limits(np.array([[FAINTEST]]), "log"))


def free_scores(record: xr.Dataset) -> dict[str, np.ndarray]:
    """What the free probes say of each head: [unit]."""
    one = record.isel(sequence=0)
    mass = one["sink_mass"].isel(query=slice(1, None)).sum("sink").mean("query").values
    scores = {"mass": mass.reshape(-1)}
    if "value_norm" in one and one.sizes["token"] > 1:
        norms = one["value_norm"].values
        ratio = norms[..., 0] / norms[..., 1:].mean(-1)
        scores["value"] = np.repeat(ratio, mass.size // ratio.size, axis=-1).reshape(-1)
    return scores
