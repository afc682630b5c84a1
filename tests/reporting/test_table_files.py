"""Tables as files: read back as they were, their source in them, nothing in a token understood as a command."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from sinkscope.reporting.tables import csv_text, latex_escape, latex_text
from tests.support.naive_record import EVIL

SOURCE = {"model": "a/model", "revision": "r1", "text": "evil\nnewline % text", "date": "2020-02-02"}


@pytest.fixture
def table() -> pd.DataFrame:
    tokens = [*EVIL, " the", "=1+1"]
    return pd.DataFrame(
        {"token_text": tokens, "position": range(len(tokens)), "mass": np.linspace(0.1, 1, len(tokens))}
    )


def test_csv_keeps_full_precision_and_names_its_source_in_every_row(table):
    back = pd.read_csv(io.StringIO(csv_text(table, SOURCE)))
    np.testing.assert_array_equal(back["mass"], table["mass"])
    assert back["source"].str.contains("a/model").all()
    assert len(back) == len(table)
    assert back["token_text"][3] == "\\0" and back["token_text"][4] == "\\n" and back["token_text"][7] == "␣the"
    assert "\x00" not in csv_text(table, SOURCE)


def test_latex_is_a_booktabs_table_with_its_source_in_comments(table):
    text = latex_text(table, SOURCE, "A caption with 100%", "top_heads")
    for word in (
        "\\toprule",
        "\\midrule",
        "\\bottomrule",
        "\\caption{A caption with 100\\%}",
        "\\label{tab:top-heads}",
    ):
        assert word in text
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert "a/model" in comments[0] and '"revision": "r1"' in comments[1]
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(rows) == len(table) + 1
    assert all(row.replace("\\&", "").count("&") == 2 for row in rows)
    assert "\\frac" not in text and "$\\backslash" not in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a_b", r"a\_b"), ("50%", r"50\%"), (r"\input{x}", r"\textbackslash{}input\{x\}"),
     ("$x^2$", r"\$x\textasciicircum{}2\$"),
     ("a & b # ~", r"a \& b \# \textasciitilde{}"), ("␣the", r"\textvisiblespace{}the")],
)  # fmt: skip
def test_no_character_is_a_command_in_latex(text, escaped):
    assert latex_escape(text) == escaped
