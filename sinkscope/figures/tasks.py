"""What is still known of a text: answers to questions, and passages read again, against distance and depth."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import xarray as xr

from sinkscope.analysis.reading import reads
from sinkscope.analysis.recall import recall_table
from sinkscope.analysis.tasks import accuracy_table
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure

APART = 1.025  # of neighbouring policies, as a factor of the distance
WHAT = {"needle": "the needle", "key value": "the pair", "stream": "the line"}


@figure
@reads
def accuracy(record: xr.Dataset) -> m.Drawing:
    """Share of right answers against the distance of what is asked for, and against its depth, under each policy.

    Whiskers are 95% intervals over texts; policies stand a little apart, so that none hides another. Dotted: chance, of
    whoever has not seen it. The right panel takes all lengths of texts together.

    >>> figures.accuracy(record).savefig("accuracy.pdf")

    Args:
        record: of `sinkscope.needle_recall`, `key_value_recall` or `stream_recall`.

    Raises:
        SinkscopeError: another record.
    """
    what = WHAT.get(str(record.attrs.get("task")), "it")
    table = accuracy_table(record).sort_values("distance", kind="stable")
    away = m.Axis(f"tokens since {what} (log scale)", "log", ticks="round", plain=True)
    panels = [_panel(table, "distance", away)]
    if record.sizes.get("depth", 1) > 1:
        depth = m.Axis(f"depth of {what} (0: in front)", limits=(-0.05, 1.05))
        panels.append(_panel(accuracy_table(record, "depth"), "depth", depth))
    width = m.PAGE if len(panels) > 1 else m.COLUMN
    return m.Drawing(
        panels, record.attrs, width, 3.2, len(panels), shared="y", legend=m.Legend(columns=4 if len(panels) > 1 else 2)
    )


def _panel(table: pd.DataFrame, name: str, axis: m.Axis) -> m.Panel:
    marks: list[m.Mark] = []
    groups = list(table.groupby("policy", sort=False))
    for row, (policy, own) in enumerate(groups):
        aside = row - (len(groups) - 1) / 2
        x = own[name] * APART**aside if axis.scale == "log" else own[name] + (APART - 1) / 2 * aside
        look = m.Look.of(row, marker=m.marker_of(row), size=4)
        known = own["low"].notna().any()
        low, high = (own["low"], own["high"]) if known else (None, None)
        line = f"{name}-{policy}"
        marks.append(m.Line(x, own["accuracy"], look, str(policy), line, low, high, whiskers=True))
    chance = float(table["chance"].iloc[0])
    marks.append(m.Reference(y=chance, look=m.Look("quiet", "dot"), name="chance", id="chance"))
    return m.Panel(marks, axis, m.Axis("right answers (share)", limits=(-0.02, 1.02)))


@figure
@reads
def recall(record: xr.Dataset) -> m.Drawing:
    """Loss of a passage the second time it comes against its distance, under each policy; band: 95% over passages.

    Dotted: the mean loss of the first reading, which has no text before it. Beside it, if the control was read: how
    much more the passage costs at the same place where another one stood in the first place. At zero nothing of the
    first reading is left.

    >>> figures.recall(record).savefig("recall.pdf")
    """
    table = recall_table(record)
    panels = [_by_distance(table, "again", ("low", "high"), "loss of the passage,\nsecond time (nats)", (0, None))]
    level = m.Reference(y=float(table["first"].mean()), look=m.Look("quiet", "dot"), name="first time", id="first")
    panels = [replace(panels[0], marks=[*panels[0].marks, level])]
    if "recalled" not in table:
        return m.Drawing(panels, record.attrs, m.COLUMN, 2.8)
    words = "left of the first reading\n(nats, against another passage)"
    right = _by_distance(table, "recalled", ("recalled_low", "recalled_high"), words, (None, None))
    panels.append(replace(right, marks=[*right.marks, m.Reference(y=0.0, id="nothing")]))
    return m.Drawing(panels, record.attrs, m.PAGE, 2.9, 2)


def _by_distance(
    table: pd.DataFrame, name: str, ends: tuple[str, str], label: str, limits: tuple[float | None, float | None]
) -> m.Panel:
    """One curve for each policy."""
    marks: list[m.Mark] = []
    for row, (policy, own) in enumerate(table.groupby("policy", sort=False)):
        look = m.Look.of(row, marker=m.marker_of(row), size=4)
        bounds = [own[end] for end in ends] if own[ends[0]].notna().any() else [None, None]
        marks.append(m.Line(own["distance"], own[name], look, str(policy), f"{name}-{policy}", *bounds))
    away = table["distance"].unique().tolist()
    x = m.Axis("tokens since the passage came first (log scale)", "log", ticks=away, plain=True)
    return m.Panel(marks, x, m.Axis(label, limits=limits))
