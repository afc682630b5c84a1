"""Recall by distance: the loss of a passage the second time it comes, against how many tokens ago it came first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, cat, nn

from sinkscope.arguments import checks_types, one_or_several, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import perplexity
from sinkscope.policies import Dense, Policy, SinkWindow, Window
from sinkscope.scope.measure import texts_of

DISTANCES = (64, 128, 256, 512, 1024)


@checks_types
def recall(
    model: nn.Module,
    ids: Tensor,
    policies: Iterable[Policy] = (Dense(), Window(256), SinkWindow(4, 252)),
    *,
    distances: int | Sequence[int] = DISTANCES,
    passage: int = 32,
    passages: int = 8,
    **options: Any,
) -> xr.Dataset:
    """What a model still knows word for word of a passage that it read so many tokens ago.

    A text is a piece of `ids` as long as the distance, and then its first `passage` tokens once more: every token of
    them comes again after exactly so many tokens. The pieces of all distances begin at the same places, spread evenly
    over `ids`. A cache that has dropped the passage has of it what later tokens took in, and, with sinks, its own first
    tokens, since each text begins with it. The first reading has no text before it: a part of the gain is that of any
    context.

    Args:
        model: a decoder with a language head, in eval mode.
        ids: [token] or [1, token], at least the longest distance and as many tokens more as there are passages.
        policies: which keys a query may see.
        distances: in tokens, each at least `passage`.
        passage: tokens in a passage, two at least.
        passages: how many.
        options: of `sinkscope.perplexity`.

    Returns:
        A record with `nll` [policy, distance, passage, place]: losses in nats of the second reading, and `first_nll`
        those of the first; NaN at place 0, which nothing in the passage predicts.

    Raises:
        SinkscopeError: a distance shorter than the passage, a text too short, or as `perplexity`.
    """
    pieces, away, length, starts = passages_of(ids, distances, passage, passages)
    count = len(starts)
    record = perplexity(model, [cat([piece, piece[:length]]) for piece in pieces], policies, samples=None, **options)
    nll = record["nll"].values.reshape(-1, len(away), count, record.sizes["token"])
    again = np.stack([nll[:, at, :, distance : distance + length] for at, distance in enumerate(away)], 1)
    first = nll[..., :length].copy()
    again[..., 0] = first[..., 0] = np.nan
    dims = ("policy", "distance", "passage", "place")
    kept = {name: each for name, each in record.coords.items() if each.dims == ("policy",)}
    return xr.Dataset(
        {"nll": (dims, again, {"units": "nats"}), "first_nll": (dims, first, {"units": "nats"})},
        coords={**kept, "distance": away, "start": ("passage", starts)},
        attrs=record.attrs | {"kind": "recall", "passage_tokens": length},
    )


def passages_of(
    ids: Tensor, distances: int | Sequence[int], passage: int, passages: int
) -> tuple[list[Tensor], list[int], int, np.ndarray]:
    """The pieces [token] of all distances, these in order, tokens in a passage and where the pieces begin; raises as
    `recall`."""
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
    starts = np.linspace(0, len(texts[0]) - away[-1], count).astype(int)
    pieces = [texts[0][start : start + distance] for distance in away for start in starts]
    return pieces, away, length, starts
