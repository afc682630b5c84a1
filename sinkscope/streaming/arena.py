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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.hf.caches import growing_cache, held_states, with_cache
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import check_unscoped
from sinkscope.models.rotary import Rotation, find_rotations
from sinkscope.policies import SinkWindow
from sinkscope.scope.binding import native_windows

SAME_ANGLE = 1e-8  # radians per position: frequencies fitted in two layers differ by less when they are meant to be one


@dataclass(frozen=True, eq=False)
class LayerKind:
    """What one layer caches and how it turns; layers of one kind share an arena.

    Attributes:
        sinks, window: tokens kept.
        is_sliding: whether this is a native sliding window in a model that has full layers too.
        rotation: the rotary geometry, or None.
        shapes: by slot, "keys" and "values": number of heads and their width.
        dtype, device: of both.
    """

    sinks: int
    window: int
    is_sliding: bool
    rotation: Rotation | None
    shapes: dict[str, tuple[int, int]]
    dtype: torch.dtype
    device: torch.device

    def is_like(self, other: LayerKind) -> bool:
        """Whether two layers can share an arena."""
        mine = (self.sinks, self.window, self.is_sliding, self.shapes, self.dtype, self.device)
        others = (other.sinks, other.window, other.is_sliding, other.shapes, other.dtype, other.device)
        return mine == others and _turn_alike(self.rotation, other.rotation)


@torch.no_grad()
def layer_kinds(model: nn.Module, policy: SinkWindow) -> list[LayerKind]:
    """The kind of each layer under a policy.

    A model that mixes layers with a native sliding window and full ones keeps the former as they are.

    Raises:
        SinkscopeError: the model cannot be streamed.
    """
    base: Any = find_anatomy(model).base
    check_unscoped(base)
    rotations = find_rotations(model)
    windows = native_windows(model, len(rotations))
    mixed = None in windows
    cache = growing_cache()
    base(torch.zeros(1, 1, dtype=torch.long, device=base.device), **with_cache(base, cache))
    kinds = []
    for layer, (rotation, native) in enumerate(zip(rotations, windows, strict=True)):
        slides, held = mixed and native is not None, held_states(cache, layer)
        shapes = {slot: (states.shape[1], states.shape[3]) for slot, states in held.items()}
        sinks, window = (0, native - 1) if slides and native is not None else (policy.sinks, policy.window)
        keys = held["keys"]
        kinds.append(LayerKind(sinks, window, slides, rotation, shapes, keys.dtype, keys.device))
    return kinds


def _turn_alike(one: Rotation | None, other: Rotation | None) -> bool:
    if one is None or other is None:
        return one is other
    alike = (one.slot, one.low, one.high, one.interleaved) == (other.slot, other.low, other.high, other.interleaved)
    if not alike or one.frequencies.device != other.frequencies.device:
        return False
    return float((one.frequencies - other.frequencies).abs().max()) < SAME_ANGLE


LEAST_SLACK, MOST_SLACK = 16, 256  # slots beyond those kept: tokens between two moves to the front
SLOTS = ("keys", "values")


