"""The keys and values that a policy keeps while a text is read in blocks."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.attention.scored import Memory, ScoredEviction
from sinkscope.hf.caches import Cache, CacheLayer
from sinkscope.models.facts import find_anatomy
from sinkscope.models.rotary import Rotation, find_rotations, position_ceiling
from sinkscope.policies import Policy
from sinkscope.scope.binding import cached_windows, native_windows


class RollingLayer(CacheLayer):
    """One layer's sinks and last tokens.

    Attention gets ``[sinks | neighbours | new block]``, where the neighbours reach back as far as the first new token
    sees; which of them each query sees is the attention function's affair (`attend_evicted`).

    Args:
        sinks, window: tokens kept; all when window is None.
        rotation: the layer's rotary geometry, or None.
        is_sliding: whether this is a layer with a native sliding window.
    """

    def __init__(self, sinks: int, window: int | None, rotation: Rotation | None, is_sliding: bool = False) -> None:
        super().__init__()
        self.sinks, self.window, self.rotation, self.is_sliding = sinks, window, rotation, is_sliding
        self.seen = self.base = 0
        # by slot: "keys" and "values" of the sinks, at the positions they were made at, and of the last tokens, moved
        # back by `base`; the slot that turns is held in float32 at least, so that turning it often loses nothing
        self.first: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for slot, states in (("keys", key_states), ("values", value_states)):
            turns = self.rotation is not None and self.rotation.slot == slot
            dtype = torch.promote_types(states.dtype, torch.float32) if turns else states.dtype
            self.first[slot] = self.last[slot] = states[:, :, :0].to(dtype)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in a block and return all that its queries may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new_sinks = min(max(0, self.sinks - self.seen), key_states.shape[2])
        self.seen += key_states.shape[2]
        return self._joined("keys", key_states, new_sinks), self._joined("values", value_states, new_sinks)

    def _joined(self, slot: str, new: Tensor, new_sinks: int) -> Tensor:
        wide = new.to(self.first[slot].dtype)
        self.first[slot] = torch.cat([self.first[slot], wide[:, :, :new_sinks]], 2)
        sinks = self.first[slot]
        if self.base and self.rotation is not None and self.rotation.slot == slot:
            sinks = self.rotation.turned(sinks, -self.base)
        joined = torch.cat([sinks, self.last[slot], wide[:, :, new_sinks:]], 2)
        neighbours = joined.shape[2] - sinks.shape[2]
        keep = neighbours if self.window is None else min(self.window, neighbours)
        self.last[slot] = joined[:, :, joined.shape[2] - keep :]
        return joined.to(new.dtype)

    def rebase(self, base: int) -> None:
        """Count the positions of all keys from another token of the text on."""
        if self.rotation is not None and self.is_initialized and base != self.base:
            slot = self.rotation.slot
            self.last[slot] = self.rotation.turned(self.last[slot], self.base - base)
        self.base = base

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        held = self.first["keys"].shape[2] + self.last["keys"].shape[2] if self.is_initialized else 0
        return held + query_length, self.seen - held

    def get_seq_length(self) -> int:
        return self.seen


class RollingCache(Cache):
    """What a policy keeps of a text, in every layer.

    Positions given to the model are counted from a token `base` that moves along with the text, so that they stay small
    and lose no precision however long it gets.

    Args:
        model: a decoder.
        policy: what to keep; one that is not recomputed.
    """

    def __init__(self, model: nn.Module, policy: Policy) -> None:
        anatomy = find_anatomy(model)
        kept = None if policy.is_partial else policy.kept  # where some layers or heads are dense, all is kept
        bounded = kept is not None
        natives = native_windows(model, len(anatomy.parts)) if bounded else [*cached_windows(model).values()]
        rotations = find_rotations(model) if bounded else [None] * len(natives)
        mixed = None in natives
        self.rolling = [
            RollingLayer(0, native - 1, rotation, is_sliding=True)
            if native and (mixed or not bounded)
            else RollingLayer(kept.first if kept else 0, kept.last if kept else None, rotation)
            for native, rotation in zip(natives, rotations, strict=True)
        ]
        super().__init__(layers=[*self.rolling])
        self.seen = 0
        self.memories: dict[str, Memory] = {}
        takes_positions = "position_ids" in inspect.signature(anatomy.base.forward).parameters
        self._reach = policy.cache_size if bounded and takes_positions else None
        self._takes_positions = takes_positions
        self._ceiling = position_ceiling(model) or sys.maxsize

    def positions(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Make room for a block of `count` tokens and say which positions the model should give them."""
        if self._reach is not None:
            base = max(0, self.seen - self._reach, self.seen + count - self._ceiling)
            for layer in self.rolling:
                layer.rebase(base)
        base = self.rolling[0].base
        start, self.seen = self.seen - base, self.seen + count
        if not self._takes_positions:
            return {}
        return {"position_ids": torch.arange(start, start + count, device=device)[None]}

    def memory(self, eviction: ScoredEviction) -> Memory:
        """What a scored policy remembers of the text in its heads of its layer; the cache itself holds all keys."""
        heads = "all" if eviction.heads is None else eviction.heads.nonzero().flatten().tolist()
        return self.memories.setdefault(f"{eviction.layer}.heads {heads}.", Memory())

    def tensors(self) -> dict[str, Tensor]:
        """All it holds, by name, for a checkpoint."""
        held = {name: part[slot] for name, part, slot in self._places()}
        for prefix, memory in self.memories.items():
            held |= memory.tensors(prefix)
        return held | {"base": torch.tensor(self.rolling[0].base)}

    def load_tensors(self, tensors: dict[str, Tensor], seen: int, device: torch.device) -> None:
        """Hold what `tensors` gave after `seen` tokens."""
        for name, held, slot in self._places():
            held[slot] = tensors[name].to(device)
        for layer in self.rolling:
            layer.seen, layer.base, layer.is_initialized = seen, int(tensors["base"]), True
        self.seen = seen
        prefixes = [name.removesuffix("places") for name in tensors if name.endswith(".places")]
        self.memories = {prefix: Memory.of(tensors, prefix, device) for prefix in prefixes}

    def _places(self) -> Iterator[tuple[str, dict[str, Tensor], str]]:
        for number, layer in enumerate(self.rolling):
            for part in ("first", "last"):
                for slot in ("keys", "values"):
                    yield f"{number}.{part}.{slot}", getattr(layer, part), slot
