"""One head's map beside what the setting it was read under does to the losses: the explorer's view, for paper."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sinkscope.figures.need import need
from sinkscope.figures.style import COLOURS, DASHES, MISSING, PAGE, PROBABILITY_MAP, paper_figure

FAINTEST = 1e-5
SMOOTH = 16  # tokens in a running mean


def explored(record: xr.Dataset) -> Figure:
    """The attention map of the first head of a record, and the loss along the text under each of its policies.

    record  `attention_map`, and `nll` [policy, sequence, token]; as the explorer saves it.

    Probabilities have a logarithmic scale from 1e-5 to 1; keys that a query does not see are grey. Losses are running
    means over the last 16 tokens that were scored. Raises SinkscopeError if `record` holds no map.
    """
    need(record, "explored", "attention_map")
    losses = record["nll"].isel(sequence=0) if "nll" in record else None
    columns = 1 if losses is None else 2
    with paper_figure(record, "explored", PAGE * (0.52 if columns == 1 else 1.0), 3.5) as figure:
        panels = figure.subplots(1, columns, squeeze=False, width_ratios=[1.15, 1][:columns])[0]
        _map(figure, panels[0], record["attention_map"].isel(sequence=0, layer=0, head=0))
        if losses is not None:
            _losses(panels[1], losses)
    return figure


def _map(figure: Figure, axes: Axes, cells: xr.DataArray) -> None:
    values = cells.transpose("map_query", "map_key").values.astype(float)
    places = cells["map_query"].values
    is_pooled = "length" in cells.coords and bool((np.diff(places) > 1).any())
    first, stop = int(places[0]), int(cells["length"]) if is_pooled else int(places[-1]) + 1
    extent = (first - 0.5, stop - 0.5, stop - 0.5, first - 0.5)
    image = axes.imshow(
        np.ma.masked_invalid(np.maximum(values, FAINTEST)),
        cmap=mpl.colormaps[PROBABILITY_MAP].with_extremes(bad=MISSING),
        norm=LogNorm(FAINTEST, 1),
        extent=extent,
    )
    axes.set(
        title=f"layer {int(cells['layer'])}, head {int(cells['head'])}: {cells.attrs.get('setting', 'attention')}",
        xlabel="key (token seen)",
        ylabel="query (token reading)",
    )
    figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, pad=0.02, label="probability", extend="min")


def _losses(axes: Axes, losses: xr.DataArray) -> None:
    for place, name in enumerate(losses["policy"].values):
        values = losses.isel(policy=place).values
        seen = np.flatnonzero(np.isfinite(values))
        if len(seen):
            means = [values[seen[max(0, at - SMOOTH + 1) : at + 1]].mean() for at in range(len(seen))]
            axes.plot(seen, means, color=COLOURS[place], linestyle=DASHES[place], label=str(name))
    axes.set(xlabel="position in the text (tokens)", ylabel="loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.legend(title=f"mean of the last {SMOOTH} tokens scored", title_fontsize=6.5, loc="upper right")
