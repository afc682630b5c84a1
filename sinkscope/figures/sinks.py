"""What marks a sink: the attention on the first tokens, values that are drained, keys apart, massive activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sinkscope.analysis.importance import EPSILON
from sinkscope.analysis.importance import sink_rate_curve as rates
from sinkscope.analysis.mass import mass_by_layer as layer_masses
from sinkscope.analysis.mass import sink_mass
from sinkscope.analysis.reading import reads
from sinkscope.analysis.sensitivity import mass_by_length as masses_by_length
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import cell_axis, layer_axis, lengths, need, tokens_named
from sinkscope.figures.style import headroom, number


def _mass(record: xr.Dataset, first: int) -> xr.DataArray:
    """[layer, head] mass on the first keys, with its `null`, if the record keeps so many apart."""
    kept = record.sizes["sink"]
    if not 1 <= first <= kept:
        raise SinkscopeError(
            f"first={first} is not between 1 and {kept}, the number of first keys this record keeps: "
            f"choose fewer, or measure again with SinkMass(first={max(first, 1)})."
        )
    return sink_mass(record, first=first).transpose("layer", "head")


@figure
@reads
def sink_mass_heatmap(record: xr.Dataset, first: int = 1) -> m.Drawing:
    """The mass each head of each layer puts on the first `first` keys, layer x head, with the null on the colour
    bar.

    >>> figures.sink_mass_heatmap(record).savefig("sink_mass_heatmap.pdf")
    """
    record = need(record, "sink_mass_heatmap", "sink_mass")
    mass = _mass(record, first)
    layers, heads = mass.shape
    width, null = m.PAGE if heads > 20 else m.COLUMN, mass.attrs["null"]
    bar = m.ColourBar(f"mass on the {tokens_named(first)}\n(probability)", "probability", 0, 1, mark=null)
    hover = f"layer {{y}}, head {{x}}\nmass {{z:.4f}}\nuniform null {number(null)}"
    panel = m.Panel(
        [m.Image(mass, bar, digits=2 if layers <= 12 and heads <= 8 else None, hover=hover)],
        x=cell_axis(record, "head", 24 if width > 4 else 12),
        y=cell_axis(record, "layer", 31),
        title=f"blue mark on the scale: uniform null {number(null)}",
        note=True,
        has_frame=True,
    )
    height, page_height = float(np.clip(0.9 + 0.105 * layers, 2.2, 8.0)), int(np.clip(14 * layers + 130, 280, 920))
    return m.Drawing([panel], record.attrs, width, height, page_height=page_height)


@figure
@reads
def mass_by_layer(record: xr.Dataset, first: int | None = None) -> m.Drawing:
    """Mean mass per layer on the first token and on the first k, with 95% intervals over sequences and the nulls.

    A grey dot is one head's mass on the first token. With `first`, that many first keys only.

    >>> figures.mass_by_layer(record).savefig("mass_by_layer.pdf")
    """
    record = need(record, "mass_by_layer", "sink_mass")
    wanted = [first] if first is not None else sorted({1, min(4, record.sizes["sink"])})
    dots, named = m.Look("faint", marker="point"), f"one head, {tokens_named(wanted[0])}"
    marks: list[m.Mark] = [heads_of(_mass(record, wanted[0]), dots, named, "mass {y:.4f}")]
    for row, count in enumerate(wanted):
        look, mean = m.Look.of(row, marker=("circle", "square")[row]), layer_masses(record, first=count)
        name, null = tokens_named(count), mean.attrs["null"]
        marks += [
            m.Line(mean["layer"], mean["mean"], look, name, f"mean-{count}", mean["lower"], mean["upper"], band=0.25),
            m.Reference(y=null, look=m.Look(look.colour, "dotted", 0.8), name=f"null, {name}: {number(null)}",
                        id=f"null-{count}"),
        ]  # fmt: skip
    y = m.Axis("mean attention\n(probability)", limits=(0, headroom(marks, 1.02)))
    several = record.sizes["sequence"] > 1
    note = ("band: 95% interval over sequences" if several else "one sequence: no interval") + "; null: uniform"
    panel = m.Panel(marks, layer_axis(record["layer"]), y)
    return m.Drawing([panel], record.attrs, m.COLUMN, 2.8, legend=m.Legend(note))


@figure
@reads
def mass_by_length(record: xr.Dataset, lengths: Sequence[int] | None = None) -> m.Drawing:
    """Mean mass on the first token against the number of tokens read, its null, and the share above the null; beside it
    the mass over the null, which grows as the null falls.

    >>> figures.mass_by_length(record).savefig("mass_by_length.pdf")
    """
    record = need(record, "mass_by_length", "sink_mass")
    curve = masses_by_length(record, lengths=lengths)
    place, lines = curve["length"], (("mass", "", "mass"), ("above", "above_", "share above the null"))
    marks: list[m.Mark] = []
    for row, (source, start, name) in enumerate(lines):
        look, low, high = m.Look.of(row, marker=m.marker_of(row)), curve[f"{start}lower"], curve[f"{start}upper"]
        marks.append(m.Line(place, curve[source], look, name, source, low, high, band=0.25))
    marks.append(m.Line(place, curve["null"], m.Look("faint", "dotted", 0.8), "uniform null", "null"))
    times = m.Line(place, curve["times_null"], m.Look.of(2, marker=m.marker_of(2)), "mass over null", "times")
    tokens = m.Axis("tokens read, T", "log", ticks="round")
    y = m.Axis("attention on the first token\n(probability)", limits=(0, headroom(marks, 1.02)))
    panels = [m.Panel(marks, tokens, y), m.Panel([times], tokens, m.Axis("mass over null", limits=(0, None)))]
    return m.Drawing(panels, record.attrs, m.PAGE, 2.6, 2, legend=m.Legend("band: 95% interval over sequences"))


def heads_of(values: xr.DataArray, look: m.Look, name: str, hover: str) -> m.Points:
    """One point for each head [layer, head], below the lines; `hover` says what {y} is."""
    places = values.stack(place=("layer", "head"))
    texts = [str(head) for head in places["head"].values]
    hover = f"layer {{x}}, head {{text}}\n{hover}"
    return m.Points(places["layer"], places, look, name, "heads", hover=hover, texts=texts, behind=True)


@figure
@reads
def sink_rate_curve(
    record: xr.Dataset,
    epsilons: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    position: int = 0,
) -> m.Drawing:
    """Fraction of heads with alpha > epsilon against epsilon, one line per length, with 95% intervals over 16 sequences
    or more; over fewer they would hold the rate less often.

    The triangle on the upper edge, in the line's colour, is the alpha of a uniform causal head at that length: left of
    it even a head without any preference counts as a sink.

    >>> figures.sink_rate_curve(record).savefig("sink_rate_curve.pdf")
    """
    record = need(record, "sink_rate_curve", "sink_mass")
    if lengths is None:
        lengths = default_lengths(record)
    curve, edge = rates(record, epsilons=epsilons, lengths=lengths, position=position), 1.02
    marks: list[m.Mark] = [
        m.Reference(x=float(record.attrs.get("epsilon", EPSILON)), look=m.Look("faint", width=0.6), id="threshold")
    ]
    for row, length in enumerate(curve["length"].values):
        look, line = m.Look.of(row), curve.isel(length=row)
        null = float(line["null_alpha"])
        name, gid = f"T = {length:,} (null α = {null:.3f})", f"rate-{length}"
        triangle = m.Look(look.colour, marker="triangle-down", size=5)
        hover = f"T = {length:,}\nα of a uniform causal head {{x:.3f}}"
        marks.append(m.Line(line["epsilon"], line["rate"], look, name, gid, line["lower"], line["upper"]))
        marks.append(m.Points(null, edge, triangle, id=f"null-{length}", hover=hover))
    name = "first token" if position == 0 else f"position {position}"
    banded = "; band: 95%" * bool(curve["lower"].notnull().any())
    panel = m.Panel(
        marks,
        x=m.Axis("threshold ε (on α, a probability)", limits=(0, 1)),
        y=m.Axis(f"heads with α({name}) > ε\n(fraction)", limits=(0, edge)),
    )
    return m.Drawing(
        [panel], record.attrs, m.COLUMN, 2.8, legend=m.Legend(f"triangle: α of a uniform causal head{banded}")
    )


def default_lengths(record: xr.Dataset) -> list[int]:
    """64 (as published) and each four-fold of it up to the record's shortest sequence, and that itself."""
    longest = int(lengths(record).min())
    wanted = [length for length in (64, 256, 1024, 4096, 16384, 65536) if length < longest]
    return [*wanted[-4:], longest]


