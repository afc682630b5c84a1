"""What goes when sinks go: the mass that is forced on other keys, the collapse in its parts, and across models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.mass import NORMS, eviction_by_layer
from sinkscope.analysis.mass import amplification as amplifications
from sinkscope.analysis.perplexity import ARMS, PARTS, collapse_table
from sinkscope.analysis.reading import reads
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import cell_axis, layer_axis, need, need_columns
from sinkscope.figures.style import log_ticks, number

DARKEST = 100.0
"""A head that parks all it has would have a scale to itself: above this factor, all are equally dark."""
NORM_LOOKS = {
    "change": ("change of the output", m.Look("ink", marker="circle")),
    "lost_denominator": ("lost denominator", m.Look("blue", "dash", marker="square")),
    "lost_value": ("lost value", m.Look("vermilion", "dot", marker="triangle-up")),
}
PART_NAMES = {part: part.replace(", ", ",\n") for part in (*PARTS, *ARMS)}
"""What may be left of the sinks, in an order in which each keeps its look."""
STRENGTHS = {
    "sink_rate": ("rate", "sink rate (fraction of heads with α > {epsilon})"),
    "sink_mass": ("mass", "mass on the first token (probability)"),
}
NULL = m.Look("vermilion", "dash", 0.8)


@figure
@reads
def forced_mass(record: xr.Dataset) -> m.Drawing:
    """Amplification 1 / (1 - m) of each head, and beside it the change of a head's output by layer, in its two parts.

    Left: geometric mean over queries and texts, on a logarithmic scale that ends at 100; the mark on it is that of
    uniform attention.
    Right: mean norm over the mean norm of the head's output, with 95% intervals over texts: the change, and the two
    vectors that add up to it. Norms of two vectors add up to no less than that of their sum. A record without norms has
    the left panel only.

    >>> figures.forced_mass(record).savefig("forced_mass.pdf")

    Args:
        record: with what `EvictionEffect` makes.

    Raises:
        SinkscopeError: the record has no amplification.
    """
    record = need(record, "forced_mass", "log_amplification")
    heads = amplifications(record).transpose("layer", "head").values
    largest = max(float(np.nanmax(heads, initial=1.0)), 1.05)
    high, null, keys = min(largest, DARKEST), uniform_amplification(record), evicted(record)
    bar = m.ColourBar(
        "amplification 1 / (1 − m)\n(factor, log scale)", "factor", 1.0, high, log=True,
        open_end="high" if largest > high else "", mark=null if np.isfinite(null) else None, mark_colour="vermilion",
    )  # fmt: skip
    hover = f"layer {{y}}, head {{x}}\namplification {{z:.4~g}}\nuniform null {number(null)}"
    what = "the first key goes" if keys == 1 else f"the first {keys} keys go"
    title = f"{what}; largest: {number(largest)}\nmark on the scale: uniform null {number(null)}"
    places = cell_axis(record, "head"), cell_axis(record, "layer", 16)
    panels = [m.Panel([m.Image(heads, bar, hover=hover)], *places, title, note=True, has_frame=True)]
    if all(name in record for name in NORMS):
        table = eviction_by_layer(record)
        lines = [
            m.Line(table["layer"], table[name], look, label, name, table[f"{name}_low"], table[f"{name}_high"])
            for name, (label, look) in NORM_LOOKS.items()
        ]
        norm = m.Axis("norm of the vector\n(times the head's output)", limits=(0, None))
        legend = m.Legend("band: 95% over texts" if record.sizes["sequence"] > 1 else "one text: no interval")
        panels.append(m.Panel(lines, layer_axis(table["layer"]), norm, legend=legend))
    height = float(np.clip(0.9 + 0.09 * len(heads), 2.6, 8.0))
    page_height = int(np.clip(14 * len(heads) + 150, 320, 920))
    width = m.PAGE if len(panels) > 1 else m.COLUMN
    return m.Drawing(panels, record.attrs, width, height, columns=len(panels), page_height=page_height)


def uniform_amplification(record: xr.Dataset) -> float:
    """The geometric mean over the same queries for a head that spreads its attention evenly."""
    query = _measured(record)
    mass = evicted(record) / (query + 1.0)
    mass = mass[mass < 1]
    return float(np.exp(-np.log1p(-mass).mean())) if len(mass) else float("nan")


def evicted(record: xr.Dataset) -> int:
    """How many keys the record is about: those of its coordinate `evicted_key`, or all before the first query."""
    if "evicted_key" in record.coords:
        return int(record["evicted_key"].size)
    return int(np.append(_measured(record), record.sizes["query"]).min())


def _measured(record: xr.Dataset) -> np.ndarray:
    """The queries of which there is an amplification."""
    logs = record["log_amplification"]
    return record["query"].values[logs.notnull().any([dim for dim in logs.dims if dim != "query"]).values]


@figure
@reads
def collapse(record: xr.Dataset | pd.DataFrame) -> m.Drawing:
    """Perplexity over that with full sinks, for what is left of the sinks, with paired 95% intervals.

    Logarithmic axis, so that distances are losses in nats: below as ratios, above as the perplexities themselves.
    Beside each point, its perplexity and the share of the gap between window and full sinks that it closes.

    >>> figures.collapse(record).savefig("collapse.pdf")

    Args:
        record: of `sinkscope.decompose`, or its `collapse_table`.

    Raises:
        SinkscopeError: as `collapse_table`, or a column of the table is missing.
    """
    table = collapse_table(record) if isinstance(record, xr.Dataset) else record
    need_columns(table, "collapse", "part", "ppl", "ratio", "ratio_low", "ratio_high", "recovered")
    values = table[["ratio", "ratio_low", "ratio_high"]].to_numpy(np.float64)
    right = float(np.nanmax(values[:, [0, 2]]))
    values = values[np.isfinite(values) & (values > 0)]
    low, high = min(values.min(), 1.0), max(values.max(), 1.02)
    span, order = np.log(high / low), list(PART_NAMES)
    marks: list[m.Mark] = [m.Reference(x=1.0, id="full")]
    for row, each in enumerate(table.to_dict("records")):
        at = order.index(each["part"]) if each["part"] in order else row
        look = m.Look.of(at, dash="solid", marker=m.marker_of(at), size=4)
        shown = f"{each['ppl']:,.1f}"
        if np.isfinite(each["recovered"]) and each["part"] not in ("full sinks", "window"):
            shown += f"; closes {100 * each['recovered']:.0f}%".replace("-", "−")
        hover = f"{each['part']}\nperplexity {shown}\n{{x:.3f}} times that with full sinks"
        bounds = {"left": each["ratio_low"], "right": each["ratio_high"]}
        marks.append(m.Points(each["ratio"], row, look, id=str(each["part"]), hover=hover, **bounds))
        marks.append(m.Text(right, row, shown, id=f"text-{each['part']}"))
    tokens = f"{int(table['tokens'].iloc[0]):,} tokens; " if "tokens" in table else ""
    whole = float(table["ppl"].iloc[0]) / float(table["ratio"].iloc[0])
    limits = (float(low * np.exp(-0.06 * span)), float(high * np.exp(0.5 * span)))
    panel = m.Panel(
        marks,
        x=m.Axis("perplexity over that with full sinks (log scale)", "log", limits, log_ticks(low, high), plain=True),
        y=m.Axis(limits=(len(table) - 0.5, -0.5), ticks=range(len(table)),
                 names=[PART_NAMES.get(part, part) for part in table["part"]], has_tick_marks=False, has_line=False),
        above=m.SecondAxis(f"perplexity ({tokens}whiskers: paired 95%)", whole, log_ticks(low * whole, high * whole)),
    )  # fmt: skip
    return m.Drawing([panel], table.attrs, m.COLUMN, 1.1 + 0.34 * len(table), page_height=320)


@figure
@reads
def comparison(table: pd.DataFrame) -> m.Drawing:
    """Collapse, as perplexity of the window over that of sinks + window, against sink rate and mass.

    Whiskers are 95% intervals, of the collapse paired as in `ppl_table`, of the strengths over texts (none with fewer
    than three). Hollow points differ from the first model in more than the model, and the legend says in what.
    Dashed lines: strength under uniform attention. Dotted: no collapse.

    >>> figures.comparison(record).savefig("comparison.pdf")

    Args:
        table: of `sinkscope.compare`.

    Raises:
        SinkscopeError: a column is missing, or the table is empty.
    """
    bounds = [f"{name}_{end}" for name in ("rate", "mass") for end in ("low", "high", "null")]
    need_columns(table, "comparison", "model", *STRENGTHS, *bounds, "collapse", "collapse_low", "collapse_high",
                 "cache_size", "T")  # fmt: skip
    panels: list[m.Panel] = []
    for column, (name, label) in STRENGTHS.items():
        marks: list[m.Mark] = [m.Reference(y=1.0, id="none")]
        marks += [m.Reference(x=null, look=NULL, id=f"null-{column}") for null in table[f"{name}_null"].unique()]
        marks += [_model(row, each, column, name) for row, each in enumerate(table.to_dict("records"))]
        high = min(1.02, 1.1 * max(table[f"{name}_high"].max(), table[column].max()))
        x = m.Axis(label.format(epsilon=table.attrs.get("epsilon", 0.3)), limits=(-0.02, high))
        words = "" if panels else "collapse: perplexity of window\nover sinks + window (log scale)"
        panels.append(m.Panel(marks, x, m.Axis(words, "log", ticks="round")))
    title = (
        f"T = {int(table['T'].iloc[0]):,}; whiskers: 95%; dashed: uniform null of the mass "
        f"{number(float(table['mass_null'].iloc[0]))}; dotted: no collapse"
    )
    height = 2.7 + 0.11 * len(table)
    return m.Drawing(panels, table.attrs, m.PAGE, height, 2, shared="y", legend=m.Legend(title), page_height=420)


def _model(row: int, each: dict[Any, Any], column: str, name: str) -> m.Points:
    differs = str(each.get("differs", "") or "")
    other = f" (other {differs.replace('_', ' ')})" if differs else ""
    label = f"{each['model']}, cache of {int(each['cache_size']):,}{other}"
    marker = m.marker_of(row // len(m.COLOURS) + row)
    look = m.Look.of(row, dash="solid", marker=marker, size=5, hollow=bool(differs))
    return m.Points(
        each[column], each["collapse"], look, label, f"model-{row}", each["collapse_low"], each["collapse_high"],
        left=each[f"{name}_low"], right=each[f"{name}_high"],
    )  # fmt: skip
