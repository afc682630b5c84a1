"""Attention of one layer with its slots filled: evictions, and a normaliser.

Evictions of one layer act in different heads; the heads without one are dense. A token's keys and values depend on
nothing but what it saw, so blocks of any size give what one token at a time gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from sinkscope.attention.attend import attend, in_blocks, scores_of, weigh_values
from sinkscope.attention.masks import CausalMask, Mask, is_hidden, weights_of
from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    from sinkscope.attention.eviction import Eviction

LEAK = 1e-6  # weight on a hidden key that is no more than rounding


class WholeRows(Protocol):
    """As `sinkscope.normalisers.Normaliser`."""

    def weights(self, scores: Tensor) -> Tensor: ...

    def check_gradients(self, heads: int, device: torch.device) -> None: ...


class ScoreByScore(WholeRows, Protocol):
    """As `sinkscope.normalisers.Pointwise`."""

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Weighing:
    """How one layer makes weights of its scores.

    A normaliser that replaces softmax is `pointwise`, each weight following from its own score, or needs `whole` rows.
    """

    # [head], or [batch, head, query], of a key of value 0 in the denominator; -inf in a head without one
    virtual_logit: Tensor | None = None
    pointwise: ScoreByScore | None = None
    whole: WholeRows | None = None
    heads: Tensor | None = None  # booleans [head], where that normaliser acts; everywhere when None
    count: int = 1  # heads in the whole layer
    head: int | None = None  # which of them this is; None for all

    @property
    def replaces_softmax(self) -> bool:
        """Whether weights are made otherwise than by a softmax with a virtual key."""
        return self.pointwise is not None or self.whole is not None

    def in_head(self, head: int) -> Weighing:
        """The weighing in one head."""
        logit, heads = self.virtual_logit, self.heads
        return replace(
            self,
            virtual_logit=None if logit is None else by_query(logit)[:, head : head + 1],
            heads=None if heads is None else heads[head : head + 1],
            head=head,
        )

    def denominator(self, lse: Tensor) -> Tensor:
        """The log-sum-exp [batch, head, query] with the virtual key let in."""
        return lse if self.virtual_logit is None else torch.logaddexp(lse, by_query(self.virtual_logit))

    def normalised(self, output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax attention and its lse, with the virtual key let into the denominator."""
        if self.virtual_logit is None:
            return output, lse
        share = torch.sigmoid(lse - by_query(self.virtual_logit))
        return output * share[..., None].to(output.dtype), self.denominator(lse)

    def replaced(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        """Weights of a normaliser that replaces softmax, in all heads or in the one head of this weighing.

        Args:
            scores: whole rows [batch, head, query, key].
            lse, seen: [batch or 1, head or 1, query, 1] log-sum-exp of the keys that are seen, and how many those are.
        """
        if self.pointwise is not None:
            return score_by_score(self.pointwise, scores, lse, seen)
        assert self.whole is not None
        if self.head is None:
            return whole_rows(self.whole, scores)
        every = scores.expand(-1, self.count, -1, -1)  # a normaliser may differ from head to head
        return whole_rows(self.whole, every)[:, self.head : self.head + 1]

    def weights(self, scores: Tensor, lse: Tensor, seen: Callable[[], Tensor]) -> Tensor:
        """Weights of all heads, as `logs` takes them."""
        if not self.replaces_softmax:
            return weights_of(scores.sub_(lse), out=scores)
        outside = scores if self.heads is None else weights_of(scores - lse)
        return by_head(self.heads, self._of_block(scores, lse, seen), outside)

    def logs(self, scores: Tensor, lse: Tensor, seen: Callable[[], Tensor], heads: slice = slice(None)) -> Tensor:
        """Logarithms of the weights of a block of scores [batch, heads, query, key], made in their place.

        Args:
            lse: [batch, heads, query, 1] of the denominator.
            seen: gives how many keys each query sees, [batch or 1, head or 1, query].
        """
        if not self.replaces_softmax:
            return scores.sub_(lse)
        outside = scores if self.heads is None else scores - lse  # first: a normaliser may write into its scores
        weights = self._of_block(scores, lse, seen, heads).log().clamp(min=torch.finfo(scores.dtype).min)
        return by_head(None if self.heads is None else self.heads[heads], weights, outside)

    def _of_block(self, scores: Tensor, lse: Tensor, seen: Callable[[], Tensor], heads: slice = slice(None)) -> Tensor:
        count = seen().to(scores.device)
        return self.replaced(scores, lse, (count[:, heads] if count.shape[1] > 1 else count)[..., None])

    def with_gradients(self, sums: Tensor) -> Tensor:
        """Sums of values by weights of a normaliser that replaces softmax; what it cannot differentiate is refused."""
        if sums.requires_grad:
            normaliser = self.pointwise or self.whole
            assert normaliser is not None
            sums.register_hook(lambda gradient: normaliser.check_gradients(self.count, gradient.device))
        return sums


def by_query(virtual_logit: Tensor) -> Tensor:
    """The logit of a virtual key as [batch or 1, head, query or 1]."""
    return virtual_logit if virtual_logit.dim() == 3 else virtual_logit[None, :, None]


PLAIN = Weighing()
"""Softmax as it is."""


def by_head(heads: Tensor | None, inside: Tensor, outside: Tensor) -> Tensor:
    """Numbers [batch, head, query, last] of one kind in some heads, of another one in the rest; in all when None."""
    return inside if heads is None else torch.where(heads[:, None, None], inside, outside)


def score_by_score(normaliser: ScoreByScore, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
    """Weights of a block of scores, of which each follows from its own score."""
    if not torch.is_grad_enabled():
        return _shaped(normaliser, normaliser.weigh(scores, lse, seen), scores)
    hidden = is_hidden(scores)  # in a graph, nothing times an infinite slope at the lowest float would be NaN
    given = torch.where(hidden, scores.detach().amax(-1, keepdim=True), scores)
    return _shaped(normaliser, normaliser.weigh(given, lse, seen), scores).masked_fill(hidden, 0.0)


def whole_rows(normaliser: WholeRows, scores: Tensor) -> Tensor:
    """Weights of whole rows by a normaliser's own definition, checked; rows that see nothing get none.

    Raises:
        SinkscopeError: another shape than that of the scores, NaN or infinity, weight on hidden keys.
    """
    hidden = is_hidden(scores)
    nothing = hidden.all(-1, keepdim=True)
    given = scores.masked_fill(hidden, -torch.inf).masked_fill(nothing, 0.0)
    weights = _shaped(normaliser, normaliser.weights(given), scores).masked_fill(nothing, 0.0)
    check_shares(normaliser, weights, scores, "minus infinity")
    return weights


def _shaped(normaliser: object, weights: object, scores: Tensor) -> Tensor:
    if not isinstance(weights, Tensor) or weights.shape != scores.shape:
        shape = f"the shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
        raise SinkscopeError(
            f"{normaliser!r} gave {shape} for scores of shape {tuple(scores.shape)}; weights have that shape."
        )
    if weights.is_complex():
        raise SinkscopeError(f"{normaliser!r} gave complex weights, which are no shares of attention; give real ones.")
    return weights.to(scores.dtype)


def check_finite(normaliser: object, weights: Tensor, scores: Tensor, hides: str) -> None:
    """Raise SinkscopeError for weights that are not finite of scores that are; `hides` says what a hidden key has."""
    if not bool(weights.isfinite().all()) and bool((scores < torch.inf).all()):
        raise SinkscopeError(
            f"{normaliser!r} gave weights that are NaN or infinite; scores of hidden keys are {hides}, and their "
            "weight is 0."
        )


def check_shares(normaliser: object, weights: Tensor, scores: Tensor, hides: str) -> None:
    """Raise SinkscopeError for weights of some scores that are not finite, below 0 or on hidden keys."""
    check_finite(normaliser, weights, scores, hides)
    if bool((weights < 0).any()):
        raise SinkscopeError(f"{normaliser!r} gave weights below 0, which are no shares of attention; give 0 or more.")
    if bool((weights.masked_fill(~is_hidden(scores), 0.0) > LEAK).any()):
        raise SinkscopeError(
            f"{normaliser!r} gives weight to hidden keys, which lie in a query's future or were taken away; their "
            f"scores are {hides}, and their weight is 0."
        )


class Block(NamedTuple):
    """Queries [batch, head, query, dim], the first at position `start`, keys and values [batch, kv_head, key, dim]."""

    query: Tensor
    key: Tensor
    value: Tensor
    start: int
    scale: float
    softcap: float | None

    def rows(self, first: int, last: int) -> Block:
        """Only the queries from row `first` on and before row `last`, with the keys up to the last of them."""
        past = self.key.shape[2] - self.query.shape[2]
        return self.at(slice(past + last))._replace(query=self.query[:, :, first:last], start=self.start + first)

    def at(self, places: slice | list[int]) -> Block:
        """With some of the keys only."""
        return self._replace(key=self.key[:, :, places], value=self.value[:, :, places])


class KeySet(NamedTuple):
    """Keys, with the queries as these keys see them, which of them each query sees, and a bias on their logits."""

    block: Block
    mask: Mask
    bias: float = 0.0

    def attended(self) -> tuple[Tensor, Tensor]:
        """Attention of the queries over this set alone, and its log-sum-exp."""
        query, key, value, _, scale, softcap = self.block
        output, lse = attend(query, key, value, self.mask, scale=scale, softcap=softcap)
        return output, lse + self.bias if self.bias else lse


def weighted_sums(sets: Sequence[KeySet], lse: Tensor, weighing: Weighing) -> list[Tensor]:
    """What each of some disjoint sets of keys contributes under a normaliser that replaces softmax.

    That is ``sum_j weight_j value_j`` [batch, head, query, dim] in float32, from the log-sum-exp [batch, head, query]
    over all of them.
    """
    counts = [part.block.key.shape[2] for part in sets]
    batch, heads, rows, _ = sets[0].block.query.shape
    seen = sum(
        (part.mask.seen(slice(0, rows), keys) for part, keys in zip(sets, counts, strict=True)), torch.zeros(())
    ).to(lse)

    def sums(rows: slice, lse: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        scores, values = [], []
        for part, query, key, value in zip(sets, states[::3], states[1::3], states[2::3], strict=True):
            columns = part.mask.columns(rows, key.shape[2])
            scores.append(scores_of(query, key, part.mask, rows, columns, *part.block[4:]) + part.bias)
            values.append(value[:, :, columns])
        weights = weighing.replaced(torch.cat(scores, -1), lse[:, :, rows, None], seen[:, :, rows, None])
        sums = tuple(map(weigh_values, weights.split([each.shape[-1] for each in scores], -1), values))
        if not all(bool(each.isfinite().all()) for each in sums):  # whose fault is it?
            check_finite(weighing.pointwise or weighing.whole, weights, torch.cat(scores, -1), "the lowest float")
        return sums

    states = [state for part in sets for state in part.block[:3]]
    return [weighing.with_gradients(each) for each in in_blocks(sums, rows, batch * heads * sum(counts), lse, *states)]


class Attended(NamedTuple):
    """What attention gave."""

    output: Tensor  # [batch, head, query, dim]
    lse: Tensor  # [batch, head, query] logarithm of the denominator, a virtual key included
    shift: Tensor | None = None  # [batch, head, query] to add to an anchor's logit before `lse` is taken off


def joined(parts: Sequence[Attended]) -> Attended:
    """What attention gave for one range of queries after the other."""
    return _combined(parts, lambda states: torch.cat(states, 2))


def _combined(parts: Sequence[Attended], combine: Callable[[list[Tensor]], Tensor]) -> Attended:
    output, lse = (combine(list(states)) for states in list(zip(*parts, strict=True))[:2])
    if all(part.shift is None for part in parts):
        return Attended(output, lse)
    return Attended(output, lse, combine([torch.zeros_like(p.lse) if p.shift is None else p.shift for p in parts]))


def attend_layer(block: Block, mask: Mask, evictions: Sequence[Eviction], weighing: Weighing) -> Attended:
    """Attention of one layer, under a mask alone or under evictions in disjoint heads.

    Evictions need plain causal attention, and the keys in the order that they ask for.
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

    def in_their_heads(states: list[Tensor]) -> Tensor:
        mixed = states[0]
        for heads, state in zip(acting.to(mixed.device)[1:], states[1:], strict=True):
            mixed = torch.where(heads.view(-1, *[1] * (mixed.dim() - 2)), state, mixed)
        return mixed

    return _combined(parts, in_their_heads)


def attend_dense(block: Block, mask: Mask, weighing: Weighing) -> Attended:
    """Attention of one layer without an eviction."""
    given = KeySet(block, mask)
    output, lse = weighing.normalised(*given.attended())
    if weighing.replaces_softmax:
        (sums,) = weighted_sums([given], lse, weighing)
        output = by_head(weighing.heads, sums.to(output.dtype), output)
    return Attended(output, lse)
