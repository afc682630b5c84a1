"""The keys and values that a policy keeps while a text is read: sinks and last tokens in most (`RollingCache`); what
attention chose, in every layer and key-value head, under a scored one (`KeptKeys`; `ScoredCache` for `generate()`)."""

from __future__ import annotations

import sys
from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.attention.scored import Memory, ScoredEviction
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import Cache, CacheLayer, layers_with, put_states, states_of
from sinkscope.models.cached import cache_devices, find_layout, layer_devices, takes_positions
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import check_decoder, check_eval, check_streamable
from sinkscope.models.rotary import Rotation, cache_rotations, find_rotations, position_ceiling, scales_queries
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy, ScoredPolicy
from sinkscope.scope.binding import check_limits, reads_in_blocks
from sinkscope.scope.scope import attached
from sinkscope.undo import entering, leaving

SLOTS = ("keys", "values")


def lasting_dtype(dtype: torch.dtype, slot: str, rotation: Rotation | None) -> torch.dtype:
    """The dtype in which a slot is held: float32 at least where it turns, so that turning it often loses nothing."""
    return torch.promote_types(dtype, torch.float32) if rotation and rotation.slot == slot else dtype


class RollingLayer(CacheLayer):
    """One layer's sinks and last tokens; all tokens when window is None.

    Attention gets ``[sinks | neighbours | new block]``, where the neighbours reach back as far as the first new token
    sees; which of them each query sees is the attention function's affair (`attend_evicted`).
    """

    def __init__(self, sinks: int, window: int | None, rotation: Rotation | None, is_sliding: bool = False) -> None:
        super().__init__()
        self.sinks, self.window, self.rotation, self.is_sliding = sinks, window, rotation, is_sliding
        # by slot, of the sinks at the positions they were made at, and of the last tokens, moved back by `base`
        self.first: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}
        self.forget()

    def forget(self) -> None:
        self.seen = self.base = 0
        self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for slot, states in zip(SLOTS, (key_states, value_states), strict=True):
            empty = states[:, :, :0].to(lasting_dtype(states.dtype, slot, self.rotation))
            self.first[slot] = self.last[slot] = empty
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in a block and return all that its queries may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new_sinks = min(max(0, self.sinks - self.seen), key_states.shape[2])
        self.seen += key_states.shape[2]
        self.keys = self._joined("keys", key_states, new_sinks)
        self.values = self._joined("values", value_states, new_sinks)
        return self.keys, self.values

    def _joined(self, slot: str, new: Tensor, new_sinks: int) -> Tensor:
        wide = new.to(self.first[slot].dtype)
        self.first[slot] = sinks = torch.cat([self.first[slot], wide[:, :, :new_sinks]], 2)
        if self.base and self.rotation is not None and self.rotation.slot == slot:
            sinks = self.rotation.turned(sinks, -self.base)
        joined = torch.cat([sinks, self.last[slot], wide[:, :, new_sinks:]], 2)
        neighbours = joined.shape[2] - sinks.shape[2]
        keep = neighbours if self.window is None else min(self.window, neighbours)
        self._keep(slot, joined[:, :, neighbours - keep + sinks.shape[2] :])
        return joined.to(new.dtype)

    def _keep(self, slot: str, states: Tensor) -> None:
        """Hold the last tokens, where those before them were held: memory does not fall to pieces over a long text."""
        held, is_bounded = self.last[slot], self.window is not None and not states.requires_grad
        if is_bounded and held.shape == states.shape and not held.is_inference():
            held.copy_(states)
        else:
            self.last[slot] = states.clone() if is_bounded else states

    def rebase(self, base: int) -> None:
        """Count the positions of all keys from another token of the text on."""
        if self.rotation is not None and self.is_initialized and base != self.base:
            slot = self.rotation.slot
            self._keep(slot, self.rotation.turned(self.last[slot], self.base - base))
        self.base = base

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        held = self.first["keys"].shape[2] + self.last["keys"].shape[2] if self.is_initialized else 0
        return held + query_length, self.seen - held

    def get_seq_length(self) -> int:
        return self.seen


