"""report.html, one file that holds everything it shows and asks nothing of the network; and a view for notebooks."""

from __future__ import annotations

from collections.abc import Hashable
from importlib import resources
from typing import Any

import pandas as pd
import xarray as xr

from sinkscope import figures
from sinkscope.errors import SinkscopeError
from sinkscope.figures.style import model_name, number, percent, source_line, visible
from sinkscope.glossary import DEFINITIONS
from sinkscope.reporting.content import MAIN, SUMMARY, Content, Item
from sinkscope.reporting.made import named
from sinkscope.reporting.markup import content_policy, formatted, script_json, template


def description(item: Item, record: xr.Dataset) -> dict[str, Any] | None:
    """The figure of an item as plotly takes it; None where it is drawn on paper only."""
    describe = getattr(item.figure, "describe", None)
    return None if describe is None else figures.plotly_figure(describe(record))


def _descriptions(content: Content) -> dict[str, dict[str, Any]]:
    """The figures that the browser draws, by name; the others are drawn here."""
    found = {}
    for name, item in content.items.items():
        if name not in content.figures:
            continue
        try:
            with named(f"the figure of `{name}`"):
                made = description(item, content.source(name))
        except SinkscopeError as reason:
            content.leave_out(str(reason), content.figures, name)
            continue
        if made is None:
            content.tried(content.figures, name)
        else:
            found[name] = made
    return found


def page(content: Content, files: list[str]) -> str:
    """The whole page, with links to those of `files`, paths relative to it."""
    from plotly.offline import get_plotlyjs

    main = content.records[MAIN].attrs
    descriptions = _descriptions(content)
    for name in [*content.tables]:
        content.tried(content.tables, name)
    said = {name: content.sentence(name) for name in content.items}  # before the notes, which say what is missing
    shown = {name for name, item in content.items.items() if name in content.figures or item.sentence is not None}
    parts = [(section.title, [item for item in section.items if item.name in shown]) for section in content.sections]
    plotly, script = get_plotlyjs(), _resource("page.js")
    return template(_resource("template.html")).render(
        policy=content_policy(plotly, script),
        content=content,
        headline=content.headline,
        said=said,
        title=visible(model_name(main), spaces=False),
        source=source_line(main),
        read=main.get("read", "sequences"),
        tiles=_tiles(content.tables[SUMMARY]),
        definitions=DEFINITIONS,
        parts=[(title, items) for title, items in parts if items],
        tables=[_table(content, name) for name in content.tables if name != SUMMARY or len(content.tables[name])],
        links=lambda start: [(path.rpartition(".")[2].upper(), path) for path in files if path.startswith(start)],
        records=[path for path in files if path.endswith(".nc")],
        provenance={
            key: visible(value, spaces=False)
            for key, value in sorted({**main, "model": model_name(main)}.items())
            if key != "notes"
        },
        descriptions=descriptions,
        data=script_json(descriptions),
        plotly=plotly,
        style=_resource("page.css"),
        script=script,
    )


def fragment(content: Content, names: list[str]) -> str:
    """A piece of HTML for a notebook, without a script: headline, notes, summary and the figures of these names."""
    summary = content.tables[SUMMARY][["quantity", "value", "lower", "upper", "null", "unit", "measured_on"]]
    names = [name for name in names if content.tried(content.figures, name) is not None]
    return template(_resource("fragment.html")).render(
        MAIN=MAIN, content=content, names=names, columns=summary.columns, rows=formatted(summary)
    )


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _table(content: Content, name: str) -> dict[str, Any]:
    about, _ = content.captions[name]
    table = content.tables[name].drop(columns="note", errors="ignore")  # the notes stand in the tiles
    return {
        "name": name,
        "title": about.title,
        "meaning": about.meaning,
        "columns": [str(column).replace("_", " ") for column in table.columns],
        "numeric": [bool(pd.api.types.is_numeric_dtype(table[column])) for column in table.columns],
        "rows": formatted(table),
    }


def _tiles(summary: pd.DataFrame) -> list[dict[str, str]]:
    """The headline numbers, each with its interval and its null under it."""
    tiles = []
    rows: list[dict[Hashable, Any]] = summary.to_dict("records")
    for row in rows:
        share = row["unit"] in ("probability", "fraction of heads", "share of the gap")
        scale, mark = (100.0, "%") if share else (1.0, "")
        under = []
        if row["lower"] == row["lower"]:  # not NaN
            under.append(f"95%: {number(scale * row['lower'])} to {number(scale * row['upper'])}{mark}")
        if row["null"] == row["null"]:
            under.append(f"null: {number(scale * row['null'])}{mark}")
        if row["above_null"] == row["above_null"]:
            under.append(f"above the null: {percent(row['above_null'])}")
        tiles.append(
            {
                "name": row["quantity"],
                "value": percent(row["value"]) if share else number(row["value"]),
                "unit": "" if share else row["unit"],
                "under": " · ".join(under),
                "on": row["measured_on"],
                "note": row["note"],
            }
        )
    return tiles
