"""How a report shows itself in a notebook: the sentence, the summary and a few figures; no script in it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from sinkscope.figures.provenance import source_line
from sinkscope.reporting.page import inline_png
from sinkscope.reporting.table_files import formatted

if TYPE_CHECKING:
    from sinkscope.reporting.document import Report


def fragment(report: Report, names: list[str]) -> str:
    """A piece of HTML: headline, notes, summary table and the figures of these names as PNG."""
    summary = report.tables["summary"][["quantity", "value", "lower", "upper", "null", "unit", "measured_on"]]
    images = "".join(
        f'<img src="{inline_png(report.figures[name], dpi=110)}" alt="{escape(name)}" '
        'style="background:#fff;max-width:100%;border-radius:4px">'
        for name in names
    )
    notes = "".join(f"<p><em>{escape(note)}</em></p>" for note in report.notes)
    return (
        f'<div><p style="font-size:115%"><strong>{escape(report.headline)}</strong></p>{notes}'
        f"{_table(summary)}"
        f'<div style="display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start">{images}</div>'
        f'<p style="opacity:.7;font-size:85%">{escape(source_line(report.records["text"].attrs))}<br>'
        "report.figures[name], report.tables[name], report.save(directory)</p></div>"
    )


def _table(table: pd.DataFrame) -> str:
    heads = "".join(f"<th>{escape(str(column).replace('_', ' '))}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in formatted(table))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
