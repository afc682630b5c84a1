"""All heads at once: a thumbnail of each, and what they can be ranked by."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import xarray as xr

from sinkscope.attention.layer import Layer
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.pixels import FIRST, WHOLE_LOG, encoded, pooled, scaled
from sinkscope.explorer.results import HeadMaps, Overview
from sinkscope.probes import Entropy, Maps, Received
from sinkscope.scope.collect import measure_layer

SHARPEST_FIRST = ("entropy", "value")  # rankings in which small comes first
THUMBNAIL = 64  # cells of a thumbnail along each side


def thumbnails(layers: Iterable[Layer], check: Callable[[], None]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Bytes [unit, side, side] of all heads, and their mean entropy and largest importance, both [unit].

    `check` is called before each layer, and may raise.
    """
    maps, entropies, peaks = [], [], []
    for layer in layers:
        check()
        found = measure_layer((Maps(resolution=THUMBNAIL, pool="max"), Entropy(), Received()), 0, layer)
        maps.append(found["attention_map"].values[0].cpu())  # layers may be on several devices
        entropies.append(found["entropy"].values[0].mean(-1).cpu())
        readers = layer.rows - torch.arange(layer.rows, device=layer.lse.device)
        peaks.append((found["received"].values[0, :, : layer.rows] / readers).amax(-1).cpu())
    scores = {"entropy": torch.cat(entropies).numpy(), "peak": torch.cat(peaks).numpy()}
    return in_bytes(torch.cat(maps).numpy()), scores


def saved_overview(maps: HeadMaps) -> Overview:
    """The overview of saved maps; they can be ranked by the mass on the first tokens where those have cells."""
    whole = slice(0, maps.cells)
    each = [maps.probabilities(unit, whole, whole) for unit in range(len(maps.units))]
    units = in_bytes(np.nan_to_num(np.stack([pooled(one, THUMBNAIL) for one in each])))
    scores = {}
    if maps.first == 0 and 1 < maps.cells == maps.length:
        scores["mass"] = np.array([np.nansum(one[1:, :FIRST], axis=-1).mean() for one in each])
    return Overview(Configuration(), units, scores)


def in_bytes(probabilities: np.ndarray) -> np.ndarray:
    """Bytes of max-pooled probabilities [unit, row, column]; 0 where there is none at all."""
    values = np.where(probabilities > 0, scaled(probabilities, "log"), np.nan)
    return encoded(values, WHOLE_LOG)


def free_scores(record: xr.Dataset) -> dict[str, np.ndarray]:
    """What the free probes say of each head: [unit]; nothing where the record has none of them."""
    if "sink_mass" not in record:
        return {}
    one = record.isel(sequence=0)
    mass = one["sink_mass"].isel(query=slice(1, None)).sum("sink").mean("query").values
    scores = {"mass": mass.reshape(-1)}
    if "value_norm" in one and one.sizes["token"] > 1:
        norms = one["value_norm"].values
        ratio = norms[..., 0] / norms[..., 1:].mean(-1)
        scores["value"] = np.repeat(ratio, mass.size // ratio.size, axis=-1).reshape(-1)
    return scores


def order_of(scores: np.ndarray | None, ranking: str, units: int) -> list[int]:
    """All heads in the order of a ranking; by layer where its scores [unit] are not known."""
    if scores is None:
        return list(range(units))
    return np.argsort(scores if ranking in SHARPEST_FIRST else -scores, kind="stable").tolist()
