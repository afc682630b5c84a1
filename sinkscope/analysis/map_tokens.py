"""The tokens given beside attention maps: texts or ids, one list for all sequences or one list for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from sinkscope.errors import SinkscopeError

FORMS = "give a list of texts or of ids, or one such list per sequence"


def checked_tokens(tokens: Any, lengths: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(ids, texts) as [sequence, token] arrays, of which one at least is None.

    tokens   None, T texts, T ids, or one such list per sequence.
    lengths  [sequence] tokens of each sequence. Past the end an id is -1 and a text is empty.
    Raises SinkscopeError if numbers of tokens and lengths differ, or texts and ids are mixed.
    """
    if tokens is None:
        return None, None
    if isinstance(tokens, (str, bytes)):
        raise SinkscopeError(f"tokens is one string, not the tokens of the maps: {FORMS}.")
    rows = _rows(tokens, len(lengths))
    for s, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if len(row) != length:
            raise SinkscopeError(
                f"sequence {s} has {len(row)} tokens, but its maps have {length}: give one token per position."
            )
    kinds = {_kind(token) for row in rows for token in row}
    longest = int(lengths.max())
    if kinds == {"text"}:
        texts = np.full((len(rows), longest), "", dtype=object)
        for s, row in enumerate(rows):
            texts[s, : len(row)] = [str(token) for token in row]
        return None, texts
    if kinds == {"id"}:
        ids = np.full((len(rows), longest), -1, dtype=np.int64)
        for s, row in enumerate(rows):
            ids[s, : len(row)] = [int(token) for token in row]
        if any((ids[s, : len(row)] < 0).any() for s, row in enumerate(rows)):
            raise SinkscopeError("a token id is negative: give ids of 0 or more, as the tokenizer makes them.")
        return ids, None
    raise SinkscopeError(f"tokens mix texts, ids or other things: {FORMS}.")


def _rows(tokens: Any, sequences: int) -> list[list[Any]]:
    try:
        items = list(tokens.tolist()) if hasattr(tokens, "tolist") else list(tokens)
    except TypeError as error:
        raise SinkscopeError(f"tokens is of type {type(tokens).__name__}: {FORMS}.") from error
    if items and not any(_kind(item) == "other" for item in items):
        return [items] * sequences
    try:
        rows = [list(item.tolist()) if hasattr(item, "tolist") else list(item) for item in items]
    except TypeError as error:
        raise SinkscopeError(f"tokens mix texts, ids or other things: {FORMS}.") from error
    if len(rows) != sequences:
        raise SinkscopeError(f"tokens has {len(rows)} lists for {sequences} sequences: give one list per sequence.")
    return rows


def _kind(token: Any) -> str:
    if isinstance(token, str):
        return "text"
    if isinstance(token, (int, np.integer)) and not isinstance(token, bool):
        return "id"
    # A list of 0-d tensors, as iterating over a tensor of ids gives.
    if getattr(token, "shape", None) == () and hasattr(token, "item") and isinstance(token.item(), int):
        return "id"
    return "other"
