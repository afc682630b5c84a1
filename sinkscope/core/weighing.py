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
from sinkscope.core.normalisers import Normaliser, Pointwise, VirtualKey


@dataclass(frozen=True)
class Weighing:
    """How one layer makes weights of its scores.

    Attributes:
        virtual_logit: [head] logit of a key of value 0 that joins the denominator, minus infinity in a head that has
            none; or None where no head has one.
        pointwise: the normaliser that replaces softmax, or None.
        heads: booleans [head], where `pointwise` acts; everywhere when None.
    """

    virtual_logit: Tensor | None = None
    pointwise: Pointwise | None = None
    heads: Tensor | None = None

    def in_head(self, head: int) -> Weighing:
        """The weighing in one head."""
        logit, heads = self.virtual_logit, self.heads
        return replace(
            self,
            virtual_logit=None if logit is None else logit[head : head + 1],
            heads=None if heads is None else heads[head : head + 1],
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

    def in_its_heads(self, pointwise: Tensor, softmax: Tensor) -> Tensor:
        """Outputs [batch, head, query, dim] of the normaliser where it acts, of softmax elsewhere."""
        return pointwise if self.heads is None else torch.where(self.heads[:, None, None], pointwise, softmax)

    def logs(self, scores: Tensor, lse: Tensor, seen: Callable[[], Tensor], heads: slice = slice(None)) -> Tensor:
        """Logarithms of the weights of a block of scores [batch, heads, query, key], made in their place.

        Args:
            lse: [batch, heads, query, 1] of the denominator.
            seen: gives how many keys each query sees, [batch or 1, head or 1, query].
        """
        if self.pointwise is None:
            return scores.sub_(lse)
        count = seen().to(scores.device)
        count = (count[:, heads] if count.shape[1] > 1 else count)[..., None]
        weights = self.pointwise.weigh(scores, lse, count).log().clamp(min=torch.finfo(scores.dtype).min)
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
    pointwise = normaliser if isinstance(normaliser, Pointwise) else None
    logit = normaliser.virtual_logit(heads, device) if isinstance(normaliser, VirtualKey) else None
    if acting is not None and not (logit is None and own is None):
        nothing = torch.full((heads,), -torch.inf, device=device)
        logit = torch.where(acting, nothing if logit is None else logit, nothing if own is None else own)
    return Weighing(logit, pointwise, acting)


def weighted_sum(
    sets: Sequence[KeySet], lse: Tensor, pointwise: Pointwise, scale: float, softcap: float | None
) -> list[Tensor]:
    """What each of some disjoint sets of keys contributes under a pointwise normaliser.

    Args:
        sets: the sets; queries alike in number.
        lse: [batch, head, query] log-sum-exp over all of them.

    Returns:
        For each set ``sum_j weight_j value_j`` [batch, head, query, dim], float32.
    """
    rows = sets[0].query.shape[2]
    seen = sum((part.mask.seen(slice(0, rows), part.key.shape[2]) for part in sets), torch.zeros(())).to(lse)
    return [_contribution(part, lse, seen, pointwise, scale, softcap) for part in sets]


def _contribution(
    part: KeySet, lse: Tensor, seen: Tensor, pointwise: Pointwise, scale: float, softcap: float | None
) -> Tensor:
    def block(query: Tensor, key: Tensor, value: Tensor, lse: Tensor, rows: slice, columns: slice) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            scores = scores_of(query, key, part.mask, rows, columns, scale, softcap) + part.bias
            weights = pointwise.weigh(scores, lse[:, :, rows, None], seen[:, :, rows, None])
            output = rearrange(weights, GROUPED, kv_head=key.shape[1]) @ value[:, :, None, columns].float()
            return rearrange(output, "batch kv_head group query dim -> batch (kv_head group) query dim")

    query, key, value = part.query, part.key, part.value
    gradient = torch.is_grad_enabled() and any(state.requires_grad for state in (query, key, value))
    step = max(1, BLOCK_ENTRIES // (query.shape[0] * query.shape[1] * key.shape[2]))
    outputs = []
    for rows in ranges(0, query.shape[2], step):
        given = (query, key, value, lse, rows, part.mask.columns(rows, key.shape[2]))
        # keep no block's weights for the backward pass: they would add up to T x T
        outputs.append(checkpoint(block, *given, use_reentrant=False) if gradient else block(*given))
    return torch.cat(outputs, 2)
