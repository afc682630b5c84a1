"""What is done to sinks and what comes of it: doses, effects beside their controls, and how predictable the text is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.interventions import dose_table, intervention_table
from sinkscope.analysis.predictability import mean_mass_by_bin, predictability_table, sides
from sinkscope.analysis.reading import reads
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import need_columns, other_tokens, tokens_named
from sinkscope.figures.style import even_ticks, extent, headroom, number

ARM_LOOKS = {
    "sinks": m.Look("blue", marker="circle", size=3),
    "next": m.Look("green", "dot", marker="diamond", size=3),
    "random": m.Look("vermilion", "dash", marker="square", size=3),
}
ROLE_LOOKS = {
    "effect": ("intervention", m.Look("blue", marker="circle", size=4)),
    "control": ("its control", m.Look("vermilion", marker="square", size=3.5, hollow=True)),
}
SIDE_LOOKS: dict[str, tuple[str, m.Look, m.Hatch]] = {
    "below": ("below both", m.Look("blue"), "/"),
    "neither": ("neither", m.Look("faint"), ""),
    "above": ("above both", m.Look("vermilion"), "\\"),
}
WIDEST_LINEAR = 2.0
"""Above this ratio of an axis' values it is logarithmic."""
STRONGEST = 3
MEASURE = "next_entropy"
NULL = m.Look("ink", "dash", 0.8)


