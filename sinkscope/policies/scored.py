"""Policies that choose by the model's own attention: the keys with the highest scores are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from sinkscope.attention.eviction import Eviction
from sinkscope.attention.placement import is_built_in, owner
from sinkscope.attention.scored import HeldKeys, ScoredEviction
from sinkscope.attention.trials import try_score
from sinkscope.errors import SinkscopeError
from sinkscope.policies.base import BoundLayer, Policy, check_count


@dataclass(frozen=True, repr=False)
class ScoredPolicy(Policy, ABC):
    """Keep `budget` keys in each layer and key-value head: the last `recent` ones, and those with the highest scores.

    The text is read `chunk` tokens at a time. A chunk attends to the keys held and to its own; then every key held gets
    a score, and all but the highest are dropped for good. Keys stay at their positions in the text.

    For a policy of one's own, `score` is all there is to write, as in `HeavyHitters` and `TOVA`.

    >>> class Longest(sinkscope.ScoredPolicy):
    ...     def score(self, held):
    ...         return held.key.norm(dim=-1)
    >>> sinkscope.perplexity(model, ids, [Longest(16)]).policy.item()
    'Longest(budget=16, recent=0, chunk=1)'

    Args:
        budget: keys kept.
        recent: how many of them are the last tokens, whatever their scores.
        chunk: tokens read between two evictions; 1 is what the papers describe.

    Raises:
        SinkscopeError: a budget below 1 or below `recent`, a chunk below 1.
    """

    budget: int = 256
    recent: int = 0
    chunk: int = field(default=1, kw_only=True)

    remembers = True
    _asked = ("score",)

    def __post_init__(self) -> None:
        for name, least in (("budget", 1), ("recent", 0), ("chunk", 1)):
            check_count(self, name, least)
        if self.budget < self.recent:
            raise SinkscopeError(
                f"{type(self).__name__} keeps a budget of {self.budget} keys, which cannot hold the last "
                f"{self.recent}; give a budget of at least `recent`."
            )

    @abstractmethod
    def score(self, held: HeldKeys) -> Tensor:
        """Scores [sequence, kv_head, key] of the keys held after a chunk; the highest are kept."""

    @property
    def cache_size(self) -> int:
        return self.budget

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        if layer.kv_heads and not is_built_in(owner(type(self), "score")):
            try_score(self, layer.heads, layer.kv_heads)
        return (ScoredEviction(since=0, heads=self.acting_heads(layer.heads), policy=self, layer=layer.index),)


@dataclass(frozen=True, repr=False)
class HeavyHitters(ScoredPolicy):
    """H2O (Zhang et al. 2023, "Heavy-hitter oracle"): keep the keys that received most attention, and the recent ones.

    A key's score is the attention it got from all queries since it came, summed. Where query heads share a key, their
    attention is averaged; in multi-head attention, which the paper has, every head chooses for itself.

    >>> sinkscope.perplexity(model, ids, [sinkscope.HeavyHitters(16, 8)]).policy.item()
    'H2O 8+8'

    Args:
        budget: keys kept; the paper's heavy hitters are `budget - recent`.
        recent: last tokens kept; half of the budget in the paper.
    """

    budget: int = 256
    recent: int = 128

    def score(self, held: HeldKeys) -> Tensor:
        return held.previous + held.per_kv_head(held.weights.sum(2))

    @property
    def description(self) -> str:
        return f"H2O {self.budget - self.recent}+{self.recent}" + f", chunks of {self.chunk}" * (self.chunk > 1)


@dataclass(frozen=True, repr=False)
class TOVA(ScoredPolicy):
    """TOVA (Oren et al. 2024, "Transformers are multi-state RNNs"): drop what the last query attends to least.

    A key's score is the weight it got from the last query, averaged over all heads of the layer, so that all heads keep
    the same tokens; the last token itself may go.

    >>> sinkscope.perplexity(model, ids, [sinkscope.TOVA(16)]).policy.item()
    'TOVA 16'
    """

    def score(self, held: HeldKeys) -> Tensor:
        last = held.weights[:, :, -1].mean(1, keepdim=True)
        return last.expand(held.previous.shape)

    @property
    def description(self) -> str:
        beside = f", the last {self.recent}" if self.recent else ""
        return f"TOVA {self.budget}{beside}" + f", chunks of {self.chunk}" * (self.chunk > 1)
