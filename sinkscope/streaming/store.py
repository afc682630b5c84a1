"""All that a sink cache holds: the arenas of its layers, and where in the text they stand.

Positions are counted from column `base` of the text on, so that they stay small however long it gets; after `room`
positions, the base moves to the token being read and everything kept is turned back by as much.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import Cache, CacheLayer, put_states, states_of, with_cache
from sinkscope.policies import SinkWindow
from sinkscope.scope.binding import block_within_limits
from sinkscope.scope.scope import Scope
from sinkscope.streaming.arena import Arena, LayerKind
from sinkscope.streaming.reading_cache import SLOTS, RollingCache

ROOM = 1 << 10  # positions between two moves of the base: a float32 angle is right to 1e-4 up to there
ROOM_HALF = 1 << 13  # half precision knows an angle to 4e-3, and loses as much whenever a key is turned
REMEMBERED = 32  # last ids of each text, by which a prompt is known again
UNKNOWN = -1  # a token given as an embedding


class Store:
    """The arenas of all layers; `sinks` and `window` are kept in those without a native window.

    Args:
        kinds: what each layer caches.
        limit: positions that the model can be given, or None.
        rebases: whether positions may be counted anew; else they are those in the text.
    """

    def __init__(
        self, kinds: list[LayerKind], sinks: int, window: int, limit: int | None, rebases: bool = True
    ) -> None:
        self.kinds, self.sinks, self.window = kinds, sinks, window
        room = ROOM_HALF if torch.finfo(kinds[0].dtype).bits < 32 else ROOM
        self.room = sys.maxsize if not rebases else room if limit is None else min(room, limit)
        self.size = sinks + window
        self.arenas: list[Arena] = []
        self.recent = torch.empty(0)  # [batch, REMEMBERED] the last ids: that of column t at t % REMEMBERED
        groups: dict[int, list[int]] = {}  # the layers of each arena, by the first of them
        for layer, kind in enumerate(kinds):
            groups.setdefault(next(first for first in [*groups, layer] if kinds[first].is_like(kind)), []).append(layer)
        self._groups = list(groups.values())
        self._places = {layer: (group, row) for group, ls in enumerate(self._groups) for row, layer in enumerate(ls)}
        self.batch: int | None = None
        self.forget()

    def forget(self) -> None:
        """Be empty."""
        self.seen = self.base = 0
        self.pads: list[int] | None = None
        self._pads = torch.empty(0, 1)  # the same as [batch, 1]
        self._count = 0  # new tokens of the forward pass under way
        self._waiting: set[int] = set()  # layers that have not taken them in
        self._ids: Tensor | None = None
        self._moving = False
        for arena in self.arenas:
            arena.forget()
            for states in arena.tensors:
                states.zero_()

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.recent.nbytes + sum(tensor.nbytes for arena in self.arenas for tensor in arena.tensors)

    # --- a forward pass -------------------------------------------------------------------------------------------

    def allocate(self, batch: int) -> None:
        """Have the arenas for a batch of texts; they stay as long as its size does."""
        if self.batch == batch:
            return
        self.arenas = [Arena(self.kinds[layers[0]], len(layers), batch) for layers in self._groups]
        with torch.inference_mode(False):
            self.recent = torch.full((batch, REMEMBERED), UNKNOWN, device=self.kinds[0].device)
        self.batch = batch

    def set_pads(self, pads: list[int] | None) -> None:
        """Columns of padding before each text."""
        if pads != self.pads:
            self.pads, self._pads = pads, torch.tensor(pads or [], device=self.kinds[0].device)[:, None]

    def advance(self, count: int, ids: Tensor | None) -> None:
        """Make ready for a forward pass over `count` tokens: one, or as many as come in without eviction."""
        if self._moving:
            raise SinkscopeError("this cache was interrupted while it moved its keys; reset() it and read again.")
        for arena in self.arenas:
            arena.collect_sinks(self.seen, self.pads, self.base)
        self._moving = True
        if self.base < self.seen and self.seen - self.base + count > self.room:
            self._rebase()
        for arena in self.arenas:
            arena.make_room(self.seen, count)
        self._moving = False
        for arena in self.arenas:
            if arena.kind.sinks and arena.first_seen(self.seen, count):  # some have left the window
                arena.put_sinks(self._sink_delta(), self._fallen())
        self._count, self._ids = count, ids
        self._waiting = set(self._places)

    def take(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the new keys and values of one layer and return all that they see."""
        if layer not in self._waiting or keys.shape[0] != self.batch or keys.shape[2] != self._count:
            raise SinkscopeError(
                "this cache was made for another model than that which uses it, or it is closed; make a new SinkCache."
            )
        group, row = self._places[layer]
        states = self.arenas[group].take(row, keys, values)
        self._waiting.discard(layer)
        if not self._waiting:
            self._commit()
        return states

    def _commit(self) -> None:
        self._moving = True
        self.remember(self.seen, self._count, self._ids)
        self.seen += self._count
        for arena in self.arenas:
            arena.commit(self.seen)
        self._count, self._ids, self._moving = 0, None, False

    def remember(self, start: int, count: int, ids: Tensor | None) -> None:
        """Remember the ids [batch, token] of columns `start` to `start + count`; None when they are not known."""
        if count == 1:
            self.recent[:, start % REMEMBERED] = UNKNOWN if ids is None else ids[:, 0].to(self.recent.device)
            return
        last = min(count, REMEMBERED)
        columns = torch.arange(start + count - last, start + count, device=self.recent.device) % REMEMBERED
        self.recent[:, columns] = UNKNOWN if ids is None else ids[:, count - last :].to(self.recent.device)

    def continues(self, ids: Tensor) -> bool:
        """Whether `ids` [batch, token], at least `seen` of them, hold what is remembered at its place."""
        columns = torch.arange(max(0, self.seen - REMEMBERED), self.seen, device=self.recent.device)
        mine = self.recent[:, columns % REMEMBERED]
        return bool(((mine == ids.to(self.recent.device)[:, columns]) | (mine == UNKNOWN)).all())

    def _rebase(self) -> None:
        before = self._origins()
        self.base = self.seen
        for arena in self.arenas:
            arena.turn(self.seen, before - self._origins())

    # --- positions and masks --------------------------------------------------------------------------------------

    def positions(self, count: int) -> Tensor:
        """Positions [batch, token] of the next `count` tokens, as the model should count them."""
        columns = torch.arange(self.seen, self.seen + count, device=self.kinds[0].device)
        return (columns - self._origins()).clamp(min=0).expand(self.batch or 1, count)

    def width(self, count: int, layer: int | None = None) -> int:
        """Keys that `count` new tokens get in one layer; in the widest when None."""
        if not self.arenas:
            return count
        if layer is not None:
            return self.arenas[self._places[layer][0]].width(self.seen, count)
        return max(arena.width(self.seen, count) for arena in self.arenas)

    def visible(self, count: int) -> Tensor | None:
        """Booleans [batch, key] over the widest layer's keys, right-aligned in all; None when no padding is left."""
        width = self.width(count)
        if self.pads is None or max(self.pads) <= self.seen + count - width:
            return None
        real = self.seen + count - self._pads
        return torch.arange(width, device=real.device) >= width - real

    def _origins(self) -> Any:
        """The column of position 0: a number, or [batch, 1]."""
        return self.base if self.pads is None else self._pads.clamp(min=self.base)

    def _sink_delta(self) -> Any:
        """How far the sinks have to move for the token after `seen`: its position less that in the cache."""
        held = min(self.seen, self.size) if self.pads is None else (self.seen - self._pads).clamp(max=self.size)
        return self.seen - self._origins() - held

    def _fallen(self) -> Tensor | None:
        """Sinks of each text that have left its window; None when all have."""
        first = self.seen - self.window
        if self.pads is None or first - max(self.pads) >= self.sinks:
            return None
        return (first - self._pads).clamp(0, self.sinks)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All it holds, by name, as `RollingCache.tensors` names it.

        `first` are the sinks at their positions in the text, `last` the columns kept, counted from `base`.
        """
        held: dict[str, Tensor] = {"base": torch.tensor(self.base)}
        for layer, (group, row) in sorted(self._places.items()):
            arena = self.arenas[group]
            arena.collect_sinks(self.seen, self.pads, self.base)
            for slot in SLOTS:
                held[f"{layer}.first.{slot}"] = arena.masters[slot][row][:, :, : self.seen]
                held[f"{layer}.last.{slot}"] = arena.last(self.seen, slot)[row]
        return held

    def load_tensors(self, tensors: dict[str, Tensor], seen: int) -> None:
        """Hold what `tensors` gave after `seen` tokens; the batch and its padding are set before."""
        self._moving = True
        self.seen, self.base = seen, int(tensors["base"])
        for arena, layers in zip(self.arenas, self._groups, strict=True):
            arena.restore(seen, tensors[f"{layers[0]}.last.keys"].shape[2])
            for row, layer in enumerate(layers):
                for slot in SLOTS:
                    first = tensors[f"{layer}.first.{slot}"]
                    arena.masters[slot][row][:, :, : first.shape[2]] = first
                    arena.last(seen, slot)[row].copy_(tensors[f"{layer}.last.{slot}"])
        self._moving = False

    def select(self, chosen: Callable[[Tensor], Tensor]) -> None:
        """Replace the texts by others of them: `chosen` maps tensors with the batch first."""
        if self.batch is None:
            return
        self.recent = chosen(self.recent)
        if self.pads is not None:
            self.set_pads(chosen(self._pads).flatten().tolist())
        self.batch = len(self.recent)
        self.arenas = [arena.select(self.seen, self.batch, chosen) for arena in self.arenas]


class ArenaLayer(CacheLayer):
    """One layer of a sink cache, as transformers sees it; what it holds is in the store."""

    def __init__(self, store: Store, layer: int) -> None:
        super().__init__()
        self.store, self.layer = store, layer
        self.is_sliding = store.kinds[layer].is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in new keys and values [batch, kv_head, token, dim] and return all that they see."""
        self.keys, self.values = self.store.take(self.layer, key_states, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        width = self.store.width(query_length, self.layer)
        return width, self.store.width(query_length) - width

    def get_seq_length(self) -> int:
        return self.store.seen


def read_padding(mask: Tensor | None, seen: int, batch: int, count: int, pads: list[int] | None) -> list[int] | None:
    """Columns of padding before each text of the batch; None when there are none.

    Args:
        mask: [batch, column] over `seen` columns and `count` new ones, 0 for padding; None when all are real.
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


def causal_bias(store: Store, count: int, visible: Tensor | None) -> Tensor:
    """A mask [batch, 1, token, key] to add to the scores; `visible` [batch, key] is False for padding."""
    kind, width = store.kinds[0], store.width(count)
    lowest = torch.finfo(kind.dtype).min
    bias = torch.full((count, width), lowest, dtype=kind.dtype, device=kind.device).triu(width - count + 1)[None, None]
    return bias if visible is None else bias.masked_fill(~visible[:, None, None, :], lowest)


BLOCK = 512  # tokens per forward pass
OF_THE_CACHE = ("attention_mask", "position_ids")  # arguments that a cache makes itself


def part_of(given: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The arguments [batch, token, ...] of a forward pass that go with its tokens, from `start` to `stop`."""
    read = given.get("input_ids")
    tokens = given["inputs_embeds"] if read is None else read
    along = {name: each for name, each in given.items() if isinstance(each, Tensor) and name not in OF_THE_CACHE}
    return {name: each[:, start:stop] for name, each in along.items() if each.shape[:2] == tokens.shape[:2]}


@torch.no_grad()
def read_blocks(
    base: nn.Module, store: Store, cache: Cache, given: dict[str, Any], ids: Tensor | None, count: int
) -> None:
    """Read the first `count` tokens of a forward pass in blocks; the store changes when all are read.

    `ids` are those of its tokens, also where the model gets embeddings; None where nobody knows them. Recurrent states
    are those of the cache, and move on with every block.
    """
    policy = SinkWindow(store.sinks, store.window)
    rolling, seen, device = RollingCache(base, policy), store.seen, store.kinds[0].device
    if seen:
        rolling.load_tensors(_without_sinks(store) | states_of(cache), seen, device)
    block = block_within_limits(base, policy, BLOCK)
    with Scope(base, (), policy=policy, alone=True):
        for start in range(0, count, block):
            stop = min(count, start + block)
            positions = rolling.positions(stop - start, device)
            base(**part_of(given, start, stop), **with_cache(base, rolling), **positions)
    store.load_tensors(rolling.tensors(), seen + count)
    put_states(cache, states_of(rolling), device)
    store.remember(seen, count, None if ids is None else ids[:, :count])


def _without_sinks(store: Store) -> dict[str, Tensor]:
    """What a store holds as a `RollingCache` holds it: sinks that are still in the window are no neighbours there."""
    tensors = store.tensors()
    for (layer, kind), slot in product(enumerate(store.kinds), SLOTS):
        first, last = f"{layer}.first.{slot}", f"{layer}.last.{slot}"
        inside = kind.sinks if store.seen <= kind.sinks + kind.window else 0
        tensors[last] = tensors[last][:, :, inside:].to(tensors[first].dtype).clone()
        tensors[first] = tensors[first].clone()
    return tensors
