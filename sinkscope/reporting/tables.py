"""Tables as files: CSV for programs, LaTeX for papers. Nothing in a cell is a command, in either."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinkscope.figures.style import source_json, source_line
from sinkscope.reporting.page import formatted, readable

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "␣": r"\textvisiblespace{}", "…": r"\ldots{}",
    "×": r"$\times$", "−": r"$-$", "·": r"$\cdot$", "α": r"$\alpha$", "ε": r"$\varepsilon$", "≥": r"$\geq$",
    "∞": r"$\infty$",
    **{raised: f"$^{{{plain}}}$" for raised, plain in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)},
})  # fmt: skip


def csv_text(table: pd.DataFrame, attributes: Mapping[Any, Any]) -> str:
    """CSV at full precision, with the column `source` naming where every row comes from."""
    return readable(table).assign(source=source_line(attributes)).to_csv(index=False, lineterminator="\n")


def latex_text(table: pd.DataFrame, attributes: Mapping[Any, Any], caption: str, label: str) -> str:
    """A booktabs table; \\usepackage{booktabs}. Every cell is escaped; its source is a comment above it."""
    kinds = "".join("r" if pd.api.types.is_numeric_dtype(table[c]) else "l" for c in table.columns)
    heads = [latex_escape(str(column).replace("_", " ")) for column in table.columns]
    lines = [
        f"% {source_line(attributes)}",
        f"% {source_json(attributes)}",
        "% needs \\usepackage{booktabs}; letters outside Latin need LuaLaTeX or XeLaTeX",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_escape(caption)}}}",
        f"\\label{{tab:{re.sub(r'[^a-z0-9-]', '-', label)}}}",
        f"\\begin{{tabular}}{{{kinds}}}",
        "\\toprule",
        " & ".join(heads) + " \\\\",
        "\\midrule",
        *(" & ".join(map(latex_escape, row)) + " \\\\" for row in formatted(table)),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """`text` as LaTeX that prints it; nothing in it can be a command or end the row."""
    return text.translate(_LATEX)
