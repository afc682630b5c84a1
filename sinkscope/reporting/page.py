"""report.html, one file that holds everything it shows and asks nothing of the network; and a view for notebooks."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Hashable, Mapping
from html import escape
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
import xarray as xr

from sinkscope import figures
from sinkscope.figures.style import model_name, number, source_line, visible
from sinkscope.reporting.content import MAIN, SUMMARY, Content, Item
from sinkscope.reporting.table_files import formatted


def description(item: Item, record: xr.Dataset) -> dict[str, Any] | None:
    """The figure of an item as plotly takes it; None where it is drawn on paper only."""
    describe = getattr(item.figure, "describe", None)
    return None if describe is None else figures.plotly_figure(describe(record))


def page(content: Content, files: list[str]) -> str:
    """The whole page.

    Args:
        content: what it shows.
        files: paths, relative to the page, that it may link to.
    """
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((resources.files(__package__) / "template.html").read_text(encoding="utf-8"))
    main = content.records[MAIN].attrs
    made = {name: description(item, content.source(name)) for name, item in content.items.items() if item.figure}
    descriptions = {name: each for name, each in made.items() if each is not None}
    return template.render(
        title=visible(model_name(main), spaces=False),
        headline=content.headline,
        source=source_line(main),
        tiles=_tiles(content.tables[SUMMARY]),
        notes=content.notes,
        sections=_sections(content, set(descriptions), files),
        tables=[_table(content, name, files) for name in content.tables],
        records=[path for path in files if path.endswith(".nc")],
        provenance={
            key: visible(value, spaces=False)
            for key, value in sorted({**main, "model": model_name(main)}.items())
            if key != "notes"
        },
        descriptions=_script_json(descriptions),
        plotly=get_plotlyjs(),
        style=(resources.files(__package__) / "page.css").read_text(encoding="utf-8"),
        script=(resources.files(__package__) / "page.js").read_text(encoding="utf-8"),
    )


def fragment(content: Content, names: list[str]) -> str:
    """A piece of HTML for a notebook, without a script: headline, notes, summary and the figures of these names."""
    summary = content.tables[SUMMARY][["quantity", "value", "lower", "upper", "null", "unit", "measured_on"]]
    heads = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in summary.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in formatted(summary))
    images = "".join(
        f'<img src="{inline_png(content.figures[name], dpi=110)}" alt="{escape(name)}" '
        'style="background:#fff;max-width:100%;border-radius:4px">'
        for name in names
    )
    notes = "".join(f"<p><em>{escape(note)}</em></p>" for note in content.notes)
    return (
        f'<div><p style="font-size:115%"><strong>{escape(content.headline)}</strong></p>{notes}'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f'<div style="display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start">{images}</div>'
        f'<p style="opacity:.7;font-size:85%">{escape(source_line(content.records[MAIN].attrs))}<br>'
        "report.figures[name], report.tables[name], report.save(directory)</p></div>"
    )


def inline_png(figure: Any, dpi: int = 200) -> str:
    """A figure as a data: URL."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def _script_json(value: Mapping[str, Any]) -> str:
    """JSON that nothing in it can end the <script> around it or open a comment in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sections(content: Content, interactive: set[str], files: list[str]) -> list[dict[str, Any]]:
    """Those that have a figure or a sentence, in order."""
    shown = [
        {
            "title": section.title,
            "plates": [
                _plate(content, item, item.name in interactive, files)
                for item in section.items
                if item.name in content.items and (item.figure is not None or item.sentence is not None)
            ],
        }
        for section in content.sections
    ]
    return [section for section in shown if section["plates"]]


def _plate(content: Content, item: Item, interactive: bool, files: list[str]) -> dict[str, Any]:
    drawn = item.figure is not None and not interactive
    return {
        "name": item.name,
        "title": item.title,
        "meaning": item.meaning,
        "finding": content.sentence(item.name),
        "source": source_line(content.source(item.name).attrs),
        "image": inline_png(content.figures[item.name]) if drawn else None,
        "interactive": interactive,
        "files": _links(f"figures/{item.name}.", files),
    }


def _table(content: Content, name: str, files: list[str]) -> dict[str, Any]:
    about, _ = content.captions[name]
    table = content.tables[name].drop(columns="note", errors="ignore")  # the notes stand in the tiles
    return {
        "name": name,
        "title": about.title,
        "meaning": about.meaning,
        "columns": [str(column).replace("_", " ") for column in table.columns],
        "numeric": [bool(pd.api.types.is_numeric_dtype(table[column])) for column in table.columns],
        "rows": formatted(table),
        "files": _links(f"tables/{name}.", files),
    }


def _links(start: str, files: list[str]) -> list[tuple[str, str]]:
    """PDF, CSV and so on, and the path of each."""
    return [(path.rpartition(".")[2].upper(), path) for path in files if path.startswith(start)]


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
        tiles.append(
            {
                "name": row["quantity"],
                "value": f"{scale * row['value']:.1f}%" if share else number(row["value"]),
                "unit": "" if share else row["unit"],
                "under": " · ".join(under),
                "on": row["measured_on"],
                "note": row["note"],
            }
        )
    return tiles
