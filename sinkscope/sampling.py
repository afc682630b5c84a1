"""Several sequences of tokens from one text or more: one behind the other, or spread over all of it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sinkscope.arguments import checks_types, is_listed, is_whole, several, whole_number
from sinkscope.errors import SinkscopeError, shown
from sinkscope.texts import read_stream, text_name

if TYPE_CHECKING:
    import torch

STARTS = ("spaced", "random")
COUNT = 8  # segments, where nobody says how many
WHOLE = 2**40  # more tokens than any text has


@checks_types
def sequences(
    ids: torch.Tensor, length: int, count: int | None = None, *, bos: int | Sequence[int] | None = None
) -> torch.Tensor:
    """Consecutive sequences that do not overlap: LongTensor [N, length].

    >>> sinkscope.sequences(ids[0], 8).shape
    torch.Size([5, 8])

    Args:
        ids: one stream of tokens, LongTensor [T] or [1, T].
        length: tokens in each sequence, those put in front included.
        count: how many; None for as many as the stream fills.
        bos: a token id, or several, to put in front of every sequence; the stream's own first token is kept, so read
            it with bos=False.

    Raises:
        SinkscopeError: a stream that is too short, `length` that leaves no room for a token, `count` < 1.
    """
    import torch

    stream, front = _stream(ids), _front(bos)
    own = _room(length, front)
    if count is not None and count < 1:
        raise SinkscopeError(f"count is {count}, but at least one sequence is needed.")
    number = stream.numel() // own if count is None else count
    if number < 1 or number * own > stream.numel():
        raise SinkscopeError(
            f"{max(number, 1)} sequences with {own} tokens of the text in each need {max(number, 1) * own} tokens, but "
            f"there are {stream.numel()}: read more text, or ask for fewer or shorter sequences."
        )
    rows = stream[: number * own].reshape(number, own)
    return torch.cat([rows.new_tensor(front).expand(number, -1), rows], dim=1)


@checks_types
def segments(
    ids: torch.Tensor,
    length: int,
    count: int | None = None,
    *,
    starts: str | Iterable[int] = STARTS[0],
    seed: int = 0,
    bos: int | Sequence[int] | None = None,
) -> torch.Tensor:
    """Segments from all over a stream of tokens, which do not overlap: LongTensor [N, length].

    What is measured on the opening of a text is of that opening. Segments of the whole text say how it differs from
    place to place, and an interval over them is one over places.

    >>> sinkscope.segments(ids[0], 8, count=4).shape
    torch.Size([4, 8])

    Args:
        ids: one stream of tokens, LongTensor [T] or [1, T], read with bos=False.
        length: tokens in each segment, those put in front included.
        count: how many; 8 when None, or as many as `starts` names.
        starts: "spaced", at equal distances from the first token on; "random", every choice that does not overlap as
            likely as any other; or the places themselves.
        seed: of random starts.
        bos: a token id, or several, to put in front of every segment.

    Raises:
        SinkscopeError: a stream that is too short, segments that overlap or reach past its end, starts of no kind.
    """
    import torch

    stream, front = _stream(ids), _front(bos)
    own = _room(length, front)
    places = _places(stream.numel(), own, count, starts, seed)
    rows = torch.stack([stream[start : start + own] for start in places])
    return torch.cat([rows.new_tensor(front).expand(len(places), -1), rows], dim=1)


@checks_types
def read_segments(
    tokenizer: Any,
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    length: int = 1024,
    count: int | None = None,
    *,
    starts: str | Iterable[int] = STARTS[0],
    seed: int = 0,
    within: int | None = None,
) -> torch.Tensor:
    """`segments` of one text or of several, each with what the tokenizer puts in front: LongTensor [N, length].

    >>> sinkscope.read_segments(tokenizer, "book.txt", 16, count=4).shape
    torch.Size([4, 16])

    Args:
        tokenizer: of transformers.
        source: as in `read_text`, or several, of which each gives `count` segments, in their order.
        length, count, starts, seed: as in `segments`.
        within: of how many first tokens of a text; all of it when None, which a dataset ("hf:name") may not have an end
            to: say it there.

    Raises:
        SinkscopeError: as `segments` and `read_text`; a text that is given twice; a dataset without `within`.
    """
    import torch

    found: list[torch.Tensor] = []
    sources = [None] if source is None else several(source, "source")
    if len({str(each) for each in sources}) < len(sources):
        raise SinkscopeError(f"source={shown(source)} has a text twice, whose segments would overlap: give each once.")
    if within is not None:
        whole_number(within, "within", 1)
    for each in sources:
        if within is None and isinstance(each, str) and each.startswith("hf:"):
            raise SinkscopeError(f"{each!r} may have no end: say within how many tokens, such as within=1_000_000.")
        stream, front = read_stream(tokenizer, each, within or WHOLE)
        try:
            found.append(segments(stream, length, count, starts=starts, seed=seed, bos=front))
        except SinkscopeError as problem:
            raise SinkscopeError(f"{text_name(each)}: {problem}") from problem
    return torch.cat(found)


def _places(size: int, own: int, count: int | None, starts: Any, seed: int) -> list[int]:
    """Where segments of `own` tokens start in a text of `size`."""
    if not isinstance(starts, str):
        places = several(starts, "starts") if is_listed(starts) else []
        if not places or not all(is_whole(place) and place >= 0 for place in places):
            raise SinkscopeError(
                f"starts={shown(starts)} are no places in a text: give whole numbers from 0 on, or "
                f"{' or '.join(map(repr, STARTS))}."
            )
        if count not in (None, len(places)):
            raise SinkscopeError(f"count is {shown(count)}, but there are {len(places)} starts: leave count out.")
        places.sort()
        for one, other in zip(places, [*places[1:], size], strict=True):
            if other - one < own:
                what = f"reaches past the end, {size}" if other == size else f"overlaps with that from {other}"
                raise SinkscopeError(f"the segment of {own} tokens from {one} {what}: give other starts.")
        return [int(place) for place in places]
    if starts not in STARTS:
        raise SinkscopeError(f"starts={starts!r} is unknown: give {' or '.join(map(repr, STARTS))}, or places.")
    count = COUNT if count is None else whole_number(count, "count", 1)
    spare = size - count * own
    if spare < 0:
        raise SinkscopeError(
            f"{count} segments with {own} tokens of the text in each need {count * own} tokens, but there are {size}: "
            "read more text, or ask for fewer or shorter segments."
        )
    if starts == "spaced":
        return [number * size // count for number in range(count)]
    # segments as single places, so that every choice without overlap is one set of them
    chosen = sorted(random.Random(seed).sample(range(spare + count), count))
    return [place + number * (own - 1) for number, place in enumerate(chosen)]


def _stream(ids: torch.Tensor) -> torch.Tensor:
    stream = ids.reshape(-1)
    if stream.numel() != ids.shape[-1]:
        raise SinkscopeError(
            f"ids have the shape {list(ids.shape)}, but one stream of tokens, [T] or [1, T], is needed."
        )
    return stream


def _front(bos: Any) -> list[int]:
    return [] if bos is None else [whole_number(each, "bos", 0) for each in several(bos, "bos")]


def _room(length: int, front: list[int]) -> int:
    """Tokens of the text in each sequence."""
    if length - len(front) < 1:
        raise SinkscopeError(f"length is {length}, but a sequence needs at least one token of the text.")
    return length - len(front)