@figure
@reads
def norms(record: xr.Dataset, first: int = 1) -> m.Drawing:
    """Mean key and value norm of the first `first` tokens and of the rest, layer by layer, over KV heads and sequences.

    The band holds the middle 90% of the rest (over tokens, KV heads and sequences).

    >>> figures.norms(record).savefig("norms.pdf")
    """
    record = need(record, "norms", "key_norm", "value_norm")
    if not 1 <= first < record.sizes["token"]:
        raise SinkscopeError(
            f"first={first} leaves no rest to compare with: choose between 1 and {record.sizes['token'] - 1}."
        )
    panels, layers, samples = [], record["layer"], ["token", "sequence", "kv_head"]
    sink = m.Look("vermilion", "dash", marker="circle")
    for title in ("keys", "values"):
        norm = record[f"{title[:-1]}_norm"].astype("float64")
        head, rest = norm.isel(token=slice(first)), norm.isel(token=slice(first, None))
        low, high = rest.stack(sample=samples).to_pandas().T.quantile([0.05, 0.95]).to_numpy()
        marks = [
            m.Line(
                layers, rest.mean(samples), m.Look("blue"), "all other tokens (band: middle 90%)", "rest", low, high
            ),
            m.Line(layers, head.mean(samples), sink, tokens_named(first), "first"),
        ]
        panels.append(m.Panel(marks, layer_axis(layers), m.Axis(f"Euclidean norm of {title}", limits=(0, None))))
    return m.Drawing(panels, record.attrs, m.PAGE, 2.5, columns=2, legend=m.Legend(size=7))