class Arena:
    """Keys and values [layer, batch, kv_head, slot, dim] of all layers of one kind.

    Args:
        kind: what the layers share.
        layers: how many they are.
        batch: texts read side by side.
    """

    def __init__(self, kind: LayerKind, layers: int, batch: int) -> None:
        self.kind, self.layers = kind, layers
        self.size = kind.sinks + kind.window + 1 + max(LEAST_SLACK, min(kind.window, MOST_SLACK))
        with torch.inference_mode(False):  # else it could not be written to outside of it later
            self.held = {slot: self._zeros(slot, batch, self.size, kind.dtype) for slot in SLOTS}
            self.masters = {slot: self._zeros(slot, batch, kind.sinks, self._master_dtype(slot)) for slot in SLOTS}
        self.forget()

    def forget(self) -> None:
        """Be empty."""
        self.shift = 0  # a token's column in the text minus its slot
        self.collected = 0  # columns looked at for sinks
        self.low = self.at = self.stop = 0
        self._fits = True
        self._tails: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all that is allocated."""
        tensors = (*self.held.values(), *self.masters.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def first_seen(self, seen: int, count: int) -> int:
        """The first column, sinks aside, that `count` tokens after `seen` attend to."""
        return 0 if seen + count <= self.kind.sinks + self.kind.window + 1 else max(0, seen - self.kind.window)

    def width(self, seen: int, count: int) -> int:
        """How many keys attention gets for them, with their own."""
        first = self.first_seen(seen, count)
        return seen + count - first + (self.kind.sinks if first else 0)

    def shows_sinks(self, seen: int, count: int) -> bool:
        """Whether some of those keys are sinks that have left the window."""
        return self.kind.sinks > 0 and self.first_seen(seen, count) > 0

    # --- a forward pass -------------------------------------------------------------------------------------------

    def make_room(self, seen: int, count: int) -> None:
        """Point at the slots for `count` tokens after `seen`, moving what is kept to the front if they run out."""
        kept, self._tails = self.kept(seen), {}
        self._fits = kept + count + (self.kind.sinks if kept < seen else 0) <= self.size
        if self._fits and seen + count - self.shift > self.size:
            self._move(seen - kept - self.shift, self.kind.sinks, kept)
            self.shift = seen - kept - self.kind.sinks
        first = self.first_seen(seen, count)
        self.at, self.stop = seen - self.shift, seen + count - self.shift
        self.low = first - self.shift - (self.kind.sinks if first else 0)

    def put_sinks(self, delta: int | Tensor, fallen: Tensor | None) -> None:
        """Put the sinks before the window.

        Args:
            delta: positions to move them by from their place in the text; a number or [batch, 1].
            fallen: [batch], sinks of each text that have left its window; None when all have. They are put next to the
                window, in front of them what will be masked.
        """
        sinks = self.kind.sinks
        for slot in SLOTS:
            states = self.masters[slot]
            if fallen is not None:
                there = fallen.to(states.device)
                picked = (torch.arange(sinks, device=there.device) - (sinks - there[:, None])).clamp(min=0)
                states = states.gather(3, picked[None, :, None, :, None].expand(states.shape))
            if self.kind.rotation is not None and self.kind.rotation.slot == slot:
                by = delta.repeat(self.layers, 1) if isinstance(delta, Tensor) else delta
                states = self.kind.rotation.turned(states.flatten(0, 1), by).view(states.shape)
            self.held[slot][:, :, :, self.low : self.low + sinks] = states

    def take(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one layer's new keys and values [batch, kv_head, token, dim] and return all that they see.

        Where a gradient is wanted they are joined to what is kept: the arena is written to again before it is used.
        """
        held_keys, held_values = self.held["keys"][layer], self.held["values"][layer]
        if self._fits:
            held_keys[:, :, self.at : self.stop] = keys.detach()
            held_values[:, :, self.at : self.stop] = values.detach()
        if self._fits and not keys.requires_grad:
            return held_keys[:, :, self.low : self.stop], held_values[:, :, self.low : self.stop]
        joined = (
            torch.cat([held_keys[:, :, self.low : self.at], keys.to(held_keys.dtype)], 2),
            torch.cat([held_values[:, :, self.low : self.at], values.to(held_values.dtype)], 2),
        )
        if not self._fits:
            window = self.kind.window
            self._tails[layer] = (joined[0][:, :, -window:].detach(), joined[1][:, :, -window:].detach())
        return joined

    def commit(self, seen: int) -> None:
        """The forward pass is over, and `seen` tokens have been read."""
        if self._fits:
            return
        for layer, (keys, values) in self._tails.items():
            self.held["keys"][layer][:, :, : keys.shape[2]] = keys
            self.held["values"][layer][:, :, : keys.shape[2]] = values
            self.shift = seen - keys.shape[2]
        self._tails, self._fits = {}, True

    # --- what is kept ---------------------------------------------------------------------------------------------

    def kept(self, seen: int) -> int:
        """How many of the last columns are kept, sinks included while nothing is evicted."""
        return seen if seen <= self.kind.sinks + self.kind.window else self.kind.window

    def collect_sinks(self, seen: int, pads: list[int] | None, base: int) -> None:
        """Copy the first tokens of each text out, before they are evicted, at the positions of the text.

        Args:
            seen: columns read so far.
            pads: columns of padding before each text; None without any.
            base: column from which positions are counted.
        """
        sinks, farthest = self.kind.sinks, max(pads, default=0) if pads else 0
        if self.collected >= farthest + sinks or self.collected == seen:
            return
        for row, pad in enumerate([0] if pads is None else pads):
            start, stop = max(self.collected, pad), min(seen, pad + sinks)
            rows = slice(None) if pads is None else slice(row, row + 1)
            for slot in SLOTS if stop > start else ():
                states = self.held[slot][:, rows, :, start - self.shift : stop - self.shift]
                back = max(0, base - pad)
                if back and self.kind.rotation is not None and self.kind.rotation.slot == slot:
                    wide = states.flatten(0, 1).to(self.masters[slot].dtype)
                    states = self.kind.rotation.turned(wide, back).view(states.shape)
                self.masters[slot][:, rows, :, start - pad : stop - pad] = states
        self.collected = seen

    def turn(self, seen: int, by: int | Tensor) -> None:
        """Move all that is kept, sinks aside, by so many positions: a number or [batch, 1]."""
        if self.kind.rotation is None:
            return
        for states in self.held[self.kind.rotation.slot]:
            part = states[:, :, seen - self.kept(seen) - self.shift : seen - self.shift]
            part.copy_(self.kind.rotation.turned(part, by))

    def last(self, seen: int, layer: int, slot: str) -> Tensor:
        """The columns one layer keeps: [batch, kv_head, column, dim]."""
        return self.held[slot][layer][:, :, seen - self.kept(seen) - self.shift : seen - self.shift]

    def restore(self, seen: int, columns: int) -> None:
        """Be about to get the last `columns` of `seen` columns put in, and the sinks."""
        self.forget()
        self.shift = 0 if columns == seen else seen - columns - self.kind.sinks
        self.collected = seen

    def select(self, seen: int, chosen: Callable[[Tensor], Tensor]) -> None:
        """Replace the texts by others of them: `chosen` maps tensors with the batch first."""
        start, stop = seen - self.kept(seen) - self.shift, seen - self.shift
        for slot in SLOTS:
            for states, firsts in zip(self.held[slot], self.masters[slot], strict=True):
                states[:, :, start:stop] = chosen(states[:, :, start:stop])
                firsts.copy_(chosen(firsts))

    def resized(self, seen: int, batch: int, chosen: Callable[[Tensor], Tensor]) -> Arena:
        """An arena for another number of texts, chosen among these."""
        other = Arena(self.kind, self.layers, batch)
        other.shift, other.collected = self.shift, self.collected
        start, stop = seen - self.kept(seen) - self.shift, seen - self.shift
        for slot in SLOTS:
            for layer in range(self.layers):
                other.held[slot][layer, :, :, start:stop] = chosen(self.held[slot][layer, :, :, start:stop])
                other.masters[slot][layer] = chosen(self.masters[slot][layer])
        return other

    def _move(self, start: int, to: int, count: int) -> None:
        """Move slots to the front, in pieces that do not overlap with where they go."""
        step = start - to
        for states in self.held.values():
            for done in range(0, count, step):
                size = min(step, count - done)
                states[:, :, :, to + done : to + done + size] = states[:, :, :, start + done : start + done + size]

    def _zeros(self, slot: str, batch: int, tokens: int, dtype: torch.dtype) -> Tensor:
        heads, dim = self.kind.shapes[slot]
        return torch.zeros(self.layers, batch, heads, tokens, dim, dtype=dtype, device=self.kind.device)

    def _master_dtype(self, slot: str) -> torch.dtype:
        turns = self.kind.rotation is not None and self.kind.rotation.slot == slot
        return torch.promote_types(self.kind.dtype, torch.float32) if turns else self.kind.dtype
