"""Between text and token ids with any tokenizer: of transformers, of tokenizers, or a plain function of a text.

Nothing is assumed of its alphabet, and no text is made up to ask it something: what it does is seen on the text read.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any

from sinkscope.errors import SinkscopeError, first_line

UNFINISHED = "\ufffd"  # what bytes decode to that are no character yet
BYTES_OF_A_CHARACTER = 4  # in UTF-8, at most
LONG = 1 << 20  # characters from which on the ids of a text take a second, and are kept until another long one is read
_LAST: dict[str, array[int]] = {}


def encode(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """The ids of a text, with the special tokens that the tokenizer adds by itself if `special`.

    Raises:
        SinkscopeError: what is no tokenizer, or one that cannot encode this text.
    """
    if not is_tokenizer(tokenizer):
        raise no_tokenizer(tokenizer)
    key = _key(tokenizer, text, special) if len(text) >= LONG else ""
    if key and (last := _LAST.get(key)) is not None:
        return last.tolist()
    call = tokenizer if callable(tokenizer) else tokenizer.encode
    try:
        made = call(text, **_taken(call, {"add_special_tokens": special, "verbose": False}))
        ids = made["input_ids"] if isinstance(made, Mapping) else getattr(made, "ids", made)
        found = [int(token) for token in ids]
    except Exception as error:
        raise SinkscopeError(f"the tokenizer cannot encode this text: {first_line(error)}.") from error
    if key:
        _LAST.clear()
        _LAST[key] = array("q", found)
    return found


def _key(tokenizer: Any, text: str, special: bool) -> str:
    """A hash of all that the ids of a text follow from; empty for tokenizers that do not tell all of it."""
    kind, told = type(tokenizer), getattr(getattr(tokenizer, "backend_tokenizer", None), "to_str", None)
    if told is None or not kind.__module__.startswith("transformers."):
        return ""
    plain = {name: value for name, value in vars(tokenizer).items() if isinstance(value, (bool, int, str))}
    parts = (kind.__qualname__, repr(sorted(plain.items())), told(), str(special), text)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def no_tokenizer(given: Any) -> SinkscopeError:
    """What to say of anything else."""
    return SinkscopeError(f"text needs a tokenizer, got {given!r}; give the one that belongs to this model.")


def is_tokenizer(tokenizer: Any) -> bool:
    """Whether there is something that turns text into ids."""
    return callable(tokenizer) or callable(getattr(tokenizer, "encode", None))


def surrounding(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text by itself, as it does with this one.

    Raises:
        SinkscopeError: a text that it encodes otherwise when it adds special tokens.
    """
    bare, full = encode(tokenizer, text), encode(tokenizer, text, special=True)
    for first in range(len(full) - len(bare) + 1):
        if full[first : first + len(bare)] == bare:
            return full[:first], full[first + len(bare) :]
    raise SinkscopeError(
        "the tokenizer encodes this text in another way when it adds its special tokens, so they cannot be told from "
        "the text: choose with bos=True or bos=False."
    )


def decoder(tokenizer: Any, special: bool = True) -> Callable[[list[int]], str]:
    """The function that turns ids into text as it stands, special tokens written out if `special`.

    Raises:
        SinkscopeError: a tokenizer that cannot decode.
    """
    decode = getattr(tokenizer, "decode", None)
    if not callable(decode):
        raise SinkscopeError(f"a {type(tokenizer).__name__} has no decode(), which the text of tokens needs.")
    options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    return partial(decode, **_taken(decode, options))


def pieces(decode: Callable[[list[int]], str], tokens: Iterable[int]) -> Iterator[str]:
    """The text that each token adds to those before it; "" until its last character is complete.

    Joined, they are the decoded text, but for part of a character at its end.
    """
    ids: list[int] = []  # those of the last piece, and those not shown yet
    shown = 0
    for token in tokens:
        ids.append(token)
        before, text = decode(ids[:shown]), decode(ids)
        if len(text) > len(before) and not text.endswith(UNFINISHED):
            ids = ids[shown:]
            shown = len(ids)
            yield text[len(before) :]
        else:
            yield ""


