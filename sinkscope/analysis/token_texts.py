"""What a token's text says: which tokens are delimiters."""

from __future__ import annotations

import re
import string
import unicodedata

import xarray as xr

SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z]+\d*\]")
"""<s>, <|im_start|>, <bos>, [CLS]: how tokenizers write tokens that stand for no text."""

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WRITTEN_SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})
"""How byte-level and SentencePiece vocabularies write white space."""


def text_of(record: xr.Dataset, sequence: int, position: int) -> str:
    """The text of the token at these indices; "" if the record has no texts."""
    if "token_text" not in record.coords:
        return ""
    return str(record["token_text"].transpose("sequence", "token").values[sequence, position])


def is_delimiter(text: str) -> bool:
    """Whether a token is only punctuation, white space or control characters, or a special token.

    >>> [is_delimiter(text) for text in (".", "\\n", "<s>", "<|im_start|>", "[SEP]", "Ċ", "<0x0A>")]
    [True, True, True, True, True, True, True]
    >>> [is_delimiter(text) for text in (" the", "a.", "")]
    [False, False, False]
    """
    if byte := BYTE.fullmatch(text):
        text = chr(int(byte[1], 16))
    elif SPECIAL.fullmatch(text):
        return True
    text = text.translate(WRITTEN_SPACES)
    return bool(text) and all(_separates(character) for character in text)


def _separates(character: str) -> bool:
    return (
        character in string.punctuation
        or unicodedata.category(character)[0] in "PZ"
        or unicodedata.category(character) == "Cc"
    )
