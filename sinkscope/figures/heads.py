"""What heads and layers are for: kinds of sinks, depth of several models, reach, and heads that stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sinkscope.analysis.perplexity import ppl_table
from sinkscope.analysis.purposes import BROADCAST, EVENT, KINDS, NO_OP, RANK, depth_table
from sinkscope.analysis.purposes import purposes as kinds_of
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import whole
from sinkscope.arguments import several
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import layer_axis, need
from sinkscope.figures.style import model_name, number

DEPTH = {
    "matrix_entropy": "matrix entropy\n(1: all directions alike)",
    "anisotropy": "largest share of a direction\n(anisotropy)",
    "first_norm": "norm of the first token's state\n(log scale)",
    "kurtosis": "kurtosis of the states\n(log scale)",
    "sink_rate": "heads with α > {epsilon:g}\n(fraction)",
}


@figure
@reads
def purposes(
    record: xr.Dataset, event: float = EVENT, no_op: float = NO_OP, broadcast: float = BROADCAST, rank: float = RANK
) -> m.Drawing:
    """Where two accounts of sinks meet: a dot for each head, at what its strongest key hands on over what others do,
    and at the share of the lost value in what evicting the first keys would change; the rest is the lost denominator.

    A no-op stands at the left, and loses its denominator: low. A broadcast stands at the right, and loses a value:
    high. Thresholds as of `sinkscope.purposes`; the record holds what `SinkPurpose` and `EvictionEffect` make.

    >>> figures.purposes(record).savefig("purposes.pdf")
    """
    record = need(record, "purposes", "sink_norm_ratio", "lost_value", "lost_denominator")
    table = kinds_of(record, event, no_op, broadcast, rank)
    share = lost_value_share(record)
    places = list(zip(table["layer"], table["head"], strict=True))
    table["share"] = [float(share.sel(layer=layer, head=head)) for layer, head in places]
    table["said"] = [f"layer {layer}, head {head}" for layer, head in places]
    marks: list[m.Mark] = [
        m.Reference(x=no_op, look=m.Look("faint", width=0.6), id="no-op"),
        m.Reference(x=broadcast, look=m.Look("faint", width=0.6), id="broadcast"),
        m.Reference(x=1.0, name="null: a key like all others", id="null"),
    ]
    for row, kind in enumerate(KINDS):
        heads = table[table["kind"] == kind]
        if len(heads):
            colour = "quiet" if kind == "no sink" else m.COLOURS[row]
            look = m.Look(colour, marker=m.marker_of(row), size=3, opacity=0.7)
            hover = f"{{text}}: {kind}\nratio {{x:.3f}}, lost value {{y:.3f}}"
            marks.append(
                m.Points(
                    heads["sink_norm_ratio"], heads["share"], look, f"{kind} ({len(heads)})", kind, hover=hover,
                    texts=heads["said"].tolist(), behind=kind == "no sink",
                )
            )  # fmt: skip
    panel = m.Panel(
        marks,
        m.Axis("norm handed on by the strongest key\n(over the mean of other keys)", limits=(0, None)),
        m.Axis("lost value (fraction of\nlost value + denominator)", limits=(0, 1)),
    )
    return m.Drawing([panel], record.attrs, m.COLUMN, 3.0, legend=m.Legend("heads, means over texts"))


def lost_value_share(record: xr.Dataset) -> xr.DataArray:
    """The share [layer, head] of the lost value in what evicting the first keys would change, of mean norms."""
    means = whole(record)[["lost_value", "lost_denominator"]].mean(["sequence", "query"])
    return (means["lost_value"] / (means["lost_value"] + means["lost_denominator"])).transpose("layer", "head")


@figure
@reads
def depth(record: xr.Dataset, others: Sequence[xr.Dataset] = ()) -> m.Drawing:
    """Hidden states and sinks over depth, a line for each model, with 95% intervals over texts: matrix entropy,
    anisotropy, norm of the first token's state, kurtosis, and the sink rate by layer where it was measured.

    Dotted: the nulls, states in all directions alike, and the kurtosis of normal ones. Depth is the layer over the last
    one where there are several models.

    >>> figures.depth(record).savefig("depth.pdf")
    """
    records = [record, *several(others, "others")]
    if not all(isinstance(each, xr.Dataset) for each in records):
        raise SinkscopeError("others= holds what is no record; give those of other models.")
    records = [need(each, "depth", "matrix_entropy", "state_norm") for each in records]
    tables = [depth_table(each) for each in records]
    is_one, panels = len(records) == 1, []
    for quantity, label in DEPTH.items():
        marks: list[m.Mark] = []
        is_log = "log scale" in label
        for row, (each, table) in enumerate(zip(records, tables, strict=True)):
            if not table[quantity].notna().any():
                continue
            layers = table["layer"].to_numpy(dtype=float)
            x = layers if is_one else layers / max(layers.max(), 1)
            low, high = (table[f"{quantity}_{end}"] for end in ("low", "high"))
            name = model_name(each.attrs)
            marks.append(m.Line(x, table[quantity], m.Look.of(row), name, f"{quantity}-{row}", low, high))
        if not marks:
            continue
        null = {"matrix_entropy": 1.0, "kurtosis": 3.0}.get(quantity)
        if null is not None:
            marks.append(m.Reference(y=null, id=f"{quantity}-null"))
        name = label.format(epsilon=tables[0].attrs["epsilon"])
        y = m.Axis(name, "log", ticks="round") if is_log else m.Axis(name, limits=(0, 1.02))
        panels.append(m.Panel(marks, layer_axis(record["layer"]) if is_one else m.Axis("layer / last layer"), y))
    rows = -(-len(panels) // 3)
    return m.Drawing(
        panels, record.attrs, m.PAGE, 2.3 * rows, 3, legend=m.Legend("band: 95% over texts"), page_height=320 * rows
    )


@figure
@reads
def reach(record: xr.Dataset) -> m.Drawing:
    """Left, attention inside sinks and window against the window, a line for each number of sinks, mean over heads,
    with the uniform null dotted; right, the error of each head that streams, by layer, at the largest sizes.

    >>> figures.reach(record).savefig("reach.pdf")
    """
    record = need(record, "reach", "reach", "reach_null", "stream_error")
    windows, sinks = (np.atleast_1d(record[name].values) for name in ("reach_window", "reach_sinks"))
    mean = record["reach"].mean(["sequence", "layer", "head"])
    even, marks = record["reach_null"].mean(["sequence", "layer"]), []
    for row, count in enumerate(sinks):
        look = m.Look.of(row, marker=m.marker_of(row))
        inside = mean.sel(reach_sinks=count).values
        marks.append(m.Line(windows, inside, look, f"{count} sinks", f"reach-{count}"))
        null = even.sel(reach_sinks=count).values
        marks.append(m.Line(windows, null, m.Look(look.colour, "dotted", 0.8), id=f"null-{count}"))
    left = m.Panel(
        marks,
        m.Axis("window (tokens)", "log", ticks=windows.tolist()),
        m.Axis("attention inside\n(probability)", limits=(0, 1.02)),
    )
    error = record["stream_error"].sel(reach_sinks=sinks.max(), reach_window=windows.max()).mean("sequence")
    heads = error.transpose("layer", "head").stack(place=("layer", "head"))
    texts = [str(each) for each in heads["head"].values]
    hover = "layer {x}, head {text}\nerror {y:.4f}"
    dots = m.Points(heads["layer"], heads, m.Look("blue", marker="point"), id="heads", hover=hover, texts=texts)
    label = f"error of the output with\n{sinks.max()} sinks + {windows.max()}"
    right = m.Panel([dots], layer_axis(record["layer"]), m.Axis(label, limits=(0, None)))
    return m.Drawing([left, right], record.attrs, m.PAGE, 2.6, 2, legend=m.Legend("dotted: uniform attention"))


@figure
@reads
def head_split(record: xr.Dataset) -> m.Drawing:
    """Perplexity over that of the dense run against the share of key-value heads that stream, with paired 95%
    intervals: those that need the text least first, and the other way round.

    >>> figures.head_split(record).savefig("head_split.pdf")
    """
    record = need(record, "head_split", "nll", "share", "worst_first")
    dense = [str(each) for each in record["policy"].values[np.asarray(record["share"].values) == 0]]
    if not dense:
        raise SinkscopeError("head_split needs a run in which no head streams; give 0 among the shares.")
    table = ppl_table(record, dense[0]).set_index("policy")
    shares = dict(zip(record["policy"].values.tolist(), record["share"].values.tolist(), strict=True))
    worst = dict(zip(record["policy"].values.tolist(), record["worst_first"].values.tolist(), strict=True))
    marks: list[m.Mark] = [
        m.Reference(y=1.0, name=f"no head streams: {number(float(table['ppl'][dense[0]]))}", id="dense")
    ]
    for row, (name, is_worst) in enumerate({"least needy first": False, "neediest first": True}.items()):
        chosen = [each for each in shares if worst[each] is is_worst or shares[each] in (0, 1)]
        chosen.sort(key=lambda each: shares[each])
        rows, look = table.loc[chosen], m.Look.of(row, marker=m.marker_of(row))
        x = [shares[each] for each in chosen]
        low, high = rows["ratio_low"], rows["ratio_high"]
        marks.append(m.Line(x, rows["ratio"], look, name, f"split-{row}", low, high, whiskers=True))
    panel = m.Panel(marks, m.Axis("key-value heads that stream (fraction)"), m.Axis("perplexity over dense"))
    return m.Drawing([panel], record.attrs, m.COLUMN, 2.7, legend=m.Legend("whiskers: paired 95%"))