class TokenTexts:
    """The text of each token, such that together they are the text, as far as the tokenizer tells.

        TokenTexts(tokenizer)([1, 278, 6635])  # ["<s>", " the", " cat"]

    A token is decoded behind itself: SentencePiece drops the blank in front of a text, and WordPiece writes blanks
    between words. A character of several tokens stands with the last of them, and the others are empty; bytes that are
    no character are U+FFFD.

    Args:
        tokenizer: with `decode`.

    Raises:
        SinkscopeError: a tokenizer that cannot decode, or not these ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._decode, self._name = decoder(tokenizer, special=False), decoder(tokenizer)
        self._known: dict[int, tuple[str, bool]] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        """The texts of the tokens of one text [token]."""
        tokens = [int(token) for token in ids]
        texts, special = [list(column) for column in zip(*map(self._text, tokens), strict=True)] or [[], []]
        self._complete(tokens, texts)
        whole = self._decode(tokens)
        if _spells("".join(text for text, name in zip(texts, special, strict=True) if not name), whole):
            return texts
        # what a token says depends on its neighbours, as with blanks behind words
        found = list(pieces(self._decode, tokens))
        found[-1] += whole[len("".join(found)) :]
        return [text if name else piece for text, name, piece in zip(texts, special, found, strict=True)]

    def of(self, token: int) -> str:
        """The text of a token anywhere but in front."""
        return self._text(token)[0]

    def _text(self, token: int) -> tuple[str, bool]:
        """The text of a token, and whether it is a name: that of one that stands for no text."""
        if token not in self._known:
            try:
                text = self._behind_itself(token)
                name = "" if text else self._name([token])
            except Exception as error:
                raise SinkscopeError(
                    f"the tokenizer cannot decode token {token} ({first_line(error)}); give the one that belongs to "
                    "this model."
                ) from error
            self._known[token] = text or name, bool(name)
        return self._known[token]

    def _behind_itself(self, token: int) -> str:
        once, twice = self._decode([token]), self._decode([token, token])
        text = twice[len(once) :] if twice.startswith(once) else once
        return once if not text or (text != once and self._stands_without_blank(token, once)) else text

    def _stands_without_blank(self, token: int, text: str) -> bool:
        """Whether the blank between two of a token is decode's own: without it they are read as the same tokens."""
        try:
            return bool(text) and encode(self._tokenizer, text + text) == [token, token]
        except SinkscopeError:
            return False

    def _complete(self, tokens: list[int], texts: list[str]) -> None:
        """Put characters of several tokens with the last of them."""
        stop = 0
        for unfinished, run in groupby(texts[:], key=lambda text: UNFINISHED in text):
            place, stop = stop, stop + len(list(run))
            said = self._decode(tokens[place:stop]) if unfinished else ""
            while unfinished and place < stop:
                place = self._complete_one(tokens, texts, range(place, stop), said)

    def _complete_one(self, tokens: list[int], texts: list[str], run: range, said: str) -> int:
        """Put the first character of a run, which says so, with its last token; the place behind it."""
        for end in range(run.start + 2, min(run.start + BYTES_OF_A_CHARACTER, run.stop) + 1):
            text = self._decode(tokens[run.start : end])
            if UNFINISHED not in text and text in said:
                texts[run.start : end] = [""] * (end - run.start - 1) + [text]
                return end
        return run.start + 1


def _spells(joined: str, whole: str) -> bool:
    """Whether `joined` is `whole` without some of its blanks, marks for bytes that are no character aside."""
    joined, whole = (re.sub(f"{UNFINISHED}+", UNFINISHED, text) for text in (joined, whole))
    return joined.replace(" ", "") == whole.replace(" ", "") and _blanks(joined) - {0} <= _blanks(whole)


def _blanks(text: str) -> set[int]:
    """Where blanks stand, counted in the characters before them that are none."""
    return {found.start() - number for number, found in enumerate(re.finditer(" ", text))}


def _taken(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a function takes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled, and without a signature
        return options
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}
