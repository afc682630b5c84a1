"""Secondary sinks, tags, the spread of a change, and rollout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from sinkscope.analysis import secondary
from sinkscope.analysis.reading import reads
from sinkscope.analysis.secondary import PARALLEL, SHORT, SINK_KINDS, SPARED
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import layer_axis, need


@figure
@reads
def secondary_sinks(
    record: xr.Dataset, parallel: float = PARALLEL, short: int = SHORT, spared: int = SPARED
) -> m.Drawing:
    """The lifetime of each token that is parallel to the first one, against the layer of its birth, by kind (see
    `sinkscope.secondary_sinks`). Dotted: the longest lifetime that is too short to count.

    >>> figures.secondary_sinks(record).savefig("secondary_sinks.pdf")
    """
    table = secondary.secondary_sinks(record, parallel, short, spared)
    if not len(table):
        raise SinkscopeError(
            f"no token of this record has |cosine| > {parallel:g} with the first one while that is a sink, so there is "
            "nothing to draw; give a lower `parallel`."
        )
    is_decided = not (table["kind"] == "undecided").any()
    marks: list[m.Mark] = [m.Reference(y=short, id="short")] if is_decided else []
    for row, kind in enumerate(SINK_KINDS):
        own = table[table["kind"] == kind]
        if len(own):
            colour = "quiet" if kind in ("short", "undecided") else m.COLOURS[row]
            look = m.Look(colour, marker=m.marker_of(row), size=3.5, opacity=0.6)
            pairs = zip(own["position"], own["token_text"], strict=True)
            texts = [f"token {position} {text!r}" if text else f"token {position}" for position, text in pairs]
            hover = f"{{text}}: {kind}\nfrom layer {{x}}, {{y}} layers"
            name = f"{kind} ({len(own)})"
            marks.append(m.Points(own["birth"], own["lifetime"], look, name, kind, hover=hover, texts=texts))
    layers = record["layer"].values
    ends = (float(layers[0]) - 0.5, float(layers[-1]) + 0.5)
    x = replace(layer_axis(layers), label="layer of birth", limits=ends, margin=None)
    panel = m.Panel(marks, x, m.Axis("lifetime (layers)", limits=(0, len(layers) + 0.5)))
    return m.Drawing([panel], record.attrs, m.COLUMN, 2.7, legend=m.Legend("tokens parallel to the first"))


@figure
@reads
def sink_tags(record: xr.Dataset) -> m.Drawing:
    """The share of each head's output in the span of its sinks' values, by layer, beside that in the span of as many
    other values (hollow); dotted: the mean over heads of an output in all directions alike.

    >>> figures.sink_tags(record).savefig("sink_tags.pdf")
    """
    table = secondary.tags_table(record)
    if not len(table):
        raise SinkscopeError(
            "no head of this record has a sink, so there is nothing to draw; give sink_tags a lower epsilon."
        )
    texts = [f"head {head}" for head in table["head"]]
    marks: list[m.Mark] = [m.Reference(y=float(table["null"].mean()), name="null", id="null")]
    looks = {
        "sinks": ("share", m.Look("vermilion", marker="circle", size=2.6, opacity=0.7), 0.15),
        "as many other keys": ("control", m.Look("blue", marker="square", size=2.4, hollow=True), -0.15),
    }
    for name, (column, look, aside) in looks.items():
        hover = f"layer {{x}}, {{text}}\n{name}: {{y:.3f}}"
        marks.append(m.Points(table["layer"] + aside, table[column], look, name, column, hover=hover, texts=texts))
    y = m.Axis("share of the output in the span\nof their values (fraction)", limits=(0, 1.02))
    return m.Drawing(
        [m.Panel(marks, layer_axis(record["layer"]), y)], record.attrs, m.COLUMN, 2.7, legend=m.Legend("heads")
    )


@figure
@reads
def perturbation_spread(record: xr.Dataset) -> m.Drawing:
    """How far the states of later tokens move when one token is another, over depth, with the first token kept and
    removed; bands are 95% over texts. Thin: the state of the token itself.

    >>> figures.perturbation_spread(record).savefig("perturbation_spread.pdf")
    """
    table, marks = secondary.spread_table(record), []
    for row, (way, own) in enumerate(table.groupby("first_token", sort=False)):
        look, name = m.Look.of(row), f"first token {way}"
        marks.append(m.Line(own["layer"], own["spread"], look, name, f"spread-{way}", own["low"], own["high"]))
        thin = m.Look(look.colour, "dotted", 0.8)
        marks.append(m.Line(own["layer"], own["own"], thin, id=f"own-{way}", hover="the token itself: {y:.4~g}"))
    y = m.Axis("distance moved\n(over the norm, log scale)", "log")
    return m.Drawing(
        [m.Panel(marks, layer_axis(record["layer"]), y)], record.attrs, m.COLUMN, 2.6,
        legend=m.Legend("tokens behind the change; dotted: the token itself"),
    )  # fmt: skip


@figure
@reads
def rollout(record: xr.Dataset) -> m.Drawing:
    """The share of the first token in attention rollout, behind each layer, beside the attention on it of that layer
    alone; means over texts and later queries. Dotted: the rollout of uniform attention.

    What rollout leaves out is told in `sinkscope.rollout`: it is no account of values.

    >>> figures.rollout(record).savefig("rollout.pdf")
    """
    record = need(record, "rollout", "attention_map")
    rolled = secondary.rollout(record)
    later = rolled.isel(key=0).where(rolled["query"] > 0).mean(["sequence", "query"])
    maps = record["attention_map"].isel(map_key=0, map_query=slice(1, None)).astype(np.float64)
    own = maps.mean(["sequence", "head", "map_query"])
    null = rolled["null"].isel(query=slice(1, None)).mean("query")
    marks = [
        m.Line(rolled["layer"], later, m.Look.of(0), "rollout, from the first layer on", "rollout"),
        m.Line(rolled["layer"], own, m.Look.of(1), "attention of the layer alone", "attention"),
        m.Line(rolled["layer"], null, m.Look("quiet", "dotted", 0.9), "rollout of uniform attention", "null"),
    ]
    y = m.Axis("on the first token\n(share)", limits=(0, 1.02))
    panel, legend = m.Panel(marks, layer_axis(rolled["layer"]), y), m.Legend(columns=1)
    return m.Drawing([panel], record.attrs, m.COLUMN, 2.8, legend=legend)
