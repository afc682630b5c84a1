from __future__ import annotations

import doctest

import pytest

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
    (example,) = doctest.DocTestFinder(recurse=False).find(
        is_delimiter, "is_delimiter", globs={"is_delimiter": is_delimiter}
    )
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 0 and result.failed == 0
