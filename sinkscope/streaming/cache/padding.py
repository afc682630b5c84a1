"""Padding before the texts of a batch, as a cache sees it come in."""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError


def read_padding(mask: Tensor | None, seen: int, batch: int, count: int, pads: list[int] | None) -> list[int] | None:
    """Columns of padding before each text of the batch; None when there are none.

    Args:
        mask: [batch, column] over `seen` columns and `count` new ones, 0 for padding; None when all are real.
        seen: columns read so far.
        batch, count: texts, and new columns of each.
        pads: what was found before.

    Raises:
        SinkscopeError: a mask of another shape; padding behind or inside a text; another mask than before.
    """
    if mask is None:
        return pads if seen else None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise SinkscopeError("a SinkCache makes its own masks; give an attention_mask [batch, token], or none.")
    if tuple(mask.shape) != (batch, seen + count):
        raise SinkscopeError(
            f"the attention_mask has the shape {tuple(mask.shape)}, but this cache has read {seen} tokens and gets "
            f"{count} more in {batch} texts, which makes {(batch, seen + count)}; reset() it before another text."
        )
    started = seen > 0 and (pads is None or max(pads) < seen)
    if count == 1 and started and bool(mask[:, -1].all()):
        return pads
    real = mask.bool()
    found = (~real).sum(1)
    if not bool((real == (torch.arange(real.shape[1], device=real.device) >= found[:, None])).all()):
        raise SinkscopeError("the attention_mask has padding behind or inside a text; pad on the left, once.")
    now = found.tolist()
    if [min(pad, seen) for pad in now] != [min(pad, seen) for pad in pads or [0] * batch]:
        raise SinkscopeError(
            f"the attention_mask has other padding over the {seen} tokens that this cache has read than it had then; "
            "reset() it before another text."
        )
    return now if any(now) else None
