"""A normaliser as one layer carries it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sinkscope.core.attend import BLOCK_ENTRIES, GROUPED, scores_of
from sinkscope.core.key_set import KeySet
from sinkscope.core.masks import ranges
from sinkscope.core.normalisers import Normaliser, Pointwise, VirtualKey, whole_rows


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
    pointwise: Pointwise | None = None
    whole: Normaliser | None = None
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


def weighing_of(normaliser: Normaliser | None, native: Tensor | None, heads: int, device: torch.device) -> Weighing:
    """How a layer weighs under a normaliser, or under its own when None.

    Args:
        native: [head] logits of the model's own learned sinks, or None.
        heads: how many query heads the layer has.
    """
    own = None if native is None else native.float().to(device)
    if normaliser is None:
        return Weighing(own)
    acting = normaliser.acting_heads(heads)
    acting = None if acting is None else acting.to(device)
    whole = normaliser if normaliser.needs_whole_rows else None
    pointwise = normaliser if isinstance(normaliser, Pointwise) and whole is None else None
    virtual = isinstance(normaliser, VirtualKey) and whole is None
    logit = normaliser.virtual_logit(heads, device) if isinstance(normaliser, VirtualKey) and virtual else None
    if acting is not None and not (logit is None and own is None):
        nothing = torch.full((heads,), -torch.inf, device=device)
        logit = torch.where(acting, nothing if logit is None else logit, nothing if own is None else own)
    return Weighing(logit, pointwise, whole, acting, heads)


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
        call = (lse, part, *states)
        blocks.append(checkpoint(block, *call, use_reentrant=False) if gradient else block(*call))
    return [torch.cat(each, 2) for each in zip(*blocks, strict=True)]
