"""A scored policy as one layer carries it out: keys are dropped by the attention they got, chunk after chunk.

What a token sees in a layer depends on the attention of the tokens before it in that layer alone. So a whole block of
text can go through a model layer by layer, with a loop over its chunks inside each layer, and gives what one chunk at a
time through all layers gives.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from sinkscope.attention.attend import scores_of, weigh_values
from sinkscope.attention.attend_layer import Attended, Block, Weighing, joined
from sinkscope.attention.eviction import Eviction
from sinkscope.attention.masks import CausalMask, LastSeenMask, Mask
from sinkscope.errors import SinkscopeError


@dataclass(frozen=True)
class HeldKeys:
    """The keys that a layer holds after a chunk of text, its own included, oldest first: what a scored policy looks at.

    Attributes:
        weights: [sequence, head, query, key] attention of the chunk's queries, float32; 0 where a key is hidden.
        previous: [sequence, kv_head, key] the policy's scores of last time, float32; 0 for the chunk's own keys.
        places: [sequence, kv_head, key] where in the text the keys stand.
        key, value: [sequence, kv_head, key, dim].
    """

    weights: Tensor
    previous: Tensor
    places: Tensor
    key: Tensor
    value: Tensor

    def per_kv_head(self, values: Tensor) -> Tensor:
        """Numbers [sequence, head, key] averaged over the query heads that share keys: [sequence, kv_head, key]."""
        return reduce(values, "sequence (kv_head group) key -> sequence kv_head key", "mean", kv_head=self.key.shape[1])


class Scoring(Protocol):
    """What a scored policy is asked."""

    @property
    def budget(self) -> int: ...
    @property
    def recent(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    def score(self, held: HeldKeys) -> Tensor: ...


@dataclass(eq=False)
class Memory:
    """What a layer holds of the texts read so far, and its scores; nothing before the first token."""

    places: Tensor | None = None  # [sequence, kv_head, key]
    scores: Tensor | None = None  # [sequence, kv_head, key]
    pending: Tensor | None = None  # [sequence, head, query, key] weights of the queries of a chunk that has not ended
    holds_all: bool = True  # whether the cache keeps every key of the text, or only these

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """What it holds by name, for a checkpoint."""
        held = {"places": self.places, "scores": self.scores, "pending": self.pending}
        return {prefix + name: states for name, states in held.items() if states is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], prefix: str, device: torch.device, holds_all: bool = True) -> Memory:
        """The memory whose `tensors` these were."""
        given = (tensors.get(prefix + name) for name in ("places", "scores", "pending"))
        places, scores, pending = (None if states is None else states.to(device) for states in given)
        return cls(places, scores, pending, holds_all)


@dataclass(eq=False)
class _Run:
    """What changes while a text is read: the memory of its cache, and until when each key was seen."""

    memory: Memory = field(default_factory=Memory)
    cache: Any = None
    filled: weakref.ref[Any] | None = None
    last_seen: Tensor | None = None
    has_attended: bool = False  # in the forward pass under way


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredEviction(Eviction):
    """The keys with the highest scores, in the attention layer with this number, counted from 0."""

    policy: Scoring
    layer: int = 0
    run: _Run = field(default_factory=_Run)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        raise NotImplementedError("which keys are seen is known once attention has been computed, head by head")

    def begin(self, cache: Any, start: int) -> None:
        self.run.cache = cache if hasattr(cache, "keep") else None  # it drops the keys that the policy drops
        self.run.has_attended = False
        if hasattr(cache, "memory"):
            self.run.memory = cache.memory(self)
        elif start == 0:
            self.run.memory = Memory()
            self.run.filled = None
        elif cache is None or self.run.filled is None or self.run.filled() is not cache:
            raise SinkscopeError(
                f"{self.policy!r} drops keys by the attention they got, and this cache was filled without it; start "
                "with an empty cache inside the scope, or use a sinkscope.ScoredCache."
            )

    def end(self, cache: Any) -> None:
        if self.run.cache is not None:
            self.run.cache.finish(self)
        self.run.filled = None if cache is None else weakref.ref(cache)

    def attend(self, block: Block, weighing: Weighing) -> Attended:
        run, new = self.run, block.query.shape[2]
        if run.has_attended:
            raise SinkscopeError(
                f"a layer of this model attends several times in one forward pass, and {self.policy!r} remembers what "
                "each layer attended to; give a policy that follows from places in the text."
            )
        run.has_attended = True
        batch, kv_heads = block.key.shape[:2]
        memory = run.memory
        if memory.places is None or memory.scores is None:
            memory.places = torch.zeros(batch, kv_heads, 0, dtype=torch.long, device=block.key.device)
            memory.scores = torch.zeros(batch, kv_heads, 0, device=block.key.device)
        past = block.key.shape[2] - new
        key, value = (states[:, :, :past] for states in (block.key, block.value))
        if memory.holds_all:
            key, value = _at(key, memory.places), _at(value, memory.places)
        own = torch.arange(block.start, block.start + new, device=block.key.device).expand(batch, kv_heads, new)
        run.last_seen = torch.full((batch, kv_heads, block.start + new), block.start + new, device=block.key.device)
        run.last_seen[:, :, : block.start] = -1
        run.last_seen.scatter_(2, memory.places, block.start + new)
        outputs, first = [], 0
        while first < new:
            last = min(new, first + self.policy.chunk - (block.start + first) % self.policy.chunk)
            key, value = (
                torch.cat([held, states[:, :, past + first : past + last]], 2)
                for held, states in ((key, block.key), (value, block.value))
            )
            places = torch.cat([memory.places, own[:, :, first:last]], 2)
            scores = F.pad(memory.scores, (0, last - first))
            part = block._replace(query=block.query[:, :, first:last], key=key, value=value, start=block.start + first)
            attended, weights = _with_weights(part, weighing)
            outputs.append(attended)
            if memory.pending is not None:
                weights = torch.cat([F.pad(memory.pending, (0, last - first)), weights], 2)
            memory.places, memory.scores, memory.pending = places, scores, weights
            first = last
            if (block.start + last) % self.policy.chunk:
                continue
            scores = self._scores(HeldKeys(weights, scores, places, key, value))
            if places.shape[2] > self.policy.budget:
                kept = self._kept(scores)
                dropped = torch.ones_like(scores, dtype=torch.bool).scatter_(2, kept, False)
                gone = places[dropped].view(batch, kv_heads, -1)
                run.last_seen.scatter_(2, gone, block.start + last - 1)
                places, scores = places.gather(2, kept), scores.gather(2, kept)
                key, value = _at(key, kept), _at(value, kept)
            memory.places, memory.scores, memory.pending = places, scores.float(), None
        if run.cache is not None:
            run.cache.keep(self.layer, key, value)
        return joined(outputs)

    def mask(self, query: Tensor, start: int) -> Mask:
        assert self.run.last_seen is not None
        rows = torch.arange(start, start + query.shape[2], device=query.device)
        group = query.shape[1] // self.run.last_seen.shape[1]
        return LastSeenMask(self.run.last_seen.repeat_interleave(group, 1), rows)

    def _scores(self, held: HeldKeys) -> Tensor:
        scores = self.policy.score(held)
        expected = tuple(held.previous.shape)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
            shape = f"the shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise SinkscopeError(
                f"`score` of {self.policy!r} gave {shape}; expected scores [sequence, kv_head, key], here {expected}."
            )
        check_order(self.policy, scores)
        if bool(scores.isnan().any()):
            raise SinkscopeError(f"`score` of {self.policy!r} gave NaN, by which no keys can be chosen.")
        return scores

    def _kept(self, scores: Tensor) -> Tensor:
        """Which keys are kept [sequence, kv_head, budget], oldest first; of equal scores, the older key."""
        recent, count = self.policy.recent, scores.shape[2]
        older = scores[:, :, : count - recent]
        best = older.sort(dim=-1, descending=True, stable=True).indices[..., : self.policy.budget - recent]
        last = torch.arange(count - recent, count, device=scores.device).expand(*scores.shape[:2], recent)
        return torch.cat([best.sort(-1).values, last], 2)


def check_order(policy: Scoring, scores: Any) -> None:
    """Raise SinkscopeError for scores by which keys cannot be ranked."""
    if isinstance(scores, Tensor) and scores.is_complex():
        raise SinkscopeError(f"`score` of {policy!r} gave complex numbers, which have no order.")


def _with_weights(block: Block, weighing: Weighing) -> tuple[Attended, Tensor]:
    """Attention of a few queries over keys that are all in their past but the last, and its weights without a graph."""
    count, keys = block.query.shape[2], block.key.shape[2]
    rows, columns, mask = slice(0, count), slice(0, keys), CausalMask(keys - count)
    with torch.autocast(block.query.device.type, enabled=False):
        scores = scores_of(block.query, block.key, mask, rows, columns, block.scale, block.softcap)
        lse = weighing.denominator(scores.logsumexp(-1))
        own = scores.clone() if scores.requires_grad else scores  # the gradient of the sum needs them as they are
        weights = weighing.weights(own, lse[..., None], lambda: mask.seen(rows, keys))
        output = weigh_values(weights, block.value)
        if weighing.replaces_softmax:
            output = weighing.with_gradients(output)
    return Attended(output.to(block.query.dtype), lse), weights.detach()


def _at(states: Tensor, places: Tensor) -> Tensor:
    """States [sequence, kv_head, key, dim] at some places [sequence, kv_head, chosen]."""
    return states.gather(2, places[..., None].expand(*places.shape, states.shape[-1]))
