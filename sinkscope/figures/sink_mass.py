"""Attention on the first tokens: by layer and head, by layer with intervals, and as a rate of heads that are sinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sinkscope.analysis.importance import sink_rate_curve as rates
from sinkscope.analysis.mass import mass_by_layer as layer_masses
from sinkscope.analysis.mass import sink_mass
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
    headroom,
)
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import cell_axis, first_keys, layer_axis, lengths, need, numbers_of, tokens_named
from sinkscope.figures.style import number

THRESHOLD = 0.3  # Gu et al. 2024


def null_mass(record: xr.Dataset, first: int) -> float:
    """Mean mass on the first `first` keys under uniform attention, over the same queries and sequences."""
    return float(sink_mass(record, first=first).attrs["null"])


@figure
def sink_mass_heatmap(record: xr.Dataset, first: int = 1) -> Drawing:
    """The mass each head of each layer puts on the first `first` keys, layer x head, with the null on the colour
    bar."""
    record = need(record, "sink_mass_heatmap", "sink_mass")
    first = first_keys(record, first)
    mass = sink_mass(record, first=first).transpose("layer", "head").values
    layers, heads = mass.shape
    width, null = PAGE if heads > 20 else COLUMN, null_mass(record, first)
    bar = ColourBar(f"mass on the {tokens_named(first)}\n(probability)", "probability", 0, 1, mark=null)
    hover = f"layer {{y}}, head {{x}}\nmass {{z:.4f}}\nuniform null {number(null)}"
    image = Image(mass, bar, digits=2 if layers <= 12 and heads <= 8 else None, hover=hover)
    panel = Panel(
        [image],
        x=cell_axis("head", numbers_of(record, "head"), 24 if width > 4 else 12),
        y=cell_axis("layer", numbers_of(record, "layer"), 31),
        title=f"blue mark on the scale: uniform null {number(null)}",
        note=True,
        has_frame=True,
    )
    height, page_height = float(np.clip(0.9 + 0.105 * layers, 2.2, 8.0)), int(np.clip(14 * layers + 130, 280, 920))
    return Drawing([panel], record.attrs, width, height, page_height=page_height)


@figure
def mass_by_layer(record: xr.Dataset, first: int | None = None) -> Drawing:
    """Mean mass per layer on the first token and on the first k, with 95% intervals over sequences and the nulls.

    A grey dot is one head's mass on the first token. With `first`, that many first keys only.
    """
    record = need(record, "mass_by_layer", "sink_mass")
    kept = record.sizes["sink"]
    wanted = [first_keys(record, first)] if first is not None else sorted({1, min(4, kept)})
    layers = numbers_of(record, "layer")
    marks: list[Mark] = [
        heads_of(
            record, sink_mass(record, first=wanted[0]).transpose("layer", "head").values,
            Look("faint", marker="point"), f"one head, {tokens_named(wanted[0])}", "mass {y:.4f}",
        )
    ]  # fmt: skip
    for row, count in enumerate(wanted):
        look, mean = Look.of(row, marker=("circle", "square")[row]), layer_masses(record, first=count)
        name = tokens_named(count)
        bounds = (mean["lower"].values, mean["upper"].values)
        marks.append(Line(layers, mean["mean"].values, look, name, f"mean-{count}", *bounds, band=0.25))
        null = null_mass(record, count)
        dotted = Look(look.colour, "dotted", 0.8)
        marks.append(Reference(y=null, look=dotted, name=f"null, {name}: {number(null)}", id=f"null-{count}"))
    panel = Panel(
        marks, x=layer_axis(layers), y=Axis("mean attention\n(probability)", limits=(0, headroom(marks, 1.02)))
    )
    several = record.sizes["sequence"] > 1
    note = ("band: 95% interval over sequences" if several else "one sequence: no interval") + "; null: uniform"
    return Drawing([panel], record.attrs, COLUMN, 2.8, legend=Legend(note))


def heads_of(record: xr.Dataset, values: np.ndarray, look: Look, name: str, hover: str) -> Points:
    """One point for each head [layer, head], below the lines; `hover` says what {y} is."""
    heads = numbers_of(record, "head")
    texts = [str(head) for head in np.broadcast_to(heads, values.shape).ravel()]
    layers = np.repeat(numbers_of(record, "layer"), len(heads))
    hover = f"layer {{x}}, head {{text}}\n{hover}"
    return Points(layers, values.ravel(), look, name, "heads", hover=hover, texts=texts, behind=True)


@figure
def sink_rate_curve(
    record: xr.Dataset,
    epsilons: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    position: int = 0,
) -> Drawing:
    """Fraction of heads with alpha > epsilon against epsilon, one line per length, with 95% intervals over sequences.

    The triangle on the upper edge, in the line's colour, is the alpha of a uniform causal head at that length: left of
    it even a head without any preference counts as a sink.
    """
    record = need(record, "sink_rate_curve", "sink_mass")
    if lengths is None:
        lengths = default_lengths(record)
    curve = rates(record, epsilons=epsilons, lengths=lengths, position=position).transpose("length", "epsilon", ...)
    epsilon, edge = curve["epsilon"].values, 1.02
    marks: list[Mark] = [Reference(x=THRESHOLD, look=Look("faint", width=0.6), id="threshold")]
    for row, length in enumerate(curve["length"].values):
        look, line = Look.of(row), curve.isel(length=row)
        null = float(np.asarray(line["null_alpha"]).reshape(-1)[0])
        name = f"T = {int(length):,} (null α = {null:.3f})"
        bounds = (line["lower"].values, line["upper"].values)
        marks.append(Line(epsilon, line["rate"].values, look, name, f"rate-{length}", *bounds))
        triangle = Look(look.colour, marker="triangle-down", size=5)
        hover = f"T = {int(length):,}\nα of a uniform causal head {{x:.3f}}"
        marks.append(Points([null], [edge], triangle, id=f"null-{length}", hover=hover))
    name = "first token" if position == 0 else f"position {position}"
    panel = Panel(
        marks,
        x=Axis("threshold ε (on α, a probability)", limits=(0, 1)),
        y=Axis(f"heads with α({name}) > ε\n(fraction)", limits=(0, edge)),
    )
    return Drawing([panel], record.attrs, COLUMN, 2.8, legend=Legend("triangle: α of a uniform causal head; band: 95%"))


def default_lengths(record: xr.Dataset) -> list[int]:
    """64 (as published) and each four-fold of it up to the record's shortest sequence, and that itself."""
    longest = int(lengths(record).min())
    wanted = [length for length in (64, 256, 1024, 4096, 16384, 65536) if length < longest]
    return [*wanted[-4:], longest]
