"""What a sink cache cannot read: tokens that are no row of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import other_states
from sinkscope.scope.streams import has_planes


def check_text(base: nn.Module, given: dict[str, Any], padding: Tensor | None) -> None:
    """Raise SinkscopeError for images that are more than tokens in a row, states of an encoder, and odd positions.

    Args:
        base: the model that reads them.
        given: its arguments, as the models around it made them.
        padding: [batch, column], 0 for padding; None without.
    """
    if (other := other_states(given)) is not None:
        raise SinkscopeError(
            f"{type(base).__name__} is given `{other}` to look at beside the text, of which a SinkCache keeps nothing; "
            "read it without a SinkCache."
        )
    mask, name = given.get("attention_mask"), type(base).__name__
    if has_planes(given):
        raise SinkscopeError(
            f"{name} gives the tokens of an image positions in two dimensions, and a SinkCache counts positions in "
            "one; read images without it.",
            page="An image model, an encoder-decoder",
        )
    places = given.get("position_ids")
    if isinstance(places, Tensor) and places.dim() == 2 and not _counts_on(places):
        raise SinkscopeError(
            "these position_ids do not count on by one, and a SinkCache gives its tokens the positions that they have "
            "in the cache; leave position_ids out."
        )
    masks = mask.values() if isinstance(mask, dict) else [mask]
    if any(_shows_later(each, padding) for each in masks if isinstance(each, Tensor) and each.dim() == 4):
        raise SinkscopeError(
            f"{name} lets tokens of an image see later ones, by a mask of the model's own, and a SinkCache makes its "
            "own; read images without it."
        )


def _counts_on(places: Tensor) -> bool:
    """Whether positions [text, token] go on by one from wherever they begin, but for those of padding in front."""
    steps = places.diff(dim=1)
    in_front = ((steps == 1).cumsum(1) == 0) & (places[:, 1:] <= 1)
    return bool(((steps == 1) | in_front).all())


def _shows_later(mask: Tensor, padding: Tensor | None) -> bool:
    """Whether a mask [batch, 1, query, key] shows some token, padding aside, a later one."""
    queries, keys = mask.shape[-2:]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    later = seen.triu(keys - queries + 1).any(-1)
    return bool((later if padding is None else later & padding[:, None, -queries:].bool()).any())


def check_parts(base: nn.Module, given: dict[str, Any]) -> None:
    """Raise SinkscopeError for arguments that go with all tokens together, where these are to be read in parts."""
    if whole := [name for name, each in given.items() if isinstance(each, (list, tuple))]:
        raise SinkscopeError(
            f"{type(base).__name__} is given `{whole[0]}` for all tokens together, which cannot be read in parts; "
            "make the cache larger than the prompt.",
            page="A cache in generate()",
        )
