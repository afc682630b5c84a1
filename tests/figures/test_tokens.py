"""Tokens of any script, and of none, shown as they are and unable to break a drawing."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope import figures
from sinkscope.figures.fonts import glyphs
from sinkscope.figures.style import drawable, visible
from tests.support.synthetic import synthetic_record

NASTY = [
    "\n",
    "\x00",
    "$\\frac{",
    "<img src=x onerror=alert(1)>",
    "汉字",
    "हिन्दी",
    "\u200b",
    "",
    " ",
    "\\",
    "$",
    "%",
    "ع",
    "🙂",
]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"), ("\n", "\\n"), ("\x00", "\\0"), ("\t\r", "\\t\\r"), ("", "(empty)"),
        ("a\u200bb", "a\\u200bb"),
        ("\u202e", "\\u202e"), ("\ud83d", "\\ud83d"), ("é", "é"), ("汉", "汉"), ("\x1b[31m", "\\x1b[31m"),
    ],
)  # fmt: skip
def test_what_has_no_ink_is_escaped(token, shown):
    assert visible(token) == shown


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=20))
def test_visible_text_holds_no_control_character_and_drawable_text_only_glyphs_of_the_font(text):
    assert all(character.isprintable() for character in visible(text))
    assert all(ord(character) in glyphs() for character in drawable(text))


def test_long_tokens_are_cut_with_a_mark():
    assert drawable("x" * 50, limit=10) == "x" * 9 + "…"


@pytest.mark.slow
def test_a_figure_of_nasty_tokens_draws_without_a_warning_in_every_format():
    record = synthetic_record(sequences=1, layers=2, heads=2, tokens=64)
    texts = record["token_text"].values.astype("U40")
    texts[0, : len(NASTY)] = NASTY
    received = record["received"].values
    received[..., [0, 2, 4, 6, 8, 10, 12]] *= 30
    record = record.assign(received=(record["received"].dims, received))
    record = record.assign_coords(token_text=(("sequence", "token"), texts))
    record.attrs |= {"model": "evil $\\frac{1}{ model 汉", "text": "line\nbreak $x"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.received_by_position(record)
        for kind in ("png", "svg", "pdf"):
            figure.savefig("/dev/null", format=kind)
    assert len(figure.axes[0].texts) >= 4
