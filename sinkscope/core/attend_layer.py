"""Attention of one layer with its slots filled: a policy, and a normaliser.

Under a policy the keys a query sees are disjoint sets: the anchors, to which a query may have to be turned, and the
rest. Attention goes over each of them and is merged through the log-sum-exp, where a bias on the anchors' logits and
another value for them are one term each. A token's keys and values depend on nothing but what it saw, so blocks of any
size give what one token at a time gives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

from sinkscope.core.eviction import Eviction
from sinkscope.core.key_set import KeySet
from sinkscope.core.masks import CausalMask, Mask
from sinkscope.core.merge import merge
from sinkscope.core.weighing import Weighing, weighted_sum


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


def attend_layer(block: Block, mask: Mask, eviction: Eviction | None, weighing: Weighing) -> Attended:
    """Attention of one layer.

    Args:
        block: the queries; under an eviction with the keys in the order that one asks for.
        mask: which keys the queries see without an eviction.
        eviction: the policy on this layer, or None; it needs plain causal attention.
        weighing: the normaliser on this layer.
    """
    if eviction is None:
        return _dense(block, mask, weighing)
    count = block.query.shape[2]
    early = min(count, max(0, eviction.since - block.start))
    parts = []
    if early:
        whole = block.rows(0, early)
        parts.append(_dense(whole, CausalMask(whole.key.shape[2] - early), weighing))
    if early < count:
        late = block.rows(early, count)
        part = _evicted(late, eviction, weighing)
        if eviction.heads is not None:
            part = _in_heads(eviction.heads, part, _dense(late, CausalMask(late.start), weighing))
        parts.append(part)
    output, lse = (torch.cat(states, 2) for states in list(zip(*parts, strict=True))[:2])
    return Attended(output, lse, _joined_shift(parts))


def _dense(block: Block, mask: Mask, weighing: Weighing) -> Attended:
    given = KeySet(block.query, block.key, block.value, mask)
    output, lse = weighing.normalised(*given.attended(block.scale, block.softcap))
    if weighing.pointwise is not None:
        (sums,) = weighted_sum([given], lse, weighing.pointwise, block.scale, block.softcap)
        output = weighing.in_its_heads(sums.to(output.dtype), output)
    return Attended(output, lse)


def _evicted(block: Block, eviction: Eviction, weighing: Weighing) -> Attended:
    """Attention of queries that notice the eviction, all of them."""
    rest = eviction.rest(block.query, block.key, block.value, block.start)
    anchored = eviction.anchored(block.query, block.key, block.value, block.start)
    parts = [part.attended(block.scale, block.softcap) for part in rest]
    if anchored is not None:
        parts.append(anchored.attended(block.scale, block.softcap))
    if anchored is None or eviction.values == "kept":
        output, lse = weighing.normalised(*merge(*parts))
        shift = torch.full_like(lse, eviction.bias) if anchored is not None and eviction.bias else None
        attended = Attended(output, lse, shift)
    else:
        attended = _with_other_values(block, eviction, weighing, merge(*parts[: len(rest)]), parts[-1])
    if weighing.pointwise is None:
        return attended
    sets = [*rest, *([] if anchored is None else [anchored])]
    sums = weighted_sum(sets, attended.lse, weighing.pointwise, block.scale, block.softcap)
    if anchored is not None and eviction.values != "kept":
        ones = anchored._replace(value=torch.ones_like(anchored.value[..., :1]))
        (_, weight) = weighted_sum([*rest, ones], attended.lse, weighing.pointwise, block.scale, block.softcap)
        sums[-1] = _replaced(eviction, block, sums[-1], weight)
    together = torch.stack(sums).sum(0).to(attended.output.dtype)
    return attended._replace(output=weighing.in_its_heads(together, attended.output))


def _with_other_values(
    block: Block, eviction: Eviction, weighing: Weighing, rest: tuple[Tensor, Tensor], anchors: tuple[Tensor, Tensor]
) -> Attended:
    """Softmax attention with the values of the anchors replaced, or with their keys out of the denominator."""
    total = weighing.denominator(torch.logaddexp(rest[1], anchors[1]))
    denominator = weighing.denominator(rest[1]) if eviction.values == "added" else total
    taken = (anchors[1] - total).exp()[..., None]
    left = rest[0] * (rest[1] - denominator).exp()[..., None]
    output = left + _replaced(eviction, block, taken * anchors[0], taken)
    return Attended(output.to(block.query.dtype), denominator, eviction.bias + denominator - total)


def _replaced(eviction: Eviction, block: Block, weighed: Tensor, weight: Tensor) -> Tensor:
    """What the anchors contribute with other values.

    Args:
        weighed: [batch, head, query, dim] what they contribute with their own.
        weight: [batch, head, query, 1] the weight they have together.
    """
    if eviction.values == "zeroed":
        return torch.zeros_like(weighed)
    if eviction.values == "mean":
        means = eviction.mean_values(block.value, block.start, block.query.shape[2])
        group = block.query.shape[1] // means.shape[1]
        return weight * repeat(means, "batch kv_head query dim -> batch (kv_head group) query dim", group=group)
    return weighed


def _in_heads(heads: Tensor, acting: Attended, dense: Attended) -> Attended:
    """What a policy gave in the heads it acts in, and plain attention in the others."""
    output = torch.where(heads[:, None, None], acting.output, dense.output)
    lse = torch.where(heads[:, None], acting.lse, dense.lse)
    shift = None if acting.shift is None else torch.where(heads[:, None], acting.shift, torch.zeros(()))
    return Attended(output, lse, shift)


def _joined_shift(parts: list[Attended]) -> Tensor | None:
    if parts[-1].shift is None:
        return None
    return torch.cat([torch.zeros_like(part.lse) if part.shift is None else part.shift for part in parts], 2)
