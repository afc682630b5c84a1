"""The sink metric of Gu et al. (2024) against its threshold, with the null it has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.analysis import sink_rate_curve as rates
from sinkscope.figures.need import lengths as real_lengths
from sinkscope.figures.need import need
from sinkscope.figures.style import COLOURS, COLUMN, DASHES, paper_figure


def sink_rate_curve(
    record: xr.Dataset,
    epsilons: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    position: int = 0,
) -> Figure:
    """Fraction of heads with alpha > epsilon against epsilon, one line per length, with 95% intervals over
    sequences.

    The tick on the upper edge, in the line's colour, is the alpha of a uniform causal head at that length:
    left of it even a head without any preference counts as a sink.
    """
    need(record, "sink_rate_curve", "sink_mass")
    if lengths is None:
        lengths = default_lengths(record)
    curve = rates(record, epsilons=epsilons, lengths=lengths, position=position).transpose("length", "epsilon", ...)
    epsilon = curve["epsilon"].values
    with paper_figure(record, "sink_rate_curve", COLUMN, 2.8) as figure:
        axes = figure.subplots()
        for row, length in enumerate(curve["length"].values):
            colour, dash = COLOURS[row % len(COLOURS)], DASHES[row % len(DASHES)]
            line = curve.isel(length=row)
            axes.fill_between(epsilon, line["lower"], line["upper"], color=colour, alpha=0.2, linewidth=0)
            null = float(np.asarray(line["null_alpha"]).reshape(-1)[0])
            axes.plot(
                epsilon,
                line["rate"],
                color=colour,
                linestyle=dash,
                gid=f"rate-{length}",
                label=f"T = {int(length):,} (null α = {null:.3f})",
            )
            axes.plot(
                [null],
                [1.0],
                marker="v",
                markersize=5,
                color=colour,
                clip_on=False,
                linestyle="none",
                transform=axes.get_xaxis_transform(),
                gid=f"null-{length}",
            )
        axes.axvline(0.3, color="0.75", linewidth=0.6, zorder=0)
        name = "first token" if position == 0 else f"position {position}"
        axes.set(
            xlabel="threshold ε (on α, a probability)",
            ylabel=f"heads with α({name}) > ε\n(fraction)",
            xlim=(0, 1),
            ylim=(0, 1.02),
        )
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            fontsize=6.5,
            ncols=2,
            alignment="left",
            title="triangle: α of a uniform causal head; band: 95%",
            title_fontsize=6.5,
            columnspacing=1.0,
        )
    return figure


def default_lengths(record: xr.Dataset) -> list[int]:
    """64 (as published) and each four-fold of it up to the record's shortest sequence, and that itself."""
    longest = int(real_lengths(record).min())
    wanted = [length for length in (64, 256, 1024, 4096, 16384, 65536) if length < longest]
    return [*wanted[-4:], longest]
