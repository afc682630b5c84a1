"""The keys and values of layers of one kind, preallocated, in the order of the text.

    slots   [ free | sinks | last W tokens | new token | free ... ]
                     low                   at          stop

Tokens stand in neighbouring slots, so that attention reads one view of the arena and nothing is joined. Each step moves
the view one slot on and puts the sinks before it, over a token that has just been evicted; they come turned from a
master that stays as it was made. When the slots run out, what is kept moves back to the front.

Nothing that is kept is overwritten before a forward pass is over: one that fails leaves the arena as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.hf.caches import growing_cache, held_states, with_cache
from sinkscope.hf.placement import reading_device
from sinkscope.models.cached import find_layout
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import check_unscoped
from sinkscope.models.rotary import Rotation, cache_rotations
from sinkscope.policies import SinkWindow
from sinkscope.streaming.reading_cache import SLOTS, lasting_dtype

SAME_ANGLE = 1e-8  # radians per position: frequencies fitted in two layers differ by less when they are meant to be one


@dataclass(frozen=True)
class LayerKind:
    """What one layer caches and how it turns; layers of one kind share an arena."""

    sinks: int
    window: int  # tokens kept beside the sinks
    is_sliding: bool  # whether this is a native sliding window in a model that has full layers too
    rotation: Rotation | None
    shapes: dict[str, tuple[int, int]]  # of "keys" and "values": number of heads and their width
    dtype: torch.dtype
    device: torch.device

    def is_like(self, other: LayerKind) -> bool:
        """Whether two layers can share an arena."""
        one, two = self.rotation, other.rotation
        if replace(self, rotation=None) != replace(other, rotation=None):
            return False
        if one is None or two is None or one.frequencies.device != two.frequencies.device:
            return one is two
        if (one.slot, one.low, one.high, one.interleaved) != (two.slot, two.low, two.high, two.interleaved):
            return False
        return float((one.frequencies - two.frequencies).abs().max()) < SAME_ANGLE

    def turned(self, slot: str, states: Tensor, by: int | Tensor) -> Tensor:
        """States [layer, batch, kv_head, token, dim] moved by positions, a number or [batch, 1], if the slot turns."""
        if self.rotation is None or self.rotation.slot != slot:
            return states
        by = by.repeat(len(states), 1) if isinstance(by, Tensor) else by
        return self.rotation.turned(states.flatten(0, 1), by).view(states.shape)


@torch.no_grad()
def layer_kinds(model: nn.Module, policy: SinkWindow) -> list[LayerKind]:
    """The kind of each layer of the model's cache that holds keys, under a policy.

    A model that mixes layers with a native sliding window and full ones keeps the former as they are.

    Raises:
        SinkscopeError: the model cannot be streamed.
    """
    base: Any = find_anatomy(model).base
    check_unscoped(base)
    rotations, windows = cache_rotations(model), find_layout(model).windows
    mixed = None in windows.values()
    cache = growing_cache(base)
    base(torch.zeros(1, 1, dtype=torch.long, device=reading_device(base)), **with_cache(base, cache))
    kinds = []
    for place, native in windows.items():
        held = held_states(cache, place)
        shapes = {slot: (states.shape[1], states.shape[3]) for slot, states in held.items()}
        own = mixed and native is not None
        sinks, window = (0, native - 1) if own and native else (policy.sinks, policy.window)
        kinds.append(LayerKind(sinks, window, own, rotations[place], shapes, held["keys"].dtype, held["keys"].device))
    return kinds


LEAST_SLACK, MOST_SLACK = 16, 256  # slots beyond those kept: tokens between two moves to the front


def slots(kind: LayerKind) -> int:
    """Tokens that an arena has room for, sinks' masters aside."""
    return kind.sinks + kind.window + 1 + max(LEAST_SLACK, min(kind.window, MOST_SLACK))


