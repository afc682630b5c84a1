"""Where attention goes, token by token: mean maps, what each position receives, how far back and how spread out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from sinkscope.analysis.importance import importance
from sinkscope.analysis.variables import is_causal
from sinkscope.errors import SinkscopeError
from sinkscope.figures.marks import (
    COLUMN,
    PAGE,
    Axis,
    ColourBar,
    Drawing,
    Image,
    Legend,
    Line,
    Look,
    Mark,
    Panel,
    Points,
    Reference,
    Text,
    extent,
)
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import index, layer_axis, lengths, need, numbers_of, over
from sinkscope.figures.sink_mass import heads_of
from sinkscope.figures.style import depth_colours, drawable, number, visible

NULL = Look("vermilion", "dash")


@figure
def mean_maps(record: xr.Dataset, heads: Sequence[tuple[int, int]] | None = None) -> Drawing:
    """Mean logits (top) and mean probabilities (bottom) among the first tokens, one column per (layer, head).

    StreamingLLM's Figure 2 shows mean *logits* over 256 sentences of 16 tokens, its Figure 12 *probabilities*: readers
    took one for the other. Here every panel carries its own scale and unit, and the two units have different colours.

    Args:
        record: with what `MeanLogits` makes.
        heads: pairs (layer, head), at most six; by default those of `default_heads`.
    """
    record = need(record, "mean_maps", "mean_logit", "mean_probability")
    pairs = default_heads(record) if heads is None else [(int(layer), int(head)) for layer, head in heads]
    if not 1 <= len(pairs) <= 6:
        raise SinkscopeError(f"mean_maps draws 1 to 6 heads side by side, not {len(pairs)}: choose fewer.")
    for layer, head in pairs:
        index(record, "layer", layer)
        index(record, "head", head)
    numbers = {dim: numbers_of(record, dim) for dim in ("layer", "head")}
    size = record.sizes["corner_key"]
    places = Axis(ticks=[0, size - 1] if size < 9 else list(range(0, size, 5)))
    bars = {
        "mean_logit": ColourBar("mean logit (score, natural log)", "logit", place="below", small=True),
        "mean_probability": ColourBar("mean probability", "probability", 0, 1, place="below", small=True),
    }
    panels = []
    for variable, bar in bars.items():
        below = variable == "mean_probability"
        values = record[variable].transpose("layer", "head", "corner_query", "corner_key").values
        for column, (layer, head) in enumerate(pairs):
            hover = f"query {{y}}, key {{x}}\n{bar.label} {{z:.4~g}}"
            panels.append(
                Panel(
                    [Image(values[layer, head], bar, square=True, hover=hover)],
                    x=replace(places, label="key position" if below else ""),
                    y=replace(places, label="" if column else "query position"),
                    title="" if below else f"layer {numbers['layer'][layer]}, head {numbers['head'][head]}",
                    has_frame=True,
                )
            )
    width = PAGE / max(len(pairs), 3)
    return Drawing(
        panels, record.attrs, width * len(pairs) + 0.25, 2 * width + 1.55, columns=len(pairs), page_height=640
    )


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


@figure
def received_by_position(record: xr.Dataset, sequence: int = 0, peaks: int = 10) -> Drawing:
    """Importance alpha of each position of one sequence: mean over heads, the strongest head, and the null.

    The `peaks` positions that stand out most from those around them carry their token's text. Both axes are
    logarithmic. The rise at the end is no sink: few queries see the last keys, and those are near.
    """
    mean, strongest, null = received_profile(record, sequence)
    position = np.arange(1, len(mean) + 1)
    words = record["token_text"].values[sequence] if "token_text" in record.variables else None
    texts = [f"position {p}" + ("" if words is None else f": {visible(words[p])}") for p in range(len(mean))]
    hover, marker = "{text}\nα {y:.5f}", "point" if len(mean) <= 64 else ""
    marks: list[Mark] = [
        Line(position, strongest, Look("sky", width=0.5), "strongest head", "strongest", hover=hover, texts=texts),
        Line(position, mean, Look("blue", width=0.9, marker=marker, size=3), "mean over layers and heads", "mean",
             hover=hover, texts=texts),
        Line(position, null, NULL, "uniform null", "null"),
    ]  # fmt: skip
    low, high = extent(marks, "y", positive=True)
    low, high = (max(low, high * 1e-5), high) if np.isfinite(low) else (1e-3, 1.0)
    room = 10 ** (0.18 * max(np.log10(high / low), 0.5))  # above for the rotated labels, below for the legend
    found = find_peaks(mean, peaks)
    dot = Look("ink", marker="circle")
    marks.append(
        Points([p + 1 for p in found], mean[found], dot, id="peaks", hover=hover, texts=[texts[p] for p in found])
    )
    for p in found:
        word = f"{p}" if words is None else f"“{drawable(words[p], limit=14)}” {p}"
        marks.append(Text(p + 1, mean[p], word, "above", 60, 6, id=f"peak-{p}"))
    panel = Panel(
        marks,
        x=Axis("position + 1 (tokens, log scale)", "log", (0.9, len(mean) * 1.1), plain=True),
        y=Axis("attention received α\n(probability, log scale)", "log", (low / room, high * room)),
        title=f"sequence {sequence}",
        note=True,
        legend=Legend(columns=3, place="lower left"),
    )
    return Drawing([panel], record.attrs, PAGE, 2.9, page_height=420)


def received_profile(record: xr.Dataset, sequence: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha of one sequence, each [position]: mean over heads, maximum over heads, and the uniform null."""
    record = need(record, "received_by_position", "received")
    index(record, "sequence", sequence)
    length = int(lengths(record)[sequence])
    alpha = importance(record.isel(sequence=[sequence])).isel(sequence=0, key=slice(0, length))
    flat = alpha.transpose("key", "layer", "head").values.reshape(length, -1)
    flat = flat[:, np.isfinite(flat).any(axis=0)]
    return over(np.nanmean, flat, axis=1), over(np.nanmax, flat, axis=1), alpha["null"].values