@figure
@reads
def massive_activations(record: xr.Dataset, magnitude: float = 100.0, ratio: float = 1000.0) -> m.Drawing:
    """Largest magnitude after each layer, at the first token and elsewhere, against the layer's median magnitude.

    A massive activation (Sun et al. 2024) lies above both thresholds: `magnitude`, and `ratio` times the median. Log
    axis.

    >>> figures.massive_activations(record).savefig("massive_activations.pdf")
    """
    record = need(record, "massive_activations", "activation_max", "activation_median")
    first, rest, median = extremes(record)
    layers = record["layer"]
    marks: list[m.Mark] = [
        m.Line(layers, first, m.Look("vermilion", marker="circle"), "largest, first token", "first"),
        m.Line(layers, rest, m.Look("blue", "dash", marker="square"), "largest, other tokens", "rest"),
        m.Line(layers, median, m.Look("ink", width=0.8), "median", "median"),
        m.Line(layers, ratio * median, m.Look("quiet", "dot"), f"{ratio:,.0f} × median", "ratio"),
        m.Reference(y=magnitude, look=m.Look("quiet", "dashdot"), name=f"|a| = {magnitude:,.0f}", id="magnitude"),
    ]
    panel = m.Panel(
        marks, x=layer_axis(layers), y=m.Axis("magnitude of hidden values\n(model units, log scale)", "log")
    )
    return m.Drawing([panel], record.attrs, m.COLUMN, 2.7)


def extremes(record: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each [layer]: the largest magnitude at the first token and at any other (over sequences), and the mean median."""
    largest, samples = record["activation_max"].astype("float64"), ["token", "sequence"]
    is_first = largest["token"] == largest["token"][0]
    first, rest = (largest.where(those).max(samples).values for those in (is_first, ~is_first))
    return first, rest, record["activation_median"].astype("float64").mean(samples).values


@figure
@reads
def first_cosine(record: xr.Dataset, parallel: float = 0.9) -> m.Drawing:
    """How many tokens have a hidden state parallel to the first token's after each layer: secondary sinks, perhaps.

    The share of the other tokens whose cosine with the first one is beyond `parallel` either way, over all sequences.

    >>> figures.first_cosine(record).savefig("first_cosine.pdf")
    """
    record = need(record, "first_cosine", "first_cosine")
    if not 0 < parallel < 1:
        raise SinkscopeError(f"parallel={parallel} is no cosine to compare with: choose one between 0 and 1.")
    cosines = abs(record["first_cosine"].astype("float64").isel(token=slice(1, None)))
    share = (cosines > parallel).where(cosines.notnull()).mean(["sequence", "token"])
    line = m.Line(record["layer"], share, m.Look("vermilion", marker="circle"), id="share")
    y = m.Axis(f"other tokens with\n|cosine| > {parallel} (fraction)", limits=(0, None))
    return m.Drawing([m.Panel([line], layer_axis(record["layer"]), y)], record.attrs, m.COLUMN, 2.4)