def arena_bytes(kind: LayerKind, layers: int, batch: int) -> int:
    """What an arena will allocate."""
    entries = layers * batch * sum(heads * dim for heads, dim in kind.shapes.values())
    lasting = max(lasting_dtype(kind.dtype, slot, kind.rotation).itemsize for slot in SLOTS)
    return entries * (slots(kind) * kind.dtype.itemsize + kind.sinks * lasting)


class Arena:
    """Keys and values [layer, batch, kv_head, slot, dim] of all layers of one kind, for texts read side by side.

    Everywhere, `seen` is how many columns of the texts were read before, and `count` how many are being read.
    """

    def __init__(self, kind: LayerKind, layers: int, batch: int) -> None:
        self.kind, self.layers, self.batch = kind, layers, batch
        self.size = slots(kind)

        def empty(slot: str, tokens: int, dtype: torch.dtype) -> Tensor:
            heads, dim = kind.shapes[slot]
            try:
                return torch.zeros(layers, batch, heads, tokens, dim, dtype=dtype, device=kind.device)
            except RuntimeError as problem:
                raise SinkscopeError(
                    f"a cache of {kind.sinks + kind.window:,} tokens does not fit the memory of {kind.device} "
                    f"({first_line(problem)}); give a smaller window.",
                    page="Big models",
                ) from problem

        with torch.inference_mode(False):  # else it could not be written to outside of it later
            self.held = {slot: empty(slot, self.size, kind.dtype) for slot in SLOTS}
            self.masters = {
                slot: empty(slot, kind.sinks, lasting_dtype(kind.dtype, slot, kind.rotation)) for slot in SLOTS
            }
        self.forget()

    def forget(self) -> None:
        """Be empty."""
        self.shift = 0  # a token's column in the text minus its slot
        self.collected = 0  # columns looked at for sinks
        self.low = self.at = self.stop = 0
        self._fits = True
        self._tails: dict[int, list[Tensor]] = {}

    @property
    def tensors(self) -> list[Tensor]:
        """All that is allocated."""
        return [*self.held.values(), *self.masters.values()]

    def first_seen(self, seen: int, count: int) -> int:
        """The first column, sinks aside, that the new tokens attend to."""
        return 0 if seen + count <= self.kind.sinks + self.kind.window + 1 else max(0, seen - self.kind.window)

    def width(self, seen: int, count: int) -> int:
        """How many keys attention gets for them, with their own."""
        first = self.first_seen(seen, count)
        return seen + count - first + (self.kind.sinks if first else 0)

    # --- a forward pass -------------------------------------------------------------------------------------------

    def make_room(self, seen: int, count: int) -> None:
        """Point at the slots for the new tokens, moving what is kept to the front if they run out."""
        kept, sinks = self.kept(seen), self.kind.sinks
        self._tails = {}
        self._fits = kept + count + (sinks if kept < seen else 0) <= self.size
        if self._fits and seen + count - self.shift > self.size:
            start = seen - kept - self.shift
            for states in self.held.values():
                for done in range(0, kept, start - sinks):  # in pieces that do not overlap with where they go
                    size = min(start - sinks, kept - done)
                    states.narrow(3, sinks + done, size).copy_(states.narrow(3, start + done, size))
            self.shift = seen - kept - sinks
        self.at, self.stop = seen - self.shift, seen + count - self.shift
        self.low = self.stop - self.width(seen, count)

    def put_sinks(self, delta: int | Tensor, fallen: Tensor | None) -> None:
        """Put the sinks before the window.

        Args:
            delta: positions to move them by from their place in the text; a number or [batch, 1].
            fallen: [batch, 1], sinks of each text that have left its window; None when all have. They are put next to
                the window, in front of them what will be masked.
        """
        sinks = self.kind.sinks
        for slot, states in self.masters.items():
            if fallen is not None:
                there = fallen.to(states.device)
                picked = (torch.arange(sinks, device=there.device) - (sinks - there)).clamp(min=0)
                states = states.gather(3, picked[None, :, None, :, None].expand(states.shape))
            self.held[slot][:, :, :, self.low : self.low + sinks] = self.kind.turned(slot, states, delta)

    def take(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one layer's new keys and values [batch, kv_head, token, dim] and return all that they see.

        Where a gradient is wanted they are joined to what is kept: the arena is written to again before it is used.
        """
        pairs = [(self.held[slot][layer], new) for slot, new in zip(SLOTS, (keys, values), strict=True)]
        if self._fits:
            for held, new in pairs:
                held[:, :, self.at : self.stop] = new.detach()
        if self._fits and not keys.requires_grad:
            seen = [held[:, :, self.low : self.stop] for held, _ in pairs]
        else:
            seen = [torch.cat([held[:, :, self.low : self.at], new.to(held.dtype)], 2) for held, new in pairs]
        if not self._fits:
            self._tails[layer] = [states[:, :, -self.kind.window :].detach() for states in seen]
        return seen[0], seen[1]

    def commit(self, seen: int) -> None:
        """The forward pass is over, and `seen` tokens have been read."""
        for layer, tails in self._tails.items():
            for slot, tail in zip(SLOTS, tails, strict=True):
                self.held[slot][layer][:, :, : tail.shape[2]] = tail
                self.shift = seen - tail.shape[2]
        self._tails = {}

    # --- what is kept ---------------------------------------------------------------------------------------------

    def kept(self, seen: int) -> int:
        """How many of the last columns are kept, sinks included while nothing is evicted."""
        return seen if seen <= self.kind.sinks + self.kind.window else self.kind.window

    def last(self, seen: int, slot: str) -> Tensor:
        """The columns kept: [layer, batch, kv_head, column, dim]."""
        return self.held[slot][:, :, :, seen - self.kept(seen) - self.shift : seen - self.shift]

    def collect_sinks(self, seen: int, pads: list[int] | None, base: int) -> None:
        """Copy the first tokens of each text out, before they are evicted, at the positions of the text.

        Args:
            seen: columns read so far.
            pads: columns of padding before each text; None without any.
            base: column from which positions are counted.
        """
        sinks = self.kind.sinks
        if self.collected >= max(pads or [0]) + sinks or self.collected == seen:
            return
        for row, pad in enumerate(pads or [0]):
            start, stop = max(self.collected, pad), min(seen, pad + sinks)
            rows = slice(row, row + 1) if pads else slice(None)
            for slot, master in self.masters.items() if stop > start else ():
                states = self.held[slot][:, rows, :, start - self.shift : stop - self.shift].to(master.dtype)
                if base > pad:
                    states = self.kind.turned(slot, states, base - pad)
                master[:, rows, :, start - pad : stop - pad] = states
        self.collected = seen

    def turn(self, seen: int, by: int | Tensor) -> None:
        """Move all that is kept, sinks aside, by so many positions: a number or [batch, 1]."""
        if self.kind.rotation is not None:
            for states in self.last(seen, self.kind.rotation.slot):
                states.copy_(self.kind.rotation.turned(states, by))

    def restore(self, seen: int, columns: int) -> None:
        """Be about to get the last `columns` of `seen` columns put in, and the sinks."""
        self.forget()
        self.shift = 0 if columns == seen else seen - columns - self.kind.sinks
        self.collected = seen

    def select(self, seen: int, batch: int, chosen: Callable[[Tensor], Tensor]) -> Arena:
        """An arena of so many texts, chosen among these by `chosen`; this one where their number stays the same."""
        other = self if batch == self.batch else Arena(self.kind, self.layers, batch)
        other.shift, other.collected = self.shift, self.collected
        for slot in SLOTS:
            for to, states in zip(other.last(seen, slot), self.last(seen, slot), strict=True):
                to.copy_(chosen(states))
            for to, states in zip(other.masters[slot], self.masters[slot], strict=True):
                to.copy_(chosen(states))
        return other
