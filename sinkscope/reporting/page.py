"""report.html: one file that holds everything it shows, and asks nothing of the network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Hashable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd

from sinkscope.figures.provenance import model_name, source_line
from sinkscope.figures.style import number
from sinkscope.figures.tokens import visible
from sinkscope.reporting.headline import headline
from sinkscope.reporting.interactive import INTERACTIVE
from sinkscope.reporting.plates import SECTIONS
from sinkscope.reporting.table_files import formatted
from sinkscope.reporting.tables import CONTENTS

if TYPE_CHECKING:
    from sinkscope.reporting.document import Report


def page(report: Report, files: list[str]) -> str:
    """The whole page. `files`: paths, relative to the page, that it may link to."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((resources.files(__package__) / "template.html").read_text(encoding="utf-8"))
    main = report.records["text"]
    return template.render(
        title=visible(model_name(main.attrs), spaces=False),
        headline=headline(report.records),
        source=source_line(main.attrs),
        tiles=_tiles(report.tables["summary"]),
        notes=report.notes,
        sections=_sections(report, files),
        tables=[_table(report, name, files) for name in report.tables],
        records=[path for path in files if path.endswith(".nc")],
        provenance={
            key: visible(value, spaces=False)
            for key, value in sorted({**main.attrs, "model": model_name(main.attrs)}.items())
            if key != "notes"
        },
        descriptions=_script_json(_descriptions(report)),
        plotly=get_plotlyjs(),
        style=(resources.files(__package__) / "page.css").read_text(encoding="utf-8"),
        script=(resources.files(__package__) / "page.js").read_text(encoding="utf-8"),
    )


def inline_png(figure: Any, dpi: int = 200) -> str:
    """A figure as a data: URL."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def _descriptions(report: Report) -> dict[str, Any]:
    made = {}
    for name, plate in report.figures.plates.items():
        record = plate.record(report.records)
        if name in INTERACTIVE and record is not None:
            made[name] = INTERACTIVE[name](record)
    return made


def _script_json(value: Mapping[str, Any]) -> str:
    """JSON that nothing in it can end the <script> around it or open a comment in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sections(report: Report, files: list[str]) -> list[dict[str, Any]]:
    """Those that have a figure, in order."""
    shown = {
        title: [_plate(report, plate.name, files) for plate in plates if plate.name in report.figures]
        for title, plates in SECTIONS.items()
    }
    return [{"title": title, "plates": plates} for title, plates in shown.items() if plates]


def _plate(report: Report, name: str, files: list[str]) -> dict[str, Any]:
    plate = report.figures.plates[name]
    record = plate.record(report.records)
    assert record is not None
    return {
        "name": name,
        "title": plate.title,
        "meaning": plate.meaning,
        "finding": report.finding(name),
        "source": source_line(record.attrs),
        "image": None if name in INTERACTIVE else inline_png(report.figures[name]),
        "files": [(path.rpartition(".")[2].upper(), path) for path in files if path.startswith(f"figures/{name}.")],
    }


def _table(report: Report, name: str, files: list[str]) -> dict[str, Any]:
    table = report.tables[name].drop(columns="note", errors="ignore")  # the notes stand in the tiles
    numeric = [bool(pd.api.types.is_numeric_dtype(table[column])) for column in table.columns]
    return {
        "name": name,
        "title": CONTENTS[name].title,
        "meaning": CONTENTS[name].meaning,
        "columns": [str(column).replace("_", " ") for column in table.columns],
        "numeric": numeric,
        "rows": formatted(table),
        "files": [(path.rpartition(".")[2].upper(), path) for path in files if path.startswith(f"tables/{name}.")],
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
