"""What each layer of a model caches, found by letting it cache one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.policies import SinkWindow
from sinkscope.core.policy_on_layers import native_windows
from sinkscope.core.readiness import check_unscoped
from sinkscope.core.rotary import find_rotations
from sinkscope.core.rotation import Rotation
from sinkscope.hf.caches import growing_cache, held_states, with_cache

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
