"""All that a sink cache holds: the arenas of its layers, and where in the text they stand.

Positions are counted from column `base` of the text on, so that they stay small however long it gets; after `room`
positions, the base moves to the token being read and everything kept is turned back by as much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import CacheLayer
from sinkscope.streaming.arena import SLOTS, Arena, LayerKind

ROOM = 1 << 10  # positions between two moves of the base: a float32 angle is right to 1e-4 up to there
ROOM_HALF = 1 << 13  # half precision knows an angle to 4e-3, and loses as much whenever a key is turned


class Store:
    """The arenas of all layers.

    Args:
        kinds: what each layer caches.
        sinks, window: tokens kept in the layers without a native window.
        limit: positions that the model can be given, or None.
    """

    def __init__(self, kinds: list[LayerKind], sinks: int, window: int, limit: int | None) -> None:
        self.kinds, self.sinks, self.window = kinds, sinks, window
        room = ROOM_HALF if torch.finfo(kinds[0].dtype).bits < 32 else ROOM
        self.room = room if limit is None else min(room, limit)
        self.arenas: list[Arena] = []
        self.memory: RecentIds | None = None
        self._groups = _groups(kinds)
        self._places = {layer: (group, row) for group, ls in enumerate(self._groups) for row, layer in enumerate(ls)}
        self.batch: int | None = None
        self.forget()

    def forget(self) -> None:
        """Be empty."""
        self.seen = self.base = 0
        self.pads: list[int] | None = None
        self._pads = torch.empty(0)
        self._count = 0  # new tokens of the forward pass under way
        self._waiting: set[int] = set()  # layers that have not taken them in
        self._ids: Tensor | None = None
        self._moving = False
        for arena in self.arenas:
            arena.forget()
            for states in (*arena.held.values(), *arena.masters.values()):
                states.zero_()

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ids = 0 if self.memory is None else self.memory.ids.numel() * self.memory.ids.element_size()
        return ids + sum(arena.nbytes for arena in self.arenas)

    # --- a forward pass -------------------------------------------------------------------------------------------

    def allocate(self, batch: int) -> None:
        """Have the arenas for a batch of texts; they stay as long as its size does."""
        if self.batch == batch:
            return
        self.arenas = [Arena(self.kinds[layers[0]], len(layers), batch) for layers in self._groups]
        self.memory = RecentIds(batch, self.kinds[0].device)
        self.batch = batch

    def set_pads(self, pads: list[int] | None) -> None:
        """Columns of padding before each text."""
        if pads != self.pads:
            self.pads, self._pads = pads, torch.tensor(pads or [], device=self.kinds[0].device)

    def fits_at_once(self, count: int) -> bool:
        """Whether nothing is evicted while `count` tokens come in."""
        return self.seen + count <= self.sinks + self.window + 1

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
            if arena.shows_sinks(self.seen, count):
                arena.put_sinks(self._sink_delta(), self._fallen(arena))
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
        assert self.memory is not None
        self._moving = True
        self.memory.note(self.seen, self._count, self._ids)
        self.seen += self._count
        for arena in self.arenas:
            arena.commit(self.seen)
        self._count, self._ids, self._moving = 0, None, False

    def _rebase(self) -> None:
        before = self._origins()
        self.base = self.seen
        after = self._origins()
        by = before - after
        for arena in self.arenas:
            arena.turn(self.seen, by if isinstance(by, int) else by[:, None])

    # --- positions and masks --------------------------------------------------------------------------------------

    def positions(self, count: int) -> Tensor:
        """Positions [batch, token] of the next `count` tokens, as the model should count them."""
        device = self.kinds[0].device
        columns = torch.arange(self.seen - self.base, self.seen - self.base + count, device=device).expand(
            self.batch or 1, count
        )
        if self.pads is None:
            return columns
        return (columns + self.base - self._origins()[:, None]).clamp(min=0)

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
        return torch.arange(width, device=real.device) >= width - real[:, None]

    def _origins(self) -> Any:
        """The column of position 0: a number, or [batch]."""
        return self.base if self.pads is None else self._pads.clamp(min=self.base)

    def _sink_delta(self) -> Any:
        """How far the sinks have to move for the token after `seen`: its position less that in the cache."""
        position = self.seen - self._origins()
        if self.pads is None:
            return position - min(self.seen, self.sinks + self.window)
        return (position - (self.seen - self._pads).clamp(max=self.sinks + self.window))[:, None]

    def _fallen(self, arena: Arena) -> Tensor | None:
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
                held[f"{layer}.last.{slot}"] = arena.last(self.seen, row, slot)
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
                    arena.last(seen, row, slot).copy_(tensors[f"{layer}.last.{slot}"])
        self._moving = False

    def select(self, chosen: Callable[[Tensor], Tensor]) -> None:
        """Replace the texts by others of them: `chosen` maps tensors with the batch first."""
        if self.memory is None or self.batch is None:
            return
        self.memory.select(chosen)
        if self.pads is not None:
            self.set_pads(chosen(self._pads).tolist())
        batch = len(self.memory.ids)
        if batch == self.batch:
            for arena in self.arenas:
                arena.select(self.seen, chosen)
        else:
            self.arenas = [arena.resized(self.seen, batch, chosen) for arena in self.arenas]
        self.batch = batch


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


def _groups(kinds: list[LayerKind]) -> list[list[int]]:
    """The layers, those of one kind together."""
    groups: list[list[int]] = []
    for layer, kind in enumerate(kinds):
        group = next((group for group in groups if kinds[group[0]].is_like(kind)), None)
        if group is None:
            groups.append([layer])
        else:
            group.append(layer)
    return groups


REMEMBERED = 32
UNKNOWN = -1  # a token given as an embedding


class RecentIds:
    """The last ids of each text of a batch."""

    def __init__(self, batch: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.ids = torch.full((batch, REMEMBERED), UNKNOWN, device=device)  # column t of the text at t % REMEMBERED

    def note(self, start: int, count: int, ids: Tensor | None) -> None:
        """Remember the ids [batch, token] of columns `start` to `start + count`; None when they are not known."""
        if count == 1:
            self.ids[:, start % REMEMBERED] = UNKNOWN if ids is None else ids[:, 0].to(self.ids.device)
            return
        last = min(count, REMEMBERED)
        columns = torch.arange(start + count - last, start + count, device=self.ids.device) % REMEMBERED
        self.ids[:, columns] = UNKNOWN if ids is None else ids[:, count - last :].to(self.ids.device)

    def agree(self, seen: int, ids: Tensor) -> bool:
        """Whether `ids` [batch, token], at least `seen` of them, hold what was remembered at its place."""
        columns = torch.arange(max(0, seen - REMEMBERED), seen, device=self.ids.device)
        mine = self.ids[:, columns % REMEMBERED]
        return bool(((mine == ids.to(self.ids.device)[:, columns]) | (mine == UNKNOWN)).all())

    def select(self, chosen: Callable[[Tensor], Tensor]) -> None:
        """Replace the texts by others of them."""
        self.ids = chosen(self.ids)


def read_padding(mask: Tensor | None, seen: int, batch: int, count: int, pads: list[int] | None) -> list[int] | None:
    """Columns of padding before each text of the batch; None when there are none.

    Args:
        mask: [batch, column] over `seen` columns and `count` new ones, 0 for padding; None when all are real.
        seen: columns read so far.
        batch, count: texts, and new columns of each.
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
