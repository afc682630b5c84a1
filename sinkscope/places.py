"""Between the characters of a text and its tokens: where each token stands, and whose it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from sinkscope.arguments import is_listed, is_whole
from sinkscope.errors import SinkscopeError, shown
from sinkscope.tokens import TokenTexts, decoder


def text_of_tokens(tokenizer: Any, ids: Any) -> str:
    """The text of tokens [token], which offsets in it are counted in: special tokens written out.

    >>> sinkscope.text_of_tokens(tokenizer, tokenizer("the cat")["input_ids"])
    '<s>the cat'
    """
    return "".join(texts_of(tokenizer, ids))


def ids_of(ids: Any) -> list[int]:
    """The ids of one text, of [token] or [1, token]."""
    listed = ids.tolist() if hasattr(ids, "tolist") else list(ids) if is_listed(ids) else None
    if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], list):
        listed = listed[0]
    if not isinstance(listed, list) or not listed or not all(is_whole(each) for each in listed):
        raise SinkscopeError(f"ids={shown(ids)} are no tokens of one text; give whole numbers [token], one at least.")
    return [int(each) for each in listed]


def texts_of(tokenizer: Any, ids: Any) -> list[str]:
    """The text of each token [token], such that joined they are the text."""
    return TokenTexts(tokenizer)(ids_of(ids))


def specials(tokenizer: Any, ids: Any, texts: list[str]) -> list[bool]:
    """Which tokens stand for no text: those that decoding without special ones leaves out."""
    decode, known = decoder(tokenizer, special=False), dict[int, bool]()
    for token, text in zip(ids_of(ids), texts, strict=True):
        known.setdefault(token, bool(text) and not decode([token]) and not decode([token, token]))
    return [known[token] for token in ids_of(ids)]


def majority(texts: list[str], marks: np.ndarray) -> list[int]:
    """For each token the mark that most of its characters have, blanks aside; the first of several as frequent.

    A token without characters of its own is a part of the next character.
    """
    found, place = [], 0
    for text in texts:
        own = marks[place : place + max(1, len(text))].tolist()
        spoken = [mark for mark, letter in zip(own, text, strict=False) if not letter.isspace()] or own
        found.append(max(dict.fromkeys(spoken), key=spoken.count) if spoken else -1)
        place += len(text)
    return found


def same_words(one: str, other: str) -> bool:
    """Whether two texts are one but for blanks, which some tokenizers add and leave out."""
    return one == other or "".join(one.split()) == "".join(other.split())


def moved(marks: np.ndarray, text: str, other: str) -> np.ndarray:
    """The marks of the characters of a text, for another that is the same but for blanks."""
    if text == other:
        return marks
    spoken = iter([mark for mark, letter in zip(marks.tolist(), text, strict=True) if not letter.isspace()])
    found: list[int] = []
    for letter in other:
        found.append((found or marks.tolist())[-1 if found else 0] if letter.isspace() else next(spoken))
    return np.array(found)
