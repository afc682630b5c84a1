"""Log-perplexity along a text, one line per policy: where a cache is full, and what eviction costs from there on."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkscope.analysis.intervals import resampled_means
from sinkscope.analysis.perplexity import losses
from sinkscope.arguments import whole_number
from sinkscope.figures.style import COLOURS, DASHES, MARKERS, PAGE, QUIET, paper_figure, plain_ticks
from sinkscope.figures.ticks import logarithmic_heights

BINS = 64
FEWEST_TOKENS = 64
RESAMPLES = 1000
MOST_LINEAR = 1.5
"""Above this ratio of two policies' typical losses the axis is logarithmic."""


class Line(NamedTuple):
    """One policy as it is drawn: mean loss and its bounds in each bin, all [bin]; a sampled one as points."""

    name: str
    is_sampled: bool
    centre: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def log_perplexity(curve: xr.Dataset, width: int | None = None) -> Figure:
    """Mean loss in nats against position, for every policy of a perplexity record, with pointwise 95% intervals.

    width  positions in a bin; by default the power of two nearest to a 64th of the text, with 64 tokens or more.

    A bin holds the tokens of all sequences at its positions; its interval is a block bootstrap over them, in blocks of
    n^(1/3) tokens. Policies that read the same passage rise and fall together, so overlapping bands do not mean that
    they are equal: for their differences see `ppl_table`.
    A policy scored at less than half as many tokens as another (re-computation) is drawn as points, each for as many
    bins as hold 64 of its tokens. A plain mean of so few says more about which tokens they are than about the policy.
    So a point stands on the policy most like it, moved by the mean difference at the sampled tokens (the difference
    estimator: Cochran 1977, chapter 7); its bar is the interval of that difference.
    Dotted lines: a cache is full, and eviction begins. The axis is logarithmic if the typical loss of one policy is 1.5
    times another's, so that the others stay apart. Raises SinkscopeError if `curve` holds no losses, or `width` is
    below 1.
    """
    nll = losses(curve)
    width = bin_width(nll) if width is None else whole_number(width, "width", 1)
    drawn = lines(nll, width)
    sampled = np.array([each.is_sampled for each in drawn])
    with paper_figure(curve, "log_perplexity", PAGE, 3.0) as figure:
        axes = figure.subplots()
        for row, each in enumerate(drawn):
            (_points if each.is_sampled else _line)(axes, row, each)
        _mark_full_caches(axes, nll)
        axes.set(xlabel="position in the text (tokens)", ylabel="log-perplexity (nats per token)")
        axes.set_xlim(0, nll.sizes["token"])
        axes.xaxis.set_major_formatter(plain_ticks)
        levels = nll[~sampled].mean(["sequence", "token"]).values
        if levels.min() > 0 and levels.max() > MOST_LINEAR * levels.min():
            logarithmic_heights(axes)
        points = "; points: nearest line plus the difference at sampled tokens" if sampled.any() else ""
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=3,
            title=f"mean over {width:,} positions, with pointwise 95% intervals; dotted: a cache is full{points}",
            title_fontsize=6.5,
            alignment="left",
            handlelength=3.2,
        )
    return figure


def lines(nll: xr.DataArray, width: int) -> list[Line]:
    """Every policy of `losses(curve)` in bins of `width` positions: `binned`, or `estimated` where it is sampled."""
    counts = nll.notnull().sum(["sequence", "token"]).values
    sampled = 2 * counts < counts.max()
    drawn = []
    for row, name in enumerate(map(str, nll["policy"].values)):
        if sampled[row]:
            bins = max(1, ceil(FEWEST_TOKENS * nll.sizes["token"] / (max(counts[row], 1) * width)))
            values = estimated(nll.values[row], nll.values[~sampled], width, bins)
        else:
            values = binned(nll.values[row], width)
        drawn.append(Line(name, bool(sampled[row]), *values))
    return drawn


def binned(nll: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean position, mean loss and its lower and upper bound in each bin of `width` positions, each [bin].

    nll  [sequence, token] with NaN where not scored. A bin without tokens is NaN, with one it has no bounds.
    """
    starts = range(0, nll.shape[1], width)
    found = np.full((4, len(starts)), np.nan)
    for column, start in enumerate(starts):
        piece = nll[:, start : start + width]
        scored = np.isfinite(piece)
        if scored.any():
            found[0, column] = start + np.nonzero(scored)[1].mean()
            found[1, column] = piece[scored].mean()
        if scored.sum() > 1:
            parts = [row[each][:, None] for row, each in zip(piece, scored, strict=True) if each.any()]
            block = round(scored.sum() ** (1 / 3))
            drawn = resampled_means(parts, block, RESAMPLES, np.random.default_rng(column))
            found[2:, column] = np.quantile(drawn, [0.025, 0.975])
    centre, mean, low, high = found
    return centre, mean, low, high


def estimated(
    nll: np.ndarray, others: np.ndarray, width: int, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `binned`, of a sampled policy, one value for each `bins` bins that have samples: the mean of one of `others`
    [policy, sequence, token] in the bin in the middle, plus the mean difference to it at all the samples.

    The one whose difference varies least; none, if the losses themselves vary less.
    """
    candidates = [np.zeros_like(nll), *others]
    spread = [np.nanvar(nll - other) if np.isfinite(nll - other).any() else np.inf for other in candidates]
    nearest = candidates[int(np.argmin(spread))]
    found = np.array(binned(nll - nearest, width * bins))
    found = found[:, np.isfinite(found[0])]
    place, level, _, _ = binned(nearest, width)
    middle = (found[0] // width).astype(int)
    mean, low, high = found[1:] + level[middle]
    return place[middle], mean, low, high


def bin_width(nll: xr.DataArray) -> int:
    """Positions in a bin, where none are asked for."""
    least = min(FEWEST_TOKENS / nll.sizes["sequence"], nll.sizes["token"] / 8)
    return int(2 ** max(0, round(np.log2(max(nll.sizes["token"] / BINS, least)))))


def _line(axes: Axes, row: int, line: Line) -> None:
    colour, dash = COLOURS[row % len(COLOURS)], DASHES[row % len(DASHES)]
    axes.fill_between(line.centre, line.low, line.high, color=colour, alpha=0.12, linewidth=0, gid=f"band-{line.name}")
    axes.plot(
        line.centre, line.mean, color=colour, linestyle=dash, linewidth=1.1, label=line.name, gid=f"mean-{line.name}"
    )


def _points(axes: Axes, row: int, line: Line) -> None:
    colour, marker = COLOURS[row % len(COLOURS)], MARKERS[row % len(MARKERS)]
    axes.vlines(line.centre, line.low, line.high, color=colour, linewidth=0.9, gid=f"band-{line.name}", zorder=3)
    axes.plot(
        line.centre,
        line.mean,
        color=colour,
        linestyle="none",
        marker=marker,
        markersize=4,
        markerfacecolor="white",
        label=f"{line.name} (sampled)",
        gid=f"mean-{line.name}",
        zorder=4,
    )


def _mark_full_caches(axes: Axes, nll: xr.DataArray) -> None:
    if "cache_size" not in nll.coords:
        return
    for size in np.unique(nll["cache_size"].values):
        if 0 < size < nll.sizes["token"]:
            axes.axvline(size, color=QUIET, linestyle=":", linewidth=0.8, zorder=1, gid=f"full-{size}")
