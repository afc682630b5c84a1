from __future__ import annotations

import doctest

import pytest

from sinkscope.analysis import discovery as token_texts
from sinkscope.analysis.discovery import is_delimiter

PUNCTUATION = [".", ",", " .", "...", '."', "\u2014", "\u3002", "\u3001", "\u061f", "<", "=", "Ġ,", "▁."]
SPACES = ["\n", "\n\n", "\t", " ", "\u00a0", "\x00", "Ċ", "▁", "<0x0A>"]
SPECIAL = [
    "<s>",
    "</s>",
    "<bos>",
    "<|endoftext|>",
    "<|im_start|>",
    "<\uff5cend\u2581of\uff5c>",
    "[CLS]",
    "[SEP]",
]
OTHERS = ["", "a", " the", "Ġthe", "▁the", "1", "a.", "<0x41>", "\u7684", "é", "[cls]", "<a b>", "\ufffd"]


@pytest.mark.parametrize("text", PUNCTUATION + SPACES + SPECIAL)
def test_delimiters(text):
    assert is_delimiter(text)


@pytest.mark.parametrize("text", OTHERS)
def test_other_tokens(text):
    assert not is_delimiter(text)


def test_examples_in_the_docstrings():
    result = doctest.testmod(token_texts)
    assert result.attempted > 0 and result.failed == 0
