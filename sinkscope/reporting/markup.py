"""HTML of reports and of pages of the explorer: templates that escape, what a page may do, and cells to be read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from sinkscope.figures.style import number, source_line, visible


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
    environment.globals |= {"inline_png": inline_png, "source_line": source_line}
    return environment.from_string(source)


def _shown(value: Any) -> Any:
    """Text with its line breaks, control characters and marks that turn its direction made visible; else as it is."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value, spaces=False) if is_text and not value.isprintable() else value


def inline_png(figure: Any, dpi: int = 200) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def script_json(value: Mapping[str, Any]) -> str:
    """JSON that nothing in it can end the <script> around it or open a comment in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
