"""Attention received by position: how much the queries that can see a token give it, with the tokens at the
peaks.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.analysis import importance
from sinkscope.figures.need import index, lengths, need, over
from sinkscope.figures.style import BLUE, INK, PAGE, QUIET, SKY, VERMILION, paper_figure, plain_ticks
from sinkscope.figures.tokens import drawable


def received_by_position(record: xr.Dataset, sequence: int = 0, peaks: int = 10) -> Figure:
    """Importance alpha of each position of one sequence: mean over heads, the strongest head, and the null.

    The `peaks` positions that stand out most from those around them carry their token's text. Both axes are
    logarithmic. The rise at the end is no sink: few queries see the last keys, and those are near.
    """
    mean, strongest, null = received_profile(record, sequence)
    position = np.arange(1, len(mean) + 1)
    with paper_figure(record, "received_by_position", PAGE, 2.9) as figure:
        axes = figure.subplots()
        axes.plot(position, strongest, color=SKY, linewidth=0.5, label="strongest head", gid="strongest")
        axes.plot(
            position,
            mean,
            color=BLUE,
            linewidth=0.9,
            label="mean over layers and heads",
            gid="mean",
            marker="." if len(mean) <= 64 else None,
        )
        axes.plot(position, null, color=VERMILION, linestyle=(0, (5, 1.5)), label="uniform null", gid="null")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(plain_ticks)
        axes.set_xlim(0.9, len(mean) * 1.1)
        low, high = _limits([mean, strongest, null])
        axes.set_ylim(low, high)
        _label_peaks(axes, record, sequence, find_peaks(mean, peaks), mean)
        axes.set(xlabel="position + 1 (tokens, log scale)", ylabel="attention received α\n(probability, log scale)")
        axes.legend(loc="lower left", ncols=3, fontsize=6.5)
        axes.set_title(f"sequence {sequence}", fontsize=6.5, color=QUIET, loc="right")
    return figure


def received_profile(record: xr.Dataset, sequence: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha of one sequence, each [position]: mean over heads, maximum over heads, and the uniform null."""
    need(record, "received_by_position", "received")
    index(record, "sequence", sequence)
    length = int(lengths(record)[sequence])
    alpha = importance(record.isel(sequence=[sequence])).isel(sequence=0, key=slice(0, length))
    flat = alpha.transpose("key", "layer", "head").values.reshape(length, -1)
    flat = flat[:, np.isfinite(flat).any(axis=0)]
    return over(np.nanmean, flat, axis=1), over(np.nanmax, flat, axis=1), alpha["null"].values


def find_peaks(mean: np.ndarray, count: int) -> list[int]:
    """Up to `count` positions, far enough apart to be labelled; the first token always.

    A peak is higher than its neighbours and 1.25 times the median of the 20 positions around it; the highest
    of these ratios come first. Keys seen by fewer than a quarter of the queries (at least 16) are left out:
    they are noise.
    """
    if count < 1 or not len(mean):
        return []
    last = len(mean) - max(16, int(np.ceil(len(mean) / 4)))
    around = np.array([np.median(mean[max(0, p - 10) : p + 11]) for p in range(len(mean))])
    padded = np.concatenate([[-np.inf], mean, [-np.inf]])
    is_peak = (mean > padded[:-2]) & (mean > padded[2:]) & (mean > 1.25 * around)
    is_peak[max(last, 1) :] = False
    spacing = np.log(len(mean) + 1) / 28
    where, kept = np.log(np.arange(1, len(mean) + 1)), [0]
    for place in np.argsort(-mean / around, kind="stable"):
        if len(kept) >= count:
            break
        if is_peak[place] and all(abs(where[place] - where[other]) > spacing for other in kept):
            kept.append(int(place))
    return sorted(kept)


def _label_peaks(axes, record: xr.Dataset, sequence: int, places: list[int], mean: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    texts = record["token_text"].values[sequence] if "token_text" in record.coords or "token_text" in record else None
    for place in places:
        word = f"{place}" if texts is None else f"“{drawable(texts[place], limit=14)}” {place}"
        axes.plot([place + 1], [mean[place]], "o", color=INK, markersize=2.5, zorder=5)
        axes.annotate(
            word,
            (place + 1, mean[place]),
            xytext=(0, 5),
            textcoords="offset points",
            rotation=60,
            fontsize=6,
            ha="left",
            va="bottom",
            rotation_mode="anchor",
            parse_math=False,
            color=INK,
            gid=f"peak-{place}",
            zorder=6,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )


def _limits(lines: list[np.ndarray]) -> tuple[float, float]:
    """Room above for the rotated labels and below for the legend."""
    seen = np.concatenate(lines)
    seen = seen[np.isfinite(seen) & (seen > 0)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (1e-3, 1.0)
    low = max(low, high * 1e-5)
    span = max(np.log10(high / low), 0.5)
    return low / 10 ** (0.18 * span), high * 10 ** (0.18 * span)
