"""Tables as files: CSV for programs, LaTeX for papers. Nothing in a cell is a command, in either."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError, first_line
from sinkscope.figures.style import source_json, source_line, visible
from sinkscope.reporting.markup import formatted, readable

_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # how text begins that a spreadsheet may run, or that was marked
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after the end of a row they are an option of it
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "␣": r"\textvisiblespace{}", "…": r"\ldots{}",
    "×": r"$\times$", "−": r"$-$", "·": r"$\cdot$", "α": r"$\alpha$", "ε": r"$\varepsilon$", "≥": r"$\geq$",
    "∞": r"$\infty$",
    **{raised: f"$^{{{plain}}}$" for raised, plain in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)},
})  # fmt: skip
_LIGATURE = re.compile(r"([-'`,])(?=\1)|[?!](?=`)")  # of TeX fonts: -- is a dash, '' a quotation mark
_SCRIPTS = {
    "Arabic": ("Noto Sans Arabic:mode=harf;script=arab", "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc"),
    "Chinese, Japanese or Korean": (
        "Noto Sans CJK SC:mode=harf",
        "\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff",
    ),
    "emoji": ("Noto Color Emoji:mode=harf", "\u2600-\u27bf\U0001f000-\U0001faff"),
}  # fmt: skip


def csv_text(table: pd.DataFrame, attributes: Mapping[Any, Any]) -> str:
    """CSV at full precision, with the column `source` naming where every row comes from."""
    return plain_csv(table.assign(source=source_line(attributes)))


def plain_csv(table: pd.DataFrame) -> str:
    """CSV in which no text is a formula: where a spreadsheet may run it, an apostrophe stands before it.

    So one does before text that begins with apostrophes and goes on like that, and `open_table` finds what was written.
    Numbers stay as they are, and line breaks are visible. Text is quoted where some holds what separates cells in the
    spreadsheets of other countries.
    """
    safe = readable(table)
    for column in safe.select_dtypes(exclude="number"):
        safe[column] = [_as_text(value) for value in safe[column]]
    safe = safe.rename(columns=lambda name: _as_text(visible(name, spaces=False)))
    words = [*safe.columns, *safe.select_dtypes(exclude="number").to_numpy().flat]
    splits = any(mark in str(word) for word in words for mark in ";\t|")
    return safe.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if splits else csv.QUOTE_MINIMAL)


def _as_text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _as_written(value: Any) -> Any:
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value) else value


@checks_types
def open_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """A table that sinkscope wrote as CSV, without the apostrophes that keep a spreadsheet from running its text.

    >>> list(sinkscope.open_table("table.csv"))
    ['policy', 'cache']

    Raises:
        SinkscopeError: no such file, or no table.
    """
    try:
        table = pd.read_csv(Path(path), keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as problem:
        raise SinkscopeError(f"{str(path)!r} cannot be read as a table: {first_line(problem)}.") from problem
    return table.rename(columns=_as_written).map(_as_written)


def latex_text(table: pd.DataFrame, attributes: Mapping[Any, Any], caption: str, label: str) -> str:
    """A booktabs table; \\usepackage{booktabs}. Every cell is escaped; its source is a comment above it."""
    kinds = "".join("r" if pd.api.types.is_numeric_dtype(table[c]) else "l" for c in table.columns)
    heads = [str(column).replace("_", " ") for column in table.columns]
    rows = formatted(table)
    lines = [
        f"% {source_line(attributes)}",
        f"% {source_json(attributes)}",
        "% needs \\usepackage{booktabs}",
        *(f"% {line}" for line in _fonts(caption + "".join(map("".join, [heads, *rows])))),
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_escape(caption)}}}",
        f"\\label{{tab:{re.sub(r'[^a-z0-9-]', '-', label)}}}",
        f"\\begin{{tabular}}{{{kinds}}}",
        "\\toprule",
        " & ".join(map(latex_escape, heads)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(latex_escape, row)) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """`text` as LaTeX that prints it; nothing in it can be a command, end the row or be an option of it."""
    apart = _LIGATURE.sub(lambda found: found[0] + "\0", visible(text, spaces=False))
    return apart.translate(_LATEX).replace("\0", r"\mbox{}")


def _fonts(text: str) -> list[str]:
    """What to put before the document so that every character of the text is printed."""
    if not any(_needs_font(character) for character in text):
        return []
    found = {script: font for script, (font, places) in _SCRIPTS.items() if re.search(f"[{places}]", text)}
    fallback = ", ".join(f"'{font}'" for font in found.values())
    return [
        f"pdfLaTeX cannot print its {', '.join(found) or 'letters'}; LuaLaTeX can, with these before the document:",
        "  \\usepackage[english,bidi=basic]{babel}",
        "  \\usepackage{fontspec}",
        f"  \\directlua{{luaotfload.add_fallback('sinkscope', {{{fallback}}})}}",
        "  \\setmainfont{Noto Sans}[RawFeature={fallback=sinkscope}]",
        "and these fonts of Google Noto; a character that none of them has is left out with a line in the log.",
    ]


def _needs_font(character: str) -> bool:
    """Whether pdfLaTeX stops at it: it is neither Latin nor one that is written as a command."""
    return ord(character) > 0x17F and ord(character) not in _LATEX and not 0x2010 <= ord(character) <= 0x2022