def null_mass_from(attributes: Mapping[Any, Any]) -> float:
    """Mean mass on the first keys under uniform causal attention, over the queries from the start on, of a table of
    interventions or doses; NaN where its attrs do not say all of that, or the texts are not equally long."""
    first, start, tokens, sequences = (attributes.get(name) for name in ("first", "start", "tokens", "sequences"))
    if not first or not start or not tokens or not sequences or int(tokens) % int(sequences):
        return float("nan")
    query = np.arange(int(start), int(tokens) // int(sequences))
    return float(np.mean(np.minimum(int(first) / (query + 1), 1))) if len(query) else float("nan")


@figure
@reads
def dose_response(record: xr.Dataset | pd.DataFrame) -> m.Drawing:
    """Loss, sink mass and head output against the dose, the first keys beside as many others.

    Perplexity and output are over those at the dose nearest to 0; bands are 95% intervals, of the perplexity paired,
    as in `ppl_table`, of the others over texts (none with fewer than three). Minus infinity, the keys gone, stands
    apart at the left end. The dotted lines: no effect, and for the mass uniform attention.

    >>> figures.dose_response(record).savefig("dose_response.pdf")

    Args:
        record: of `sinkscope.dose_response`, or its `dose_table`.

    Raises:
        SinkscopeError: as `dose_table`, or a column of the table is missing.
    """
    table = dose_table(record) if isinstance(record, xr.Dataset) else record
    count, null = int(table.attrs.get("count", 1)), null_mass_from(table.attrs)
    first = tokens_named(int(table.attrs.get("first", count)))
    responses = {
        "ratio": ("ratio", "perplexity\n(times that at dose 0)", 1.0),
        "sink_mass": ("mass", f"mass on the {first}\n(probability)", null),
        "output": ("output", "norm of a head's output\n(times that at dose 0)", 1.0),
    }
    bounds = [f"{name}_{end}" for name, _, _ in responses.values() for end in ("low", "high")]
    need_columns(table, "dose_response", "arm", "dose", *responses, *bounds)
    panels = []
    for column, (name, label, level) in responses.items():
        marks: list[m.Mark] = [m.Reference(y=level, id="level")] if np.isfinite(level) else []
        for arm, own in table.groupby("arm", sort=False):
            marks += _responses(own.sort_values("dose"), str(arm), column, name, count)
        low, high = extent([mark for mark in marks if not isinstance(mark, m.Reference)], "y")
        y = m.Axis(label, limits=(None if column == "ratio" else 0, None))
        if column == "ratio" and high > WIDEST_LINEAR * low > 0:
            y = m.Axis(label.replace(")", ", log scale)"), "log", ticks="round")
        panels.append(m.Panel(marks, _doses(table, marks), y))
    of_mass = f"; of the mass: uniform null {number(null)}" if null > 0 else ""
    legend = m.Legend(f"bands and whiskers: 95%; dotted: no effect{of_mass}", size=7, handle=3.2)
    return m.Drawing(panels, table.attrs, m.PAGE, 2.75, columns=3, legend=legend, page_height=380)


def _responses(own: pd.DataFrame, arm: str, column: str, bounds: str, count: int) -> list[m.Mark]:
    """One arm in one panel: a line over the finite doses, and minus infinity apart."""
    look = ARM_LOOKS.get(arm, m.Look("ink", marker="circle", size=3))
    name = f"bias on {f'the {tokens_named(count)}' if arm == 'sinks' else other_tokens(arm, count)}"
    doses = own["dose"].to_numpy(np.float64)
    x, words = places(doses), np.array([_dose_name(dose) for dose in doses])
    middle, low, high = (own[each].to_numpy(np.float64) for each in (column, f"{bounds}_low", f"{bounds}_high"))
    hover, is_finite = f"{name}, dose {{text}}: {{y:.4~g}}", np.isfinite(doses)
    marks: list[m.Mark] = []
    for kind, kept, gid in ((m.Line, is_finite, f"{column}-{arm}"), (m.Points, ~is_finite, f"{column}-{arm}-gone")):
        if kept.any():
            marks.append(
                kind(x[kept], middle[kept], look, name, gid, low[kept], high[kept], hover, words[kept].tolist())
            )
    return marks


def places(doses: np.ndarray) -> np.ndarray:
    """Where doses stand on the axis: as they are, minus infinity to the left of all others."""
    finite = doses[np.isfinite(doses)]
    if not len(finite):
        return np.zeros(len(doses))
    span = max(float(np.ptp(finite)), 1.0)
    return np.where(np.isfinite(doses), doses, finite.min() - 0.22 * span)


def _dose_name(dose: float) -> str:
    return "−∞" if np.isinf(dose) else f"{dose:+g}".replace("-", "−") if dose else "0"


def _doses(table: pd.DataFrame, marks: list[m.Mark]) -> m.Axis:
    """Ticks at whole doses, and one for minus infinity, with the axis cut before it by one more mark."""
    doses = np.unique(table["dose"].to_numpy(np.float64))
    x, finite = places(doses), doses[np.isfinite(doses)]
    shown = finite
    while len(shown) > 1 and np.diff(shown).min() < 0.11 * np.ptp(finite):
        nearest = int(np.argmin(np.diff(shown)))
        keeps_right = shown[nearest + 1] == 0 or (nearest + 2 == len(shown) and nearest > 0 and shown[nearest] != 0)
        shown = np.delete(shown, nearest if keeps_right else nearest + 1)
    ticks, names = list(shown), [_dose_name(dose) for dose in shown]
    if not np.isfinite(doses).all():
        gone = float(x.min())
        ticks, names = [gone, *ticks], ["−∞", *names]
        if len(finite):
            marks.insert(0, m.Reference(x=(gone + finite.min()) / 2, look=m.Look("faint", "dash", 0.6), id="cut"))
    return m.Axis("dose (bias on the logit, nats)", ticks=ticks, names=names, margin=0.06)


@figure
@reads
def effects(record: xr.Dataset | pd.DataFrame) -> m.Drawing:
    """Perplexity over that with nothing done, and sink mass, of each intervention and below it of its control.

    Whiskers are 95% intervals, of the perplexity paired as in `ppl_table` (logarithmic axis), of the
    mass over texts (none with one text). Dotted lines: with nothing done. Dashed: mass under uniform attention.

    >>> figures.effects(record).savefig("effects.pdf")

    Args:
        record: of `sinkscope.run_interventions`, or the table of `sinkscope.intervene`.

    Raises:
        SinkscopeError: as `intervention_table`, a column of the table is missing, or no intervention is in it.
    """
    table = intervention_table(record) if isinstance(record, xr.Dataset) else record
    columns = ("intervention", "role", "ratio", "ratio_low", "ratio_high", "sink_mass", "mass_low", "mass_high")
    need_columns(table, "effects", *columns)
    rows = table[table["role"] != "baseline"]
    need_columns(rows, "effects", *columns)
    y, null = np.array(row_places(rows["role"])), null_mass_from(table.attrs)
    loss, mass = _effects(rows, y, "ratio", "ratio"), _effects(rows, y, "sink_mass", "mass")
    found = extent(loss, "x", positive=True)
    low, high = np.fmin(found[0], 0.98), np.fmax(found[1], 1.02)
    room = np.exp(0.05 * np.log(high / low))
    loss.insert(0, m.Reference(x=1.0, id="none"))
    unscored = y[~np.isfinite(rows["ratio"].to_numpy(np.float64))]
    loss += [m.Text(1, row, "no ratio: other tokens", size=6, colour="quiet", id="unscored") for row in unscored]
    base = table[table["role"] == "baseline"]["sink_mass"]
    mass += [m.Reference(x=float(each), id="none") for each in base[:1] if np.isfinite(each)]
    mass += [m.Reference(x=null, look=NULL, id="null")] if np.isfinite(null) else []
    most = float(np.nan_to_num(extent(mass, "x")[1], nan=1.0))
    axis = m.Axis(limits=(y[-1] + 0.7, -0.7), ticks=y.tolist(), names=list(rows["intervention"]), has_tick_marks=False,
                  name_colours=["quiet" if role == "control" else "ink" for role in rows["role"]])  # fmt: skip
    limits = (float(low / room), float(high * room))
    ratio = m.Axis("perplexity over that with nothing done (log scale)", "log", limits, "round")
    label = f"mass on the {tokens_named(int(table.attrs.get('first', 1)))} (probability)"
    share = m.Axis(label, limits=(-0.02 * most, min(1.02, 1.06 * most)))
    panels = [m.Panel(loss, ratio, axis), m.Panel(mass, share, axis)]
    dashed = f"; dashed: uniform null {number(null)}" if np.isfinite(null) else ""
    legend = m.Legend(f"whiskers: 95%; dotted: nothing done{dashed}", size=7)
    height = 0.85 + 0.21 * (y[-1] + 1.2)
    return m.Drawing(
        panels, table.attrs, m.PAGE, height, 2, (1.15, 1), "y", legend, page_height=int(100 + 34 * len(rows))
    )


def row_places(roles: Iterable[str]) -> list[float]:
    """Heights of the rows from the top down: a control close below its effect, a gap before the next."""
    return [0.0, *accumulate(0.85 if role == "control" else 1.35 for role in list(roles)[1:])]


def _effects(rows: pd.DataFrame, y: np.ndarray, column: str, bounds: str) -> list[m.Mark]:
    marks: list[m.Mark] = []
    for role, (name, look) in ROLE_LOOKS.items():
        own = (rows["role"] == role).to_numpy()
        if own.any():
            part = rows[own]
            hover, texts = "{text}: {x:.4~g}", [str(each) for each in part["intervention"]]
            marks.append(m.Points(part[column], y[own], look, name, f"{column}-{role}", hover=hover, texts=texts,
                                  left=part[f"{bounds}_low"], right=part[f"{bounds}_high"]))  # fmt: skip
    return marks


@figure
@reads
def predictability(record: xr.Dataset, bins: int = 10, start: int | None = None) -> m.Drawing:
    """Sink mass by entropy of the next token, and the rank correlation of the two in every head.

    Left: mean over layers and heads with its 95% interval, the heads that give the first keys most, and the uniform
    null, that of even attention from the same queries: entropy falls along a text, and so does 1/(i + 1). Right:
    Spearman correlations; coloured are heads whose 95% interval lies beyond both zero and the correlation of even
    attention. Of heads without any relation up to 5% would.

    >>> figures.predictability(record).savefig("predictability.pdf")

    Args:
        record: of `sinkscope.predictability`.
        bins: how many, of equal numbers of queries.
        start: the first query that counts; as the record says, or 64, when None.

    Raises:
        SinkscopeError: as `predictability_table`.
    """
    start = int(record.attrs.get("start", 64)) if start is None else start
    table = predictability_table(record, start=start)
    table = table[table["measure"] == MEASURE]
    binned = mean_mass_by_bin(record, MEASURE, bins, start)
    first = int(record.attrs.get("first", record.sizes["sink"]))
    panels = [_bins(binned, first), _correlations(table)]
    return m.Drawing(panels, record.attrs, m.PAGE, 2.9, columns=2, legend=None, page_height=420)


def _bins(binned: xr.Dataset, first: int) -> m.Panel:
    x = binned["middle"]
    mean = m.Look("blue", marker="circle", size=3)
    marks: list[m.Mark] = [
        m.Line(x, binned["mean"], mean, "mean of all heads (band: 95%)", "mean", binned["lower"], binned["upper"],
               band=0.25)
    ]  # fmt: skip
    heads = binned["sink_mass"].stack(place=("layer", "head"))
    strongest = np.argsort(-heads.mean("bin").fillna(-1.0).values, kind="stable")[:STRONGEST]
    for dash, each in zip(m.DASHES[1:], strongest, strict=False):
        layer, head = heads["place"].values[each]
        look = m.Look("quiet", dash, 0.9)
        marks.append(m.Line(x, heads[:, each], look, f"layer {layer}, head {head}", f"head-{layer}-{head}"))
    marks.append(m.Line(x, binned["null"], m.Look("vermilion", "dash", 1.0), "uniform null", "null"))
    return m.Panel(
        marks,
        x=m.Axis("entropy of the next token (nats, median of bin)"),
        y=m.Axis(f"mass on the {tokens_named(first)}\n(probability)", limits=(0, headroom(marks, 1.02))),
        legend=m.Legend(),
    )


def _correlations(table: pd.DataFrame) -> m.Panel:
    kinds, values = sides(table), table["correlation"].to_numpy(np.float64)
    edges = np.linspace(-1, 1, 41)
    base = np.zeros(len(edges) - 1)
    marks: list[m.Mark] = []
    for kind, (name, look, hatch) in SIDE_LOOKS.items():
        group = values[(kinds == kind).to_numpy()]
        counts, _ = np.histogram(np.clip(group, -1, 1), edges)  # rounding may leave them a little beyond
        middles, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
        hover, texts = f"{name}\ncorrelation near {{x:.2f}}: {{text}} heads", [str(count) for count in counts]
        marks.append(m.Bars(middles, counts, look, f"{name}: {len(group):,}", kind, hover=hover, texts=texts,
                            width=width, base=base.copy(), hatch=hatch, edge="#ffffff"))  # fmt: skip
        base += counts
    null = float(table["null"].iloc[0])
    marks.append(m.Reference(x=0.0, look=m.Look("ink", width=0.6), id="zero"))
    if np.isfinite(null):
        name = f"uniform null: {number(null, 2).replace('-', '−')}"
        marks.append(m.Reference(x=null, look=m.Look("vermilion", "dash", 1.0), name=name, id="null"))
    found = np.abs(values[np.isfinite(values)]).max(initial=0.1)
    reach = min(1.0, float(np.ceil(10 * max(found, abs(np.nan_to_num(null)))) / 10))
    most = max(1.0, 1.05 * base.max())
    return m.Panel(
        marks,
        x=m.Axis("Spearman correlation of sink mass and entropy", limits=(-reach, reach),
                 ticks=even_ticks(-reach, reach, symmetric=True)),
        y=m.Axis("heads", limits=(0, most), ticks=even_ticks(0, most, 6, integer=True)),
        legend=m.Legend(f"95% intervals of {table['correlation'].notna().sum():,} heads, against zero and null"),
    )  # fmt: skip
