"""The page that an audit makes: which types of models are measured right, and what is refused, and why."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sinkscope.figures.style import visible

CHECKS = {
    "capture": "its attention maps are compared with those of the model's own eager attention, and its logits inside a "
    "scope with those outside.",
    "perplexity": "losses under `Dense` are compared with those of one plain forward pass.",
    "streaming": "losses under `Window({window})` and `SinkWindow({sinks}, {window})` are compared with one token at a "
    "time on the model's own cache, whose entries are taken away by hand. Sinks are brought near by reading them again "
    "at later positions: nothing is rotated. Where a model reads more from positions than distances, such as the scale "
    "of its queries, it reads places in the text.",
    "cache": "logits of `SinkCache`, and the token that `generate` writes with it, are compared with the same loop.",
}
VERDICTS = {
    "right": "the largest error is at most the tolerance",
    "refused": "sinkscope says why it does not do it; the number leads to the sentence",
    "unchecked": "the model shows nothing to compare with; the number leads to the reason",
    "wrong": "the error is in brackets",
    "crash": "an exception that is no sentence of sinkscope",
    "not built": "no tiny model of this type could be built; the number leads to the reason",
}
NUMBERED = ("refused", "unchecked", "crash", "not built")


def compatibility_page(table: pd.DataFrame) -> str:
    """Markdown: counts, one row for each type, and the types under each sentence, of the table of `sinkscope.audit`."""
    said = _sentences(table)
    parts = [_introduction(table), _counts(table), _types(table, list(said))]
    for title, verdicts in (
        ("Refused", ("refused",)),
        ("Not checked", ("unchecked",)),
        ("Crashes", ("crash",)),
        ("Not built", ("not built",)),
    ):
        lines = [
            f"{number}. {_escaped(sentence)}\n   ({len(types)}: {', '.join(f'`{name}`' for name in types)})"
            for number, ((verdict, sentence), types) in enumerate(said.items(), 1)
            if verdict in verdicts
        ]
        if lines:
            parts.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _introduction(table: pd.DataFrame) -> str:
    made: dict[str, Any] = dict(table.attrs)  # type: ignore[arg-type]
    checks = "\n".join(f"- **{name}**: {text.format(**made)}" for name, text in CHECKS.items())
    return (
        "# Compatibility\n\n"
        f"Made by `sinkscope audit` with sinkscope {made['sinkscope']}, transformers {made['transformers']} and torch "
        f"{made['torch'].partition('+')[0]}. Do not edit it: run the command again.\n\n"
        "Of every type of causal language model that transformers knows, a tiny model with random weights is built, in "
        f"float32 on the CPU, and reads two texts of {made['tokens']} tokens. A type with a plus is a variant: a "
        "setting of the type that changes how it attends. What sinkscope says is compared with what the model does by "
        f"itself. An error is the largest difference: of a probability, where up to {made['tolerance_maps']:g} counts "
        f"as right, or of a logit or loss beside the largest one, where up to {made['tolerance']:g} does.\n\n{checks}"
    )


def _counts(table: pd.DataFrame) -> str:
    """How many types, and variants, there are of each verdict, and the largest error of those that are right."""
    is_variant = table["type"].str.contains("+", regex=False)
    shown = [verdict for verdict in VERDICTS if verdict in set(table["verdict"])]
    rows, titles = [], []
    for what, some in (("types", table[~is_variant]), ("variants", table[is_variant])):
        if some.empty:
            continue
        count = some["type"].nunique()
        titles.append(f"{count} {what if count != 1 else what.removesuffix('s')}")
        for check in CHECKS:
            found = some[some["check"] == check]
            counted = found["verdict"].value_counts()
            largest = found.loc[found["verdict"] == "right", "error"].max()
            rows.append(
                [
                    what,
                    check,
                    *(str(counted.get(verdict, 0)) for verdict in shown),
                    "" if largest != largest else f"{largest:.0e}",
                ]
            )
    grid = _grid(["", "check", *shown, "largest error where right"], rows)
    legend = "\n".join(f"- *{verdict}*: {VERDICTS[verdict]}." for verdict in shown)
    return f"## {' and '.join(titles)}\n\n{grid}\n\n{legend}"


def _types(table: pd.DataFrame, said: list[tuple[str, str]]) -> str:
    rows = []
    for name, findings in table.groupby("type", sort=True):
        cells = {row["check"]: _cell(row, said) for row in findings.to_dict("records")}
        rows.append([f"`{name}`", findings["class"].iloc[0], *(cells[check] for check in CHECKS)])
    return f"## Every type\n\n{_grid(['type', 'class', *CHECKS], rows)}"


def _cell(row: dict[Any, Any], said: list[tuple[str, str]]) -> str:
    verdict = str(row["verdict"])
    if verdict in NUMBERED:
        return f"{verdict} {said.index(_key(row)) + 1}"
    return verdict if verdict == "right" else f"**{verdict}** ({row['error']:.1g})"


def _sentences(table: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """The types under each verdict with a sentence; by verdict, then in the order in which they come."""
    said: dict[tuple[str, str], list[str]] = {}
    for verdict in NUMBERED:
        for row in table[table["verdict"] == verdict].sort_values("type", kind="stable").to_dict("records"):
            types = said.setdefault(_key(row), [])
            if row["type"] not in types:
                types.append(str(row["type"]))
    return said


def _key(row: dict[Any, Any]) -> tuple[str, str]:
    """A verdict and its sentence, without what is the type's own in it."""
    sentence = str(row["sentence"])
    for own in filter(None, (str(row["class"]), repr(row["type"]))):
        sentence = sentence.replace(own, "…")
    return str(row["verdict"]), sentence


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """One line of Markdown without cells, markup, links or pictures of its own; code between backticks stays."""
    return visible(" ".join(text.split()), spaces=False).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
