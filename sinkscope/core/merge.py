"""Joining attentions over disjoint sets of keys through their log-sum-exp: the identity behind flash-decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError


def merge(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join attentions of the same queries over disjoint sets of keys, exactly.

    Args:
        parts: pairs (output [batch, head, query, dim], lse [batch, head, query]).

    Returns:
        The output and lse of attention over all the keys together: the outputs weighted by ``softmax`` of their lse.
    """
    if not parts:
        raise SinkscopeError("there is nothing to merge; give at least one pair (output, lse).")
    lses = torch.stack([lse for _, lse in parts])
    total = lses.logsumexp(0)
    weights = (lses - total).exp()
    dtype = parts[0][0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    output = parts[0][0].to(wide) * weights[0, ..., None]
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        output = output.addcmul_(part.to(wide), weight[..., None])  # one pass over each part
    return output.to(dtype), total