def find_peaks(mean: np.ndarray, count: int) -> list[int]:
    """Up to `count` positions, far enough apart to be labelled; the first token always.

    A peak is higher than its neighbours and 1.25 times the median of the 20 positions around it; the highest of these
    ratios come first. Keys seen by fewer than a quarter of the queries (at least 16) are left out: they are noise.
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


@figure
def entropy_by_layer(record: xr.Dataset) -> Drawing:
    """Mean entropy (nats) of each head over queries and sequences, the mean of each layer, and the uniform null."""
    record = need(record, "entropy_by_layer", "entropy")
    heads, layers, null = mean_entropy(record), numbers_of(record, "layer"), null_entropy(record)
    form = "mean ln(i + 1)" if is_causal(record) else "ln T"
    look = Look("quiet", marker="point", size=3, opacity=0.6)
    marks: list[Mark] = [
        heads_of(record, heads, look, "one head", "{y:.3f} nats"),
        Line(layers, over(np.nanmean, heads, axis=1), Look("blue"), "mean of the layer", "mean"),
        Reference(y=null, look=NULL, name=f"uniform null: {number(null)}, {form}", id="null"),
    ]
    panel = Panel(marks, x=layer_axis(layers), y=Axis("entropy of attention (nats)", limits=(0, None)))
    return Drawing([panel], record.attrs, COLUMN, 2.5)


def mean_entropy(record: xr.Dataset) -> np.ndarray:
    """Entropy in nats, mean over every query of every sequence, [layer, head]; NaN for a head that is not there."""
    values = record["entropy"].transpose("layer", "head", "sequence", "query").values.astype(np.float64)
    flat = values.reshape(*values.shape[:2], -1)
    counts = np.isfinite(flat).sum(axis=-1)
    return np.where(counts > 0, np.nansum(flat, axis=-1) / np.maximum(counts, 1), np.nan)


def null_entropy(record: xr.Dataset) -> float:
    """Mean entropy of uniform attention in nats: the mean of ln(i + 1) over the queries (encoder: ln T)."""
    real = lengths(record)
    if not is_causal(record):
        return float(np.average(np.log(real), weights=real))
    return float(sum(np.log(np.arange(1, int(length) + 1)).sum() for length in real) / real.sum())


@figure
def distance_profile(record: xr.Dataset) -> Drawing:
    """Mean attention at each distance back from the query, one line per layer, their mean, and the uniform null.

    Distance 0 is the token itself. At distance d only the queries i >= d count, so the profile is a probability. Both
    axes are logarithmic, that of distances in d + 1.
    """
    record = need(record, "distance_profile", "distance_mass")
    if not is_causal(record):
        raise SinkscopeError("distance_profile is defined for causal attention, and this record is an encoder's.")
    profile, layers = mean_by_distance(record), numbers_of(record, "layer")
    distance = np.arange(profile.shape[1])
    hover = "distance + 1: {x:,.0f} tokens\n{y:.3~g}"
    marks: list[Mark] = []
    for layer, colour, line in zip(layers, depth_colours(len(layers)), profile, strict=True):
        look = Look(colour, width=0.5, opacity=0.8)
        marks.append(Line(distance + 1, line, look, id=f"layer-{layer}", hover=f"layer {layer}\n{hover}"))
    marks += [
        Line(distance + 1, over(np.nanmean, profile, axis=0), Look("ink", width=1.3), "mean over layers", "mean",
             hover=f"mean over layers\n{hover}"),
        Line(distance + 1, null_distance(len(distance)), NULL, "uniform null", "null", hover=f"uniform null\n{hover}"),
    ]  # fmt: skip
    if len(layers) > 1:
        marks.append(ColourBar("layer", "depth", float(layers[0]), float(layers[-1])))
    positive = profile[np.isfinite(profile) & (profile > 0)]
    limits: tuple[float | None, float | None] = (None, None)
    if len(positive):
        limits = (max(float(np.percentile(positive, 0.5)) / 2, 1e-9), 1.3 * float(positive.max()))
    ticks = [0, *(step * 10**power for power in range(6) for step in (1, 3) if step * 10**power < len(distance))]
    panel = Panel(
        marks,
        x=Axis("distance from query to key (tokens, log scale)", "log", (0.9, max(len(distance), 2)),
               [tick + 1 for tick in ticks], [f"{tick:,}" for tick in ticks]),
        y=Axis("mean attention\n(probability, log scale)", "log", limits),
    )  # fmt: skip
    return Drawing([panel], record.attrs, COLUMN, 2.7)


def mean_by_distance(record: xr.Dataset) -> np.ndarray:
    """[layer, distance]: attention at each distance, mean over heads and over the queries that reach back so far."""
    total = record["distance_mass"].transpose("layer", "distance", "sequence", "head").values.astype(np.float64)
    distance = np.arange(total.shape[1])[:, None]
    queries = np.maximum(lengths(record)[None, :] - distance, 0)[None, :, :, None]
    counted = np.where(np.isfinite(total), queries, 0).sum(axis=(2, 3))
    mass = np.nansum(total, axis=(2, 3))
    return np.where(counted > 0, mass / np.maximum(counted, 1), np.nan)


def null_distance(length: int) -> np.ndarray:
    """Mean attention at each distance d under uniform causal attention, [distance]: mean of 1/(i + 1) over i >= d."""
    rows = 1.0 / np.arange(1, length + 1)
    return np.cumsum(rows[::-1])[::-1] / np.arange(length, 0, -1)
