"""Attention of one layer with its slots filled: evictions, and a normaliser.

Evictions of one layer act in different heads; the heads without one are dense. A token's keys and values depend on
nothing but what it saw, so blocks of any size give what one token at a time gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sinkscope.attention.attend import BLOCK_ENTRIES, GROUPED, KeySet, scores_of
from sinkscope.attention.masks import CausalMask, Mask, is_hidden, ranges
from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    from sinkscope.attention.eviction import Eviction


LEAK = 1e-6  # weight on a hidden key that is no more than rounding


class ScoreByScore(Protocol):
    """A normaliser whose weights each follow from their own score."""

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        """Weights of a block of scores, as in `sinkscope.normalisers.Pointwise`."""


class WholeRows(Protocol):
    """A normaliser whose weights follow from whole rows of scores."""

    def weights(self, scores: Tensor) -> Tensor:
        """Weights of scores [batch, head, query, key], as in `sinkscope.normalisers.Normaliser`."""


@dataclass(frozen=True)
class Weighing:
    """How one layer makes weights of its scores.

    Attributes:
        virtual_logit: [head] logit of a key of value 0 that joins the denominator, minus infinity in a head that has
            none; or None where no head has one.
        pointwise: the normaliser that replaces softmax, each weight following from its own score; or None.
        whole: the normaliser that replaces softmax and needs whole rows of scores; or None.
        heads: booleans [head], where that normaliser acts; everywhere when None.
        count: how many heads there are in the whole layer, and `head` which of them this is; None for all.
    """

    virtual_logit: Tensor | None = None
    pointwise: ScoreByScore | None = None
    whole: WholeRows | None = None
    heads: Tensor | None = None
    count: int = 1
    head: int | None = None

    @property
    def replaces_softmax(self) -> bool:
        """Whether weights are made otherwise than by a softmax with a virtual key."""
        return self.pointwise is not None or self.whole is not None

    def in_head(self, head: int) -> Weighing:
        """The weighing in one head."""
        logit, heads = self.virtual_logit, self.heads
        return replace(
            self,
            virtual_logit=None if logit is None else logit[head : head + 1],
            heads=None if heads is None else heads[head : head + 1],
            head=head,
        )

    def denominator(self, lse: Tensor) -> Tensor:
        """The log-sum-exp [batch, head, query] with the virtual key let in."""
        return lse if self.virtual_logit is None else torch.logaddexp(lse, self.virtual_logit[None, :, None])

    def normalised(self, output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax attention and its lse, with the virtual key let into the denominator."""
        if self.virtual_logit is None:
            return output, lse
        logit = self.virtual_logit[None, :, None]
        return output * torch.sigmoid(lse - logit)[..., None].to(output.dtype), torch.logaddexp(lse, logit)

    def in_its_heads(self, replaced: Tensor, softmax: Tensor) -> Tensor:
        """Outputs [batch, head, query, dim] of the normaliser where it acts, of softmax elsewhere."""
        return replaced if self.heads is None else torch.where(self.heads[:, None, None], replaced, softmax)

    def replaced(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        """Weights of a normaliser that replaces softmax, in all heads.

        Args:
            scores: [batch, head, query, key], the lowest float where a key is hidden; whole rows of all heads, or of
                the one head of this weighing.
            lse: [batch, head, query, 1] log-sum-exp over all keys the query sees.
            seen: [batch or 1, head or 1, query, 1] how many those are.
        """
        if self.pointwise is not None:
            return self.pointwise.weigh(scores, lse, seen)
        assert self.whole is not None
        if self.head is None:
            return whole_rows(self.whole, scores)
        every = scores.expand(-1, self.count, -1, -1)  # a normaliser may differ from head to head
        return whole_rows(self.whole, every)[:, self.head : self.head + 1]

    def logs(self, scores: Tensor, lse: Tensor, seen: Callable[[], Tensor], heads: slice = slice(None)) -> Tensor:
        """Logarithms of the weights of a block of scores [batch, heads, query, key], made in their place.

        Args:
            lse: [batch, heads, query, 1] of the denominator.
            seen: gives how many keys each query sees, [batch or 1, head or 1, query].
        """
        if not self.replaces_softmax:
            return scores.sub_(lse)
        count = seen().to(scores.device)
        count = (count[:, heads] if count.shape[1] > 1 else count)[..., None]
        weights = self.replaced(scores, lse, count).log().clamp(min=torch.finfo(scores.dtype).min)
        return weights if self.heads is None else torch.where(self.heads[heads, None, None], weights, scores - lse)


PLAIN = Weighing()
"""Softmax as it is."""


def whole_rows(normaliser: WholeRows, scores: Tensor) -> Tensor:
    """Weights of whole rows by a normaliser's own definition, checked; rows that see nothing get none.

    Raises:
        SinkscopeError: another shape than that of the scores, NaN or infinity, weight on hidden keys.
    """
    hidden = is_hidden(scores)
    nothing = hidden.all(-1, keepdim=True)
    given = scores.masked_fill(hidden, -torch.inf).masked_fill(nothing, 0.0)
    weights = normaliser.weights(given)
    if not isinstance(weights, Tensor) or weights.shape != scores.shape:
        shape = f"the shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
        raise SinkscopeError(
            f"{normaliser!r} gave {shape} for scores of shape {tuple(scores.shape)}; weights have that shape."
        )
    weights = weights.masked_fill(nothing, 0.0)
    if not bool(weights.isfinite().all()):
        raise SinkscopeError(
            f"{normaliser!r} gave weights that are NaN or infinite; scores of hidden keys are minus infinity, and "
            "their weight is 0."
        )
    if bool((weights < 0).any()):
        raise SinkscopeError(f"{normaliser!r} gave weights below 0, which are no shares of attention; give 0 or more.")
    if bool((weights.masked_fill(~hidden, 0.0).abs() > LEAK).any()):
        raise SinkscopeError(
            f"{normaliser!r} gives weight to hidden keys, which lie in a query's future or were taken away; their "
            "scores are minus infinity, and their weight is 0."
        )
    return weights.to(scores.dtype)


def weighted_sum(
    sets: Sequence[KeySet], lse: Tensor, weighing: Weighing, scale: float, softcap: float | None
) -> list[Tensor]:
    """What each of some disjoint sets of keys contributes under a normaliser that replaces softmax.

    Args:
        sets: the sets; queries alike in number.
        lse: [batch, head, query] log-sum-exp over all of them.

    Returns:
        For each set ``sum_j weight_j value_j`` [batch, head, query, dim], float32.
    """
    rows = sets[0].query.shape[2]
    seen = sum((part.mask.seen(slice(0, rows), part.key.shape[2]) for part in sets), torch.zeros(())).to(lse)

    def block(lse: Tensor, rows: slice, *states: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(lse.device.type, enabled=False):
            scores, values = [], []
            for number, part in enumerate(sets):
                query, key, value = states[3 * number : 3 * number + 3]
                columns = part.mask.columns(rows, key.shape[2])
                scores.append(scores_of(query, key, part.mask, rows, columns, scale, softcap) + part.bias)
                values.append(value[:, :, None, columns].float())
            weights = weighing.replaced(torch.cat(scores, -1), lse[:, :, rows, None], seen[:, :, rows, None])
            sums = []
            for part, value in zip(weights.split([each.shape[-1] for each in scores], -1), values, strict=True):
                output = rearrange(part, GROUPED, kv_head=value.shape[1]) @ value
                sums.append(rearrange(output, "batch kv_head group query dim -> batch (kv_head group) query dim"))
            return tuple(sums)

    states = [state for part in sets for state in (part.query, part.key, part.value)]
    gradient = torch.is_grad_enabled() and any(state.requires_grad for state in states)
    batch, heads = sets[0].query.shape[:2]
    step = max(1, BLOCK_ENTRIES // (batch * heads * sum(part.key.shape[2] for part in sets)))
    blocks = []
    for part in ranges(0, rows, step):
        # keep no block's weights for the backward pass: they would add up to T x T
        if gradient:
            blocks.append(checkpoint(block, lse, part, *states, use_reentrant=False))
        else:
            blocks.append(block(lse, part, *states))
    return [torch.cat(each, 2) for each in zip(*blocks, strict=True)]


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
