"""Where attention goes, token by token: mean maps, what each position receives, how far back and how spread out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from sinkscope.analysis.importance import importance
from sinkscope.analysis.mass import even_share
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import is_causal, key_lengths, sequence_lengths
from sinkscope.arguments import head_pairs
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import layer_axis, need
from sinkscope.figures.sinks import heads_of
from sinkscope.figures.style import depth_colours, drawable, extent, number, visible

NULL = m.Look("vermilion", "dash")
MOST = 6  # heads side by side


@figure
@reads
def mean_maps(record: xr.Dataset, heads: Sequence[tuple[int, int]] | None = None) -> m.Drawing:
    """Mean logits (top) and mean probabilities (bottom) among the first tokens, one column per (layer, head).

    StreamingLLM's Figure 2 shows mean *logits* over 256 sentences of 16 tokens, its Figure 12 *probabilities*: readers
    took one for the other. Here every panel carries its own scale and unit, and the two units have different colours.

    >>> figures.mean_maps(record).savefig("mean_maps.pdf")

    Args:
        record: with what `MeanLogits` makes.
        heads: pairs (layer, head), at most six; by default those of `default_heads`.
    """
    record = need(record, "mean_maps", "mean_logit", "mean_probability")
    pairs = default_heads(record) if heads is None else head_pairs(heads, MOST)
    for layer, head in pairs:
        _check(record, layer=layer, head=head)
    size = record.sizes["corner_key"]
    places = m.Axis(ticks=[0, size - 1] if size < 9 else list(range(0, size, 5)))
    bars = {
        "mean_logit": m.ColourBar("mean logit (score, natural log)", "logit", place="below", small=True),
        "mean_probability": m.ColourBar("mean probability", "probability", 0, 1, place="below", small=True),
    }
    panels = []
    for variable, bar in bars.items():
        is_below = variable == "mean_probability"
        hover = f"query {{y}}, key {{x}}\n{bar.label} {{z:.4~g}}"
        for column, (layer, head) in enumerate(pairs):
            cells = record[variable].isel(layer=layer, head=head)
            image = m.Image(cells.transpose("corner_query", "corner_key"), bar, square=True, hover=hover)
            x = replace(places, label="key position" if is_below else "")
            y = replace(places, label="" if column else "query position")
            title = "" if is_below else f"layer {cells['layer'].item()}, head {cells['head'].item()}"
            panels.append(m.Panel([image], x, y, title, has_frame=True))
    width = m.PAGE / max(len(pairs), 3)
    return m.Drawing(
        panels, record.attrs, width * len(pairs) + 0.25, 2 * width + 1.55, columns=len(pairs), page_height=640
    )


def _check(record: xr.Dataset, **places: int) -> None:
    for dim, place in places.items():
        size = record.sizes[dim]
        if not 0 <= place < size:
            raise SinkscopeError(f"{dim} {place} is out of range: this record has {dim}s 0 to {size - 1}.")


def default_heads(record: xr.Dataset) -> list[tuple[int, int]]:
    """Head 0 of the first two layers, then the heads that give the first token most, strongest first: four in all."""
    column = record["mean_probability"].isel(corner_query=slice(1, None), corner_key=0).fillna(-1.0)
    strength = column.transpose("layer", "head", "corner_query").values.sum(axis=-1)
    order = np.unravel_index(np.argsort(-strength, axis=None, kind="stable"), strength.shape)
    strongest = [(int(layer), int(head)) for layer, head in zip(*order, strict=True)]
    return list(dict.fromkeys([*((layer, 0) for layer in range(min(2, len(strength)))), *strongest]))[:4]


@figure
@reads
def received_by_position(record: xr.Dataset, sequence: int = 0, peaks: int = 10) -> m.Drawing:
    """Importance alpha of each position of one sequence: mean over heads, the strongest head, and the null.

    The `peaks` positions that stand out most from those around them carry their token's text. Both axes are
    logarithmic. The rise at the end is no sink: few queries see the last keys, and those are near.

    >>> figures.received_by_position(record).savefig("received_by_position.pdf")
    """
    record = need(record, "received_by_position", "received")
    _check(record, sequence=sequence)
    length, is_own = int(key_lengths(record)[sequence]), "key_length" not in record.coords
    alpha = importance(record.isel(sequence=[sequence])).isel(sequence=0, key=slice(length))
    mean, strongest = alpha.mean(["layer", "head"]).values, alpha.max(["layer", "head"]).values
    position = np.arange(1, len(mean) + 1)
    words = record["token_text"].values[sequence] if is_own and "token_text" in record.variables else None
    texts = [f"position {p}" + ("" if words is None else f": {visible(words[p])}") for p in range(len(mean))]
    hover = "{text}\nα {y:.5f}"
    marker: m.Marker = "point" if len(mean) <= 64 else ""
    marks: list[m.Mark] = [
        m.Line(position, strongest, m.Look("sky", width=0.5), "strongest head", "strongest", hover=hover, texts=texts),
        m.Line(position, mean, m.Look("blue", width=0.9, marker=marker, size=3), "mean over layers and heads", "mean",
               hover=hover, texts=texts),
        m.Line(position, alpha["null"], NULL, "uniform null", "null"),
    ]  # fmt: skip
    low, high = extent(marks, "y", positive=True)
    low, high = (max(low, high * 1e-5), high) if np.isfinite(low) else (1e-3, 1.0)
    room = 10 ** (0.18 * max(np.log10(high / low), 0.5))  # above for the rotated labels, below for the legend
    found = find_peaks(mean, peaks)
    dot = m.Look("ink", marker="circle")
    marks.append(
        m.Points([p + 1 for p in found], mean[found], dot, id="peaks", hover=hover, texts=[texts[p] for p in found])
    )
    for p in found:
        word = f"{p}" if words is None else f"“{drawable(words[p], limit=14)}” {p}"
        marks.append(m.Text(p + 1, mean[p], word, "above", 60, 6, id=f"peak-{p}"))
    panel = m.Panel(
        marks,
        x=m.Axis("position + 1 (tokens, log scale)", "log", (0.9, len(mean) * 1.1), plain=True),
        y=m.Axis("attention received α\n(probability, log scale)", "log", (low / room, high * room)),
        title=f"sequence {sequence}",
        note=True,
        legend=m.Legend(columns=3, place="lower left"),
    )
    return m.Drawing([panel], record.attrs, m.PAGE, 2.9, page_height=420)


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
@reads
def entropy_by_layer(record: xr.Dataset) -> m.Drawing:
    """Mean entropy (nats) of each head over queries and sequences, the mean of each layer, and the uniform null.

    >>> figures.entropy_by_layer(record).savefig("entropy_by_layer.pdf")
    """
    record = need(record, "entropy_by_layer", "entropy")
    heads = record["entropy"].astype("float64").mean(["sequence", "query"]).transpose("layer", "head")
    null, form = null_entropy(record), "mean ln(i + 1)" if is_causal(record) else "mean ln of the keys seen"
    dots = m.Look("quiet", marker="point", size=3, opacity=0.6)
    marks: list[m.Mark] = [
        heads_of(heads, dots, "one head", "{y:.3f} nats"),
        m.Line(heads["layer"], heads.mean("head"), m.Look("blue"), "mean of the layer", "mean"),
        m.Reference(y=null, look=NULL, name=f"uniform null: {number(null)}, {form}", id="null"),
    ]
    panel = m.Panel(marks, layer_axis(heads["layer"]), m.Axis("entropy of attention (nats)", limits=(0, None)))
    return m.Drawing([panel], record.attrs, m.COLUMN, 2.5)


def null_entropy(record: xr.Dataset) -> float:
    """Mean entropy of uniform attention in nats: the mean over queries of the log of how many keys each sees.

    That is the mean of ln(i + 1) in a causal model, and ln T in an encoder.
    """
    return float(-np.log(even_share(record)).mean())


@figure
@reads
def distance_profile(record: xr.Dataset) -> m.Drawing:
    """Mean attention at each distance back from the query, one line per layer, their mean, and the uniform null.

    Distance 0 is the token itself. At distance d only the queries i >= d count, so the profile is a probability. Both
    axes are logarithmic, that of distances in d + 1.

    >>> figures.distance_profile(record).savefig("distance_profile.pdf")
    """
    record = need(record, "distance_profile", "distance_mass")
    if not is_causal(record):
        raise SinkscopeError("distance_profile is defined for causal attention, and this record is an encoder's.")
    total = record["distance_mass"].astype("float64")
    queries = (sequence_lengths(record) - total["distance"]).clip(min=0)  # that reach back so far
    counted = queries.where(total.notnull()).sum(["sequence", "head"])
    profile = (total.sum(["sequence", "head"]) / counted.where(counted > 0)).transpose("layer", "distance")
    layers, distance = profile["layer"].values, np.arange(profile.sizes["distance"])
    null = np.cumsum(1.0 / (distance + 1)[::-1])[::-1] / (distance + 1)[::-1]  # the mean of 1/(i + 1) over i >= d
    hover = "distance + 1: {x:,.0f} tokens\n{y:.3~g}"
    marks: list[m.Mark] = []
    for layer, colour, line in zip(layers, depth_colours(len(layers)), profile, strict=True):
        look = m.Look(colour, width=0.5, opacity=0.8)
        marks.append(m.Line(distance + 1, line, look, id=f"layer-{layer}", hover=f"layer {layer}\n{hover}"))
    for values, look, name, gid in (
        (profile.mean("layer"), m.Look("ink", width=1.3), "mean over layers", "mean"),
        (null, NULL, "uniform null", "null"),
    ):
        marks.append(m.Line(distance + 1, values, look, name, gid, hover=f"{name}\n{hover}"))
    if len(layers) > 1:
        marks.append(m.ColourBar("layer", "depth", float(layers[0]), float(layers[-1])))
    positive = profile.values[profile.values > 0]
    limits: tuple[float | None, float | None] = (None, None)
    if len(positive):
        limits = (max(float(np.percentile(positive, 0.5)) / 2, 1e-9), 1.3 * float(positive.max()))
    ticks = [0, *(step * 10**power for power in range(6) for step in (1, 3) if step * 10**power < len(distance))]
    panel = m.Panel(
        marks,
        x=m.Axis("distance from query to key (tokens, log scale)", "log", (0.9, max(len(distance), 2)),
                 [tick + 1 for tick in ticks], [f"{tick:,}" for tick in ticks]),
        y=m.Axis("mean attention\n(probability, log scale)", "log", limits),
    )  # fmt: skip
    return m.Drawing([panel], record.attrs, m.COLUMN, 2.7)
