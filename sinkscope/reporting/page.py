"""report.html, one file that holds everything it shows and asks nothing of the network; and a view for notebooks."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Hashable, Mapping
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
import xarray as xr
from markupsafe import Markup

from sinkscope import figures
from sinkscope.errors import SinkscopeError
from sinkscope.figures.style import model_name, number, percent, source_line, visible
from sinkscope.glossary import DEFINITIONS
from sinkscope.reporting.content import MAIN, SUMMARY, Content, Item
from sinkscope.reporting.made import named


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
        content=content, names=names, columns=summary.columns, rows=formatted(summary)
    )


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def content_policy(*scripts: str) -> str:
    """What a page lets a browser do: run these scripts and no other, known by their hashes, and ask for nothing."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def template(source: str) -> jinja2.Template:
    """A template in which all text is escaped, and what cannot be seen in it is shown."""
    environment = jinja2.Environment(
        autoescape=True, finalize=_shown, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"inline_png": inline_png, "source_line": source_line, "MAIN": MAIN}
    return environment.from_string(source)


def _shown(value: Any) -> Any:
    """Text with its line breaks, control characters and marks that turn its direction made visible; else as it is."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value, spaces=False) if is_text and not value.isprintable() else value


def inline_png(figure: Any, dpi: int = 200) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with every character of every text visible: line breaks, null bytes and spaces of tokens escaped."""
    shown = table.copy()
    for column in shown.columns:
        if not pd.api.types.is_numeric_dtype(shown[column]):
            spaces = "token" in str(column)
            shown[column] = [
                visible(value, spaces=spaces) if isinstance(value, str) else value for value in shown[column]
            ]
    return shown


def formatted(table: pd.DataFrame) -> list[list[str]]:
    """The cells as a reader has them, row by row: whole numbers whole, others to three digits, nothing for NaN."""
    return [[_cell(value) for value in row] for row in readable(table).itertuples(index=False)]


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:d}".replace("-", "−") if isinstance(value, int) else number(float(value))


def script_json(value: Mapping[str, Any]) -> str:
    """JSON that nothing in it can end the <script> around it or open a comment in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
