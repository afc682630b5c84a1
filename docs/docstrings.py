"""Docstrings as the site needs them: columns of names and what they mean become lists of definitions.

Docstrings are written to be read in a terminal, where two columns say most in the least room:

    policy, sinks       as the record has them
    ppl, low, high      perplexity and its interval,
                        over the tokens scored
"""

from __future__ import annotations

import re
from typing import Any

ROW = re.compile(r"(?P<indent> *)(?P<name>[^\s:-][^:]*?)(?P<gap> {2,})(?P<text>\S.*)")
BAR = re.compile(r"\|(?=[^\s|`][^|`]*\|)|(?<=[^\s|`])\|")


def setup(app: Any) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    return {"parallel_read_safe": True}


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [escaped(each) for each in with_definitions(lines)]


def escaped(line: str) -> str:
    """Without what RST would take for its own marks: |x|, **options, and a letter right behind `a name`."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    for place in range(0, len(parts), 2):
        parts[place] = re.sub(r"\*\*(?=\w)", r"\*\*", BAR.sub(r"\|", parts[place]))
        if place and parts[place][:1].isalnum():
            parts[place] = "\\ " + parts[place]  # `Report`s
    return "".join(parts)


def with_definitions(lines: list[str]) -> list[str]:
    """The lines, with each block of two columns as a list of definitions."""
    made: list[str] = []
    place = 0
    while place < len(lines):
        column = start_of_second_column(lines, place)
        if column is None:
            made.append(lines[place])
            place += 1
            continue
        indent = len(lines[place]) - len(lines[place].lstrip())
        margin = " " * indent
        if made and made[-1].strip():
            made.append("")
        while place < len(lines) and lines[place].strip():
            line = lines[place]
            own = len(line) - len(line.lstrip())
            if own < indent or (own == indent and not is_row(line, column)):
                break
            row = ROW.fullmatch(line)
            if own > indent:
                made.append(f"{margin}    {line.strip()}")
            elif row:
                made += [f"{margin}{row['name']}", f"{margin}    {row['text']}"]
            else:
                made.append(line)  # a name that fills its line
            place += 1
        made.append("")
    return made


def is_row(line: str, column: int) -> bool:
    row = ROW.fullmatch(line)
    return bool(row) or (len(line.rstrip()) < 100 and len(line) >= column - 2 and "." not in line[-1:])


def start_of_second_column(lines: list[str], place: int) -> int | None:
    """Where the second column begins of a block of two that begins here: a row, and a row or its second line."""
    row = ROW.fullmatch(lines[place])
    if not row or lines[place].rstrip().endswith("::") or lines[place].lstrip().startswith((">>>", "...")):
        return None
    column = row.start("text")
    following = lines[place + 1] if place + 1 < len(lines) else ""
    own = len(following) - len(following.lstrip())
    second = ROW.fullmatch(following)
    return column if not following.strip() or own == column or second else None
