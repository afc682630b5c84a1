"""Recall by distance: the loss of a passage the second time it comes, against how many tokens ago it came first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor, cat, nn

from sinkscope.arguments import checks_types, one_or_several, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import Run, check_run, losses_of, named_ways
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Dense, Policy, SinkWindow, Window
from sinkscope.scope.measure import texts_of

DISTANCES = (64, 128, 256, 512, 1024)


class Passages(NamedTuple):
    """What is read.

    Attributes:
        texts: [distance, passage, (passage read twice, another one in the first place)], one behind the other.
        distances: in order.
        length: tokens of a passage.
        starts: [passage] where each begins in the whole text.
        controls: texts of a passage and a distance, one or two.
    """

    texts: list[Tensor]
    distances: list[int]
    length: int
    starts: np.ndarray
    controls: int


@checks_types
def recall(
    model: nn.Module,
    ids: Tensor,
    policies: Iterable[Policy] = (Dense(), Window(256), SinkWindow(4, 252)),
    *,
    distances: int | Sequence[int] = DISTANCES,
    passage: int = 32,
    passages: int = 8,
    control: bool = True,
    block: int = 1024,
    normaliser: Normaliser | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """What a model still knows word for word of a passage that it read so many tokens ago.

    A text is a piece of `ids` as long as the distance, and then its first `passage` tokens once more: every token of
    them comes again after exactly so many tokens. The pieces of all distances begin at the same places, spread evenly
    over `ids`. A cache that has dropped the passage has of it what later tokens took in, and, with sinks, its own first
    tokens, since each text begins with it.

    The first reading has no text before it, so a part of what the second one gains is that of any context. The control
    tells it: the same text with another passage in the first place, one from half of `ids` away, so that the passage is
    read for the first time at the same place and behind the same tokens. What it costs there, less what it costs read
    again, is what the first reading gave.

    >>> record = sinkscope.recall(model, ids[:1], distances=8, passage=4, passages=2)
    >>> record.sizes["distance"]
    1

    Args:
        model: a decoder with a language head, in eval mode.
        ids: [token] or [1, token], at least the longest distance and as many tokens more as there are passages.
        policies: which keys a query may see.
        distances: in tokens, each at least `passage`.
        passage: tokens in a passage, two at least.
        passages: how many.
        control: whether to read the control, which takes as long as the rest.
        block, normaliser, checkpoint, max_memory, progress, attributes: as of `sinkscope.perplexity`.

    Returns:
        A record with `nll` [policy, distance, passage, place]: losses in nats of the second reading, `first_nll` those
        of the first, and `control_nll` those behind another passage; NaN at place 0, which nothing in the passage
        predicts. Passages that share tokens are one to an interval (`same_text`).

    Raises:
        SinkscopeError: a distance shorter than the passage, a text too short, or as `perplexity`.
    """
    given, ways = passages_of(ids, distances, passage, passages, control), named_ways(policies)
    length = given.length
    run = Run(block, normaliser=normaliser, asked=(*range(length - 1), *range(-length - 1, -1)))
    check_run(model, given.texts, run)
    record = losses_of(
        model, given.texts, ways, run, checkpoint=checkpoint, max_memory=max_memory, progress=progress
    ).assign_attrs(attributes)
    shape = (-1, len(given.distances), len(given.starts), given.controls, record.sizes["token"])
    nll = record["nll"].values.reshape(shape)
    late = np.stack([nll[:, at, ..., away : away + length] for at, away in enumerate(given.distances)], 1)
    first = nll[..., 0, :length].copy()
    late[..., 0] = first[..., 0] = np.nan
    read = {"nll": late[:, :, :, 0], "first_nll": first} | ({"control_nll": late[:, :, :, 1]} if control else {})
    dims, units = ("policy", "distance", "passage", "place"), {"units": "nats"}
    kept = {name: each for name, each in record.coords.items() if each.dims == ("policy",)}
    apart = np.diff(given.starts, prepend=given.starts[0]) >= length
    return xr.Dataset(
        {name: (dims, each, units) for name, each in read.items()},
        coords={
            **kept,
            "distance": given.distances,
            "start": ("passage", given.starts),
            "same_text": ("passage", np.cumsum(apart)),  # one to an interval
        },
        attrs=record.attrs | {"kind": "recall", "passage_tokens": length},
    )


def passages_of(
    ids: Tensor, distances: int | Sequence[int], passage: int, passages: int, control: bool = True
) -> Passages:
    """The texts of all distances; raises as `recall`."""
    away = sorted(one_or_several(distances, "distances", lambda each: whole_number(each, "distances", 1)))
    length, count = whole_number(passage, "passage", 2), whole_number(passages, "passages", 1)
    texts = texts_of(ids)
    if away[0] < length:
        raise SinkscopeError(f"a passage of {length} tokens cannot come again after {away[0]}; give longer distances.")
    if len(texts) > 1 or len(texts[0]) < away[-1] + count:
        raise SinkscopeError(
            f"{count} passages that come again after {away[-1]} tokens need one text of at least {away[-1] + count} "
            f"tokens, and {len(texts)} of {max(map(len, texts))} were given; give more text, or shorter distances."
        )
    whole = texts[0]
    places = len(whole) - length + 1  # where a passage may begin
    if control and places // 2 < length:
        raise SinkscopeError(
            f"a text of {len(whole)} tokens has no other passage of {length} to put in the first place; give "
            f"{3 * length} tokens or more, a shorter passage, or control=False."
        )
    starts = np.linspace(0, len(whole) - away[-1], count).astype(int)
    made = []
    for distance in away:
        for start in starts.tolist():
            piece, other = whole[start : start + distance], (start + places // 2) % places
            again = piece[:length]
            made.append(cat([piece, again]))
            if control:
                made.append(cat([whole[other : other + length], piece[length:], again]))
    return Passages(made, away, length, starts, 1 + control)
