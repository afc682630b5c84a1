"""Attention of one layer with its slots filled: evictions, and a normaliser.

Evictions of one layer act in different heads; the heads without one are dense. A token's keys and values depend on
nothing but what it saw, so blocks of any size give what one token at a time gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sinkscope.core.key_set import KeySet
from sinkscope.core.masks import CausalMask, Mask
from sinkscope.core.weighing import Weighing, weighted_sum

if TYPE_CHECKING:
    from sinkscope.core.eviction import Eviction


class Attended(NamedTuple):
    """What attention gave.

    Attributes:
        output: [batch, head, query, dim].
        lse: [batch, head, query] logarithm of the denominator, a virtual key included.
        shift: [batch, head, query] to be added to an anchor's logit before `lse` is taken off for its weight; or None.
    """

    output: Tensor
    lse: Tensor
    shift: Tensor | None = None


class Block(NamedTuple):
    """Queries of a layer with the keys they are given, and how scores are made.

    Attributes:
        query: [batch, head, query, dim].
        key, value: [batch, kv_head, key, dim].
        start: position of the first query.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    start: int
    scale: float
    softcap: float | None

    def rows(self, first: int, last: int) -> Block:
        """Only the queries from row `first` on and before row `last`, with the keys up to the last of them."""
        keys = self.key.shape[2] - self.query.shape[2] + last
        key, value = self.key[:, :, :keys], self.value[:, :, :keys]
        return self._replace(query=self.query[:, :, first:last], key=key, value=value, start=self.start + first)


def attend_layer(block: Block, mask: Mask, evictions: Sequence[Eviction], weighing: Weighing) -> Attended:
    """Attention of one layer.

    Args:
        block: the queries; under an eviction with the keys in the order that one asks for.
        mask: which keys the queries see without an eviction.
        evictions: the policy on this layer, in disjoint heads; they need plain causal attention.
        weighing: the normaliser on this layer.
    """
    if not evictions:
        return attend_dense(block, mask, weighing)
    parts = [eviction.attend(block, weighing) for eviction in evictions]
    if evictions[0].heads is None:
        return parts[0]
    acting = torch.stack([eviction.heads for eviction in evictions if eviction.heads is not None])
    if not bool(acting.any(0).all()):
        parts.append(attend_dense(block, CausalMask(block.key.shape[2] - block.query.shape[2]), weighing))
        acting = torch.cat([acting, ~acting.any(0, keepdim=True)])
    return _in_their_heads(acting.to(block.query.device), parts)


def attend_dense(block: Block, mask: Mask, weighing: Weighing) -> Attended:
    """Attention of one layer without an eviction."""
    given = KeySet(block.query, block.key, block.value, mask)
    output, lse = weighing.normalised(*given.attended(block.scale, block.softcap))
    if weighing.replaces_softmax:
        (sums,) = weighted_sum([given], lse, weighing, block.scale, block.softcap)
        output = weighing.in_its_heads(sums.to(output.dtype), output)
    return Attended(output, lse)


def _in_their_heads(acting: Tensor, parts: Sequence[Attended]) -> Attended:
    """Each part in its own heads: booleans [part, head]."""
    output, lse = torch.zeros_like(parts[0].output), torch.zeros_like(parts[0].lse)
    shift = None if all(part.shift is None for part in parts) else torch.zeros_like(lse)
    for heads, part in zip(acting, parts, strict=True):
        output = torch.where(heads[:, None, None], part.output, output)
        lse = torch.where(heads[:, None], part.lse, lse)
        if shift is not None and part.shift is not None:
            shift = torch.where(heads[:, None], part.shift, shift)
    return Attended(output, lse, shift)
