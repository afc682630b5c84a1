"""Tables as files: read back as they were, their source in them, nothing in a token understood as a command."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest

from sinkscope import SinkscopeError, open_table
from sinkscope.figures.style import visible
from sinkscope.reporting.tables import csv_text, latex_escape, latex_text, plain_csv
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
    assert len(back) == len(table) and back["token_text"].iloc[-1] == "'=1+1"
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


HOSTILE = [
    "=cmd|'/c calc'!A0", "+1-2", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1+1", "'=1", "''=1", "'", "it's", "1=1",
    " =1", "NA", "nan", "null", "a\nb", 'say "x", y', "\u2028=1",
]  # fmt: skip


def test_no_text_in_a_csv_is_a_formula_and_it_is_read_back_as_it_was(tmp_path):
    table = pd.DataFrame({"=name": HOSTILE, "value": np.linspace(-1, 1, len(HOSTILE)), "count": range(len(HOSTILE))})
    table["mixed"] = [-1.5, "-x", *[None] * (len(HOSTILE) - 2)]
    (tmp_path / "table.csv").write_text(plain_csv(table), encoding="utf-8", newline="")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    texts = [cell for row in rows for place, cell in enumerate(row) if place == 0]
    assert not [cell for cell in texts if cell[:1] in tuple("=+-@\t\r\n＝")]
    assert [row[1] for row in rows[1:]] == [str(value) for value in table["value"]]  # numbers keep their sign
    assert rows[1][3] == "-1.5" and rows[2][3] == "'-x"
    back = open_table(tmp_path / "table.csv")
    assert list(back["=name"]) == [visible(text, spaces=False) for text in HOSTILE]
    np.testing.assert_array_equal(back["value"], table["value"])


def test_what_is_no_table_is_a_sentence(tmp_path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "empty.csv", "binary.csv", "a\0b"):
        with pytest.raises(SinkscopeError, match=r"cannot be read as a table|names no file"):
            open_table(tmp_path / name)


@pytest.mark.parametrize(
    "first", ["[x]", "*", "[", "\n[x]", "\0", "\u202e", "\\\\[2ex]", "{", "}", "%", "~^", "\x0b\\input{x}"]
)
def test_no_cell_is_read_as_a_part_of_the_row_before_it(first):
    table = pd.DataFrame({first: [first, first], "mass": [0.1, 0.2]})
    text = latex_text(table, {"model": f"{first}\u2028\\input{{x}}"}, f"About {first}", "name")
    body = [line for line in text.splitlines() if not line.startswith("%")]
    inside = body[body.index("\\toprule") + 1 : body.index("\\bottomrule")]
    assert len(inside) == 4 and not [line for line in inside if line[0] in "[*"]
    assert not re.search(r"(?<![\\])%|\\input|\\\\(?! *$)", "\n".join(body), re.MULTILINE)
    for opened, closed in ("{}", "[]"):
        bare = [re.sub(r"\\[{}]|\{[\[\]]\}", "", line) for line in inside]
        assert all(line.count(opened) == line.count(closed) for line in bare)


def test_runs_of_marks_are_no_ligatures():
    assert latex_escape("--- '' ``") == r"-\mbox{}-\mbox{}- '\mbox{}' `\mbox{}`" and latex_escape("a-b") == "a-b"


def test_a_table_says_which_fonts_its_letters_need():
    def said(*texts: str) -> str:
        return latex_text(pd.DataFrame({"token": texts}), SOURCE, "", "name")

    assert "LuaLaTeX" not in said("plain", "é", "␣the", "10⁻⁵")
    assert "Noto Sans Arabic" in said("سلام") and "bidi=basic" in said("سلام")
    assert "Noto Sans CJK SC" in said("世界") and "Noto Sans CJK SC" in said("한국")
    assert "Noto Color Emoji" in said("😀") and "Arabic" not in said("😀")
    assert "\\setmainfont{Noto Sans}" in said("Ж")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_text_with_another_separator_is_one_cell_for_it_too(mark, tmp_path):
    table = pd.DataFrame({"name": [f"a{mark}=1+1", "b"], "value": [1.5, 2.0]})
    written = plain_csv(table)
    first = next(csv.reader(written.splitlines()[1:], delimiter=mark))
    assert not any(cell.startswith("=") for cell in first)
    (tmp_path / "table.csv").write_text(written)
    assert open_table(tmp_path / "table.csv")["name"].tolist() == [visible(f"a{mark}=1+1"), "b"]
