"""Mean logits and mean probabilities, side by side and never under one label.

StreamingLLM's Figure 2 shows mean *logits* over 256 sentences of 16 tokens, its Figure 12 *probabilities*:
readers took one for the other. Here every panel carries its own scale and unit, and the two units have
different colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.errors import SinkscopeError
from sinkscope.figures.need import index, need
from sinkscope.figures.style import LOGIT_MAP, MISSING, PAGE, PROBABILITY_MAP, paper_figure


def default_heads(record: xr.Dataset, count: int = 4) -> list[tuple[int, int]]:
    """Head 0 of the first two layers, then the heads that give the first token most, strongest first."""
    column = record["mean_probability"].isel(corner_query=slice(1, None), corner_key=0).fillna(-1.0)
    strength = column.transpose("layer", "head", "corner_query").values.sum(axis=-1)
    heads = [(layer, 0) for layer in range(min(2, strength.shape[0]))]
    for flat in np.argsort(-strength, axis=None, kind="stable"):
        layer, head = (int(i) for i in np.unravel_index(flat, strength.shape))
        if len(heads) >= count:
            break
        if (layer, head) not in heads:
            heads.append((layer, head))
    return heads[:count]


def mean_maps(record: xr.Dataset, heads: Sequence[tuple[int, int]] | None = None) -> Figure:
    """Mean logits (top) and mean probabilities (bottom) among the first tokens, one column per (layer, head).

    heads: pairs (layer, head), at most six; by default those of `default_heads`.
    """
    need(record, "mean_maps", "mean_logit", "mean_probability")
    pairs = default_heads(record) if heads is None else [(int(layer), int(head)) for layer, head in heads]
    if not 1 <= len(pairs) <= 6:
        raise SinkscopeError(f"mean_maps draws 1 to 6 heads side by side, not {len(pairs)}: choose fewer.")
    for layer, head in pairs:
        index(record, "layer", layer)
        index(record, "head", head)
    rows = (
        ("mean_logit", LOGIT_MAP, "mean logit (score, natural log)", None),
        ("mean_probability", PROBABILITY_MAP, "mean probability", (0.0, 1.0)),
    )
    size = record.sizes["corner_key"]
    ticks = [0, size - 1] if size < 9 else list(range(0, size, 5))
    panel = PAGE / max(len(pairs), 3)
    with paper_figure(record, "mean_maps", panel * len(pairs) + 0.25, 2 * panel + 1.55) as figure:
        grid = figure.subplots(2, len(pairs), squeeze=False)
        for row, (variable, colours, unit, limits) in enumerate(rows):
            values = record[variable].transpose("layer", "head", "corner_query", "corner_key")
            colour_map = mpl.colormaps[colours].with_extremes(bad=MISSING)
            for column, (layer, head) in enumerate(pairs):
                axes = grid[row, column]
                cells = np.ma.masked_invalid(values.values[layer, head])
                low, high = limits or (None, None)
                image = axes.imshow(cells, cmap=colour_map, vmin=low, vmax=high)
                axes.set(xticks=ticks, yticks=ticks)
                axes.spines[["top", "right"]].set_visible(True)
                if row == 0:
                    axes.set_title(f"layer {layer}, head {head}")
                else:
                    axes.set_xlabel("key position")
                if column == 0:
                    axes.set_ylabel("query position")
                bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.07, pad=0.04, aspect=18)
                bar.ax.tick_params(labelsize=6, length=2)
                bar.set_label(unit, fontsize=6.5)
    return figure
