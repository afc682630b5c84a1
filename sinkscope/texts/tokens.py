"""Token ids of a text: the first ones exactly as the whole text gives them, without encoding the whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.texts.sources import not_blank, text_pieces

if TYPE_CHECKING:
    import torch

CHARACTERS_PER_TOKEN = 6
MARGIN = 64  # tokens next to a cut that are not trusted


def read_tokens(
    tokenizer: Any,
    source: str | os.PathLike[str] | None = None,
    limit: int = 4096,
    *,
    text: str | None = None,
    bos: bool | str = "auto",
    start: int = 0,
) -> torch.Tensor:
    """The first `limit` tokens of a text: LongTensor [1, T], T <= limit (fewer where the text is shorter).

    tokenizer: of transformers.
    source: as in `read_text`: None for the demo text, a UTF-8 file, or "hf:name[:config][:split]".
    text: the text itself, in place of a source.
    bos: "auto" adds the special tokens the tokenizer adds by itself; True puts exactly one BOS token in front
        and no other special token; False adds none. They count towards `limit`. `measure` records in
        attrs["bos"] whether its sequences start with the model's BOS token.
    start: how many tokens of the text to skip, counted without special tokens.

    Only as much text is read and encoded as the tokens asked for need, and the tokens are those of the whole
    text.

    Raises SinkscopeError for an empty or unreadable text, `limit` < 1, `start` < 0 or past the end of the
    text, and bos=True with a tokenizer that has no BOS token.
    """
    if tokenizer is None:
        raise SinkscopeError("A text needs a tokenizer and this model has none: pass one, or pass token ids yourself.")
    if limit < 1:
        raise SinkscopeError(f"limit is {limit}, but it is a number of tokens: give 1 or more.")
    if start < 0:
        raise SinkscopeError(f"start is {start}, but it is a number of tokens to skip: give 0 or more.")
    if bos not in ("auto", True, False):
        raise SinkscopeError(f"bos is {bos!r}, but it must be 'auto', True or False.")
    bos_id = getattr(tokenizer, "bos_token_id", None)
    if bos is True and bos_id is None:
        raise SinkscopeError("bos is True, but this tokenizer has no BOS token: use bos='auto' or bos=False.")
    if text is not None and source is not None:
        raise SinkscopeError("Both source and text were given: give one of them.")

    import torch

    pieces = text_pieces(source) if text is None else not_blank(iter([text]), "text=")
    body, complete = _first_tokens(tokenizer, pieces, start + limit)
    if start and len(body) <= start:
        raise SinkscopeError(f"start is {start}, but the text has only {len(body)} tokens.")
    body = body[start:]
    if bos == "auto":
        front, back = _special_tokens(tokenizer)
        ids = front + body + (back if complete else [])
    else:
        while body and body[0] == bos_id:  # a text that spells its own BOS
            body = body[1:]
        ids = ([bos_id] if bos is True and bos_id is not None else []) + body
    if not ids:
        raise SinkscopeError("The tokenizer makes no token of this text: give a text it knows the characters of.")
    return torch.tensor([ids[:limit]], dtype=torch.long)


def sequences(ids: torch.Tensor, length: int, count: int | None = None, *, bos: int | None = None) -> torch.Tensor:
    """Consecutive sequences that do not overlap: LongTensor [N, length].

    ids: one stream of tokens, LongTensor [T] or [1, T].
    length: tokens in each sequence, the BOS token included.
    count: how many; None for as many as the stream fills.
    bos: a token id to put in front of every sequence; the stream's own first token is kept, so read it with
        bos=False.

    Raises SinkscopeError for a stream that is too short, `length` that leaves no room for a token, `count` <
    1.
    """
    import torch

    stream = ids.reshape(-1)
    if stream.numel() != ids.shape[-1]:
        raise SinkscopeError(
            f"ids have the shape {list(ids.shape)}, but one stream of tokens, [T] or [1, T], is needed."
        )
    own = length - (bos is not None)
    if own < 1:
        raise SinkscopeError(f"length is {length}, but a sequence needs at least one token of the text.")
    if count is not None and count < 1:
        raise SinkscopeError(f"count is {count}, but at least one sequence is needed.")
    number = stream.numel() // own if count is None else count
    if number < 1 or number * own > stream.numel():
        raise SinkscopeError(
            f"{max(number, 1)} sequences with {own} tokens of the text in each need "
            f"{max(number, 1) * own} tokens, "
            f"but there are {stream.numel()}: read more text, or ask for fewer or shorter sequences."
        )
    rows = stream[: number * own].reshape(number, own)
    if bos is None:
        return rows.clone()
    return torch.cat([rows.new_full((number, 1), bos), rows], dim=1)


def _encode(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    except Exception as error:
        raise SinkscopeError(f"The tokenizer cannot encode this text: {first_line(error)}.") from error


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text by itself."""
    bare, full = _encode(tokenizer, "a"), _encode(tokenizer, "a", special=True)
    for first in range(len(full) - len(bare) + 1):
        if full[first : first + len(bare)] == bare:
            return full[:first], full[first + len(bare) :]
    return [], []


def _first_tokens(tokenizer: Any, pieces: Iterator[str], need: int) -> tuple[list[int], bool]:
    """The first `need` tokens, without special ones, and whether the text ends there.

    A cut changes only tokens near it: `MARGIN` tokens before a cut are dropped, and the rest are believed
    when a second, longer prefix of the text agrees on them. Otherwise both grow.
    """
    text = ""
    size = CHARACTERS_PER_TOKEN * (need + MARGIN)
    before: list[int] | None = None
    while True:
        while len(text) <= size and (piece := next(pieces, None)) is not None:
            text += piece
        if len(text) <= size:
            ids = _encode(tokenizer, text)
            return ids[:need], len(ids) <= need
        ids = _encode(tokenizer, text[: _safe_cut(text, size)])
        if len(ids) < need + MARGIN:
            before, size = None, 2 * size
        elif before == ids[:need]:
            return before, False
        else:
            before, size = ids[:need], size + size // 4


def _safe_cut(text: str, size: int) -> int:
    """The last place up to `size` where a word ends, so that none is torn; else `size` itself."""
    for place in range(size, max(size - 1000, 0), -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return size