class RollingCache(Cache):
    """What a policy that is not recomputed keeps of a text, in every layer.

    Positions given to the model are counted from a token `base` that moves along with the text, so that they stay small
    and lose no precision however long it gets.
    """

    def __init__(self, model: nn.Module, policy: Policy) -> None:
        layout = find_layout(model)
        if layout.foreign:
            raise SinkscopeError(f"{type(model).__name__} {layout.foreign}, so that no other can take its place.")
        kept = None if policy.is_partial else policy.kept  # where some layers or heads are dense, all is kept
        bounded = kept is not None
        natives = layout.windows
        rotations = cache_rotations(model) if bounded else dict.fromkeys(natives)
        mixed = None in natives.values()
        rolling = {
            place: RollingLayer(0, native - 1, rotations[place], is_sliding=True)
            if native and (mixed or not bounded)
            else RollingLayer(kept.first if kept else 0, kept.last if kept else None, rotations[place])
            for place, native in natives.items()
        }
        super().__init__(layers=layers_with(model, rolling))
        self.rolling, devices = list(rolling.values()), cache_devices(model)
        self._devices, self._of_layers = [devices[place] for place in rolling], layer_devices(model)
        self.seen = 0
        self.memories: dict[str, Memory] = {}
        self._places = bounded and takes_positions(find_anatomy(model).base)
        self._reach = policy.cache_size if self._places and not scales_queries(model) else None
        self._ceiling = position_ceiling(model) or sys.maxsize

    def positions(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Make room for a block of `count` tokens and say which positions the model should give them."""
        if self._reach is not None:
            base = max(0, self.seen - self._reach, self.seen + count - self._ceiling)
            for layer in self.rolling:
                layer.rebase(base)
        start = self.seen - self.rolling[0].base
        self.seen += count
        if not self._places:  # those that it counts itself
            return {}
        return {"position_ids": torch.arange(start, start + count, device=device)[None]}

    def memory(self, eviction: ScoredEviction) -> Memory:
        """What a scored policy remembers of the text in its heads of its layer; the cache itself holds all keys."""
        heads = "all" if eviction.heads is None else eviction.heads.nonzero().flatten().tolist()
        return self.memories.setdefault(f"{eviction.layer}.heads {heads}.", Memory())

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all it holds, by name, for a checkpoint."""
        held = {"base": torch.tensor(self.rolling[0].base)}
        for (number, layer), part, slot in product(enumerate(self.rolling), ("first", "last"), SLOTS):
            held[f"{number}.{part}.{slot}"] = getattr(layer, part)[slot].clone()
        for prefix, memory in self.memories.items():
            held |= memory.tensors(prefix)
        return held | states_of(self)

    def load_tensors(self, tensors: dict[str, Tensor], seen: int, device: torch.device) -> None:
        """Hold what `tensors` gave after `seen` tokens; recurrent states on a device, keys where their layers run."""
        for number, layer in enumerate(self.rolling):
            layer.seen, layer.base, layer.is_initialized = seen, int(tensors["base"]), True
            for part, slot in product(("first", "last"), SLOTS):
                getattr(layer, part)[slot] = tensors[f"{number}.{part}.{slot}"].to(self._devices[number], copy=True)
        self.seen = seen
        put_states(self, tensors, device)
        layers = {name[: -len("places")]: int(name.split(".")[0]) for name in tensors if name.endswith(".places")}
        self.memories = {each: Memory.of(tensors, each, self._of_layers[layer]) for each, layer in layers.items()}


class ScoredLayer(CacheLayer):
    """One layer: attention gets the keys held and the new ones; the policy then says which of them stay."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self.seen, self.memory, self.is_initialized = 0, Memory(holds_all=False), False
        self.keys = self.values = None
        self.is_asked = False  # by the policy, for the forward pass under way
        self.is_reading = False  # whether that has not finished since these keys came in

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in new keys and values [batch, kv_head, token, dim] and return all that they may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.is_asked:
            raise SinkscopeError("these keys are kept by a policy, and it is no longer on the model; use a new cache.")
        self.is_asked, self.is_reading = False, True
        self.seen += key_states.shape[2]
        self.keys = torch.cat([self.keys, key_states], 2)
        self.values = torch.cat([self.values, value_states], 2)
        return self.keys, self.values

    @property
    def held(self) -> int:
        """Tokens held now."""
        return self.keys.shape[2] if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.held + query_length, self.seen - self.held

    def get_seq_length(self) -> int:
        return self.seen


class KeptKeys(Cache):
    """What a scored policy holds of a text, layer by layer; for forward passes under a scope that has the policy.

    Layers with a native sliding window beside full ones keep their own window.
    """

    def __init__(self, model: nn.Module, policy: ScoredPolicy) -> None:
        self.policy = policy
        check_streamable(model)
        layout = find_layout(model)
        kept = {
            place: ScoredLayer() if native is None else RollingLayer(0, native - 1, None, is_sliding=True)
            for place, native in layout.windows.items()
        }
        super().__init__(layers=layers_with(model, kept))
        self.kept_layers, devices = list(kept.values()), cache_devices(model)
        self._devices = [devices[place] for place in kept]
        self.by_attention = {index: kept[places[0]] for index, places in enumerate(layout.reads) if places}

    def memory(self, eviction: ScoredEviction) -> Memory:
        """What a layer holds, and its scores, for a forward pass in which it carries out `eviction`."""
        layer = self.by_attention[eviction.layer]
        assert isinstance(layer, ScoredLayer)
        if eviction.policy != self.policy:
            raise SinkscopeError(f"this cache is one of {self.policy!r}, and the model carries {eviction.policy!r}.")
        remembered = 0 if layer.memory.places is None else layer.memory.places.shape[2]
        if layer.is_reading or layer.held != remembered or len({each.seen for each in self.kept_layers}) > 1:
            raise SinkscopeError("this cache was interrupted while it read, and its layers differ; reset it.")
        layer.is_asked = True
        return layer.memory

    def finish(self, eviction: ScoredEviction) -> None:
        """Know that a forward pass came to its end, behind the last layer with keys too."""
        layer = self.by_attention[eviction.layer]
        assert isinstance(layer, ScoredLayer)
        layer.is_reading = False

    def keep(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Hold these keys and values [batch, kv_head, key, dim], and no others."""
        layer = self.by_attention[number]
        layer.keys, layer.values = keys, values

    @property
    def seen(self) -> int:
        """Tokens read so far."""
        return self.kept_layers[0].seen

    @property
    def places(self) -> dict[int, Tensor]:
        """By attention layer, counted from 0: where in the text the keys held stand, [sequence, kv_head, key]."""
        return {
            number: layer.memory.places
            for number, layer in self.by_attention.items()
            if isinstance(layer, ScoredLayer) and layer.memory.places is not None
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return sum(states.nbytes for name, states in self.tensors().items() if name.endswith(SLOTS))

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Tokens read before the first new one: keys stay at their positions in the text."""
        return self.seen

    def positions(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Which positions the model should give the next tokens: those it counts itself."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """All it holds, by name, for a checkpoint."""
        held: dict[str, Tensor] = {}
        for number, layer in enumerate(self.kept_layers):
            if isinstance(layer, RollingLayer):
                held |= {f"{number}.last.{slot}": states.clone() for slot, states in layer.last.items()}
            elif layer.memory.places is not None:
                held |= {f"{number}.keys": layer.keys, f"{number}.values": layer.values}
                held |= layer.memory.tensors(f"{number}.")
        return held | states_of(self)

    def load_tensors(self, tensors: dict[str, Tensor], seen: int, device: torch.device) -> None:
        """Hold what `tensors` gave after `seen` tokens; recurrent states on a device, keys where their layers run."""
        for number, layer in enumerate(self.kept_layers):
            layer.seen, layer.is_initialized, here = seen, True, self._devices[number]
            if isinstance(layer, RollingLayer):
                for slot in SLOTS:
                    layer.last[slot] = tensors[f"{number}.last.{slot}"].to(here, copy=True)
                    layer.first[slot] = layer.last[slot][:, :, :0]
                continue
            layer.keys, layer.values = (tensors[f"{number}.{slot}"].to(here) for slot in SLOTS)
            layer.memory = Memory.of(tensors, f"{number}.", here, holds_all=False)
        put_states(self, tensors, device)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: a scope follows each text by its row."""
        raise SinkscopeError("a ScoredCache cannot reorder its texts (beam search); use greedy search or sampling.")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was dropped cannot come back."""
        raise SinkscopeError("a ScoredCache cannot be rolled back, since dropped keys are gone.")


class ScoredCache(KeptKeys):
    """A cache for `generate()` under a scored policy, such as H2O or TOVA.

    >>> with sinkscope.ScoredCache(model, sinkscope.HeavyHitters(16, 8)) as cache:
    ...     answer = model.generate(ids, cache=cache, max_new_tokens=4)  # past_key_values= before transformers 5.24

    While it is open its model carries a scope with the policy, since scores follow from the attention: every text is
    read under it, prompts too, and no other scope can be attached. `close()`, or the end of the block, takes it off.

    Args:
        model: a decoder of transformers' attention interface, in eval mode.
        policy: which keys stay.
        normaliser: how scores become weights; the model's own when None.

    Raises:
        SinkscopeError: not a scored policy, one that acts in some layers or heads only, a model that cannot carry it
            out. Later: padding, beam search, a batch of another size.
    """

    def __init__(self, model: nn.Module, policy: ScoredPolicy, normaliser: Normaliser | None = None) -> None:
        if not isinstance(policy, ScoredPolicy) or policy.is_partial:
            raise SinkscopeError(
                "a ScoredCache holds the keys of a policy with scores, the same in all layers and heads, such as "
                f"sinkscope.HeavyHitters(256, 128); got {policy!r}."
            )
        check_decoder(model)
        check_eval(model, "attention")
        check_limits(model, policy, policy.budget + 1)
        if not reads_in_blocks(model):
            raise SinkscopeError(
                f"{type(model).__name__} reads on otherwise than one by one, so no prompt fits a ScoredCache; where "
                f"its layers make no mask of their own, sinkscope.perplexity reads whole texts under {policy!r}."
            )
        if _has_latent_keys(model):
            raise SinkscopeError(
                f"{type(model).__name__} caches other states than the keys of its heads, as MLA does, and no head can "
                f"drop its own; measure {policy!r} with sinkscope.perplexity, which keeps them all."
            )
        super().__init__(model, policy)
        self._scope = attached(model, policy=policy, normaliser=normaliser)
        self._scope.__enter__()

    def __enter__(self) -> ScoredCache:
        entering(self)
        return self

    @leaving
    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the policy off the model."""
        self._scope.__exit__()

    def reset(self) -> None:
        """Forget everything that was read."""
        for layer in self.kept_layers:
            layer.forget()
        put_states(self, {})

    def __repr__(self) -> str:
        held = max((layer.held for layer in self.kept_layers if isinstance(layer, ScoredLayer)), default=0)
        return f"ScoredCache({self.policy!r}; {held} of {self.policy.budget} keys held, {self.seen} seen)"


ReadingCache = RollingCache | KeptKeys  # what a policy keeps of a text that is read in blocks


def reading_cache(model: nn.Module, policy: Policy) -> ReadingCache:
    """The cache with which a text is read in blocks under a policy, by a model that carries it."""
    if isinstance(policy, ScoredPolicy) and not policy.is_partial and not _has_latent_keys(model):
        return KeptKeys(model, policy)
    return RollingCache(model, policy)


def _has_latent_keys(model: nn.Module) -> bool:
    """Whether the model caches what keys and values are made of (MLA), and not what attention sees."""
    slots = set()
    with suppress(SinkscopeError):  # keys that cannot be moved, and nobody moves them here: latent states turn
        slots = {rotation.slot for rotation in find_rotations(model) if rotation is not None}
    return "values" in slots or not find_layout(model).holds_keys
