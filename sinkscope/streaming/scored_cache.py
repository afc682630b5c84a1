"""The cache of a scored policy: the keys that the model's own attention chose, in every layer and key-value head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.attention.scored import Memory, ScoredEviction
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import Cache, CacheLayer
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import check_decoder, check_eval
from sinkscope.models.rotary import find_rotations
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy, ScoredPolicy
from sinkscope.scope.binding import check_limits, native_windows
from sinkscope.scope.scope import attached
from sinkscope.streaming.rolling import RollingCache, RollingLayer


class ScoredLayer(CacheLayer):
    """One layer: attention gets the keys held and the new ones; the policy then says which of them stay."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.memory = Memory(holds_all=False)
        self.is_asked = False  # by the policy, for the forward pass under way
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in new keys and values [batch, kv_head, token, dim] and return all that they may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.is_asked:
            raise SinkscopeError("these keys are kept by a policy, and it is no longer on the model; use a new cache.")
        self.is_asked = False
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

    def forget(self) -> None:
        """Be empty."""
        self.seen, self.memory, self.is_initialized, self.is_asked = 0, Memory(holds_all=False), False, False
        self.keys = self.values = None


class KeptKeys(Cache):
    """What a scored policy holds of a text, layer by layer; for forward passes under a scope that has the policy.

    Layers with a native sliding window beside full ones keep their own window.

    Args:
        model: a decoder.
        policy: which keys stay.
    """

    def __init__(self, model: nn.Module, policy: ScoredPolicy) -> None:
        self.policy = policy
        anatomy = find_anatomy(model)
        natives = native_windows(model, len(anatomy.parts))
        self.kept_layers = [ScoredLayer() if native is None else _sliding(native) for native in natives]
        super().__init__(layers=[*self.kept_layers])

    def memory(self, eviction: ScoredEviction) -> Memory:
        """What a layer holds, and its scores, for a forward pass in which it carries out `eviction`."""
        layer = self.kept_layers[eviction.layer]
        assert isinstance(layer, ScoredLayer)
        if eviction.policy != self.policy:
            raise SinkscopeError(f"this cache is one of {self.policy!r}, and the model carries {eviction.policy!r}.")
        remembered = 0 if layer.memory.places is None else layer.memory.places.shape[2]
        if layer.held != remembered or len({each.seen for each in self.kept_layers}) > 1:
            raise SinkscopeError("this cache was interrupted while it read, and its layers differ; reset it.")
        layer.is_asked = True
        return layer.memory

    def keep(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Hold these keys and values [batch, kv_head, key, dim], and no others."""
        layer = self.kept_layers[number]
        layer.keys, layer.values = keys, values

    @property
    def seen(self) -> int:
        """Tokens read so far."""
        return self.kept_layers[0].seen

    @property
    def places(self) -> dict[int, Tensor]:
        """By attention layer, counted from 0: where in the text the keys held stand, [sequence, kv_head, key]."""
        held = {
            number: layer.memory.places for number, layer in enumerate(self.kept_layers) if hasattr(layer, "memory")
        }
        return {number: places for number, places in held.items() if places is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        held = [states for name, states in self._states() if name.endswith(("keys", "values"))]
        return sum(states.numel() * states.element_size() for states in held)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Tokens read before the first new one: keys stay at their positions in the text."""
        return self.seen

    def positions(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Which positions the model should give the next tokens: those it counts itself."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """All it holds, by name, for a checkpoint."""
        return dict(self._states())

    def load_tensors(self, tensors: dict[str, Tensor], seen: int, device: torch.device) -> None:
        """Hold what `tensors` gave after `seen` tokens."""
        for number, layer in enumerate(self.kept_layers):
            layer.seen, layer.is_initialized = seen, True
            if isinstance(layer, RollingLayer):
                for slot in ("keys", "values"):
                    layer.first[slot] = tensors[f"{number}.last.{slot}"][:, :, :0].to(device)
                    layer.last[slot] = tensors[f"{number}.last.{slot}"].to(device)
                continue
            layer.keys, layer.values = (tensors[f"{number}.{slot}"].to(device) for slot in ("keys", "values"))
            layer.memory = Memory.of(tensors, f"{number}.", device, holds_all=False)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: a scope follows each text by its row."""
        raise SinkscopeError("a ScoredCache cannot reorder its texts (beam search); use greedy search or sampling.")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was dropped cannot come back."""
        raise SinkscopeError("a ScoredCache cannot be rolled back, since dropped keys are gone.")

    def _states(self) -> Iterator[tuple[str, Tensor]]:
        for number, layer in enumerate(self.kept_layers):
            if isinstance(layer, RollingLayer):
                for slot, states in layer.last.items():
                    yield f"{number}.last.{slot}", states
            elif layer.is_initialized and layer.memory.places is not None:
                yield f"{number}.keys", layer.keys
                yield f"{number}.values", layer.values
                yield from layer.memory.tensors(f"{number}.").items()


class ScoredCache(KeptKeys):
    """A cache for `generate()` under a scored policy, such as H2O or TOVA.

        with ScoredCache(model, HeavyHitters(256, 128)) as cache:
            model.generate(**inputs, cache=cache)  # past_key_values=cache before transformers 5.24

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
        if has_latent_keys(model):
            raise SinkscopeError(
                f"{type(model).__name__} caches latent states that all heads share (MLA), so that no head can drop "
                f"keys of its own; measure {policy!r} with sinkscope.perplexity, which keeps them all."
            )
        super().__init__(model, policy)
        self._open = ExitStack()
        self._open.enter_context(attached(model, policy=policy, normaliser=normaliser))

    def __enter__(self) -> ScoredCache:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the policy off the model."""
        self._open.close()

    def reset(self) -> None:
        """Forget everything that was read."""
        for layer in self.kept_layers:
            if isinstance(layer, ScoredLayer):
                layer.forget()
            else:
                layer.seen, layer.is_initialized = 0, False

    def __repr__(self) -> str:
        held = max((layer.held for layer in self.kept_layers if isinstance(layer, ScoredLayer)), default=0)
        return f"ScoredCache({self.policy!r}; {held} of {self.policy.budget} keys held, {self.seen} seen)"


ReadingCache = RollingCache | KeptKeys
"""What a policy keeps of a text that is read in blocks."""


def reading_cache(model: nn.Module, policy: Policy) -> ReadingCache:
    """The cache with which a text is read in blocks under a policy, by a model that carries it."""
    if isinstance(policy, ScoredPolicy) and not policy.is_partial and not has_latent_keys(model):
        return KeptKeys(model, policy)
    return RollingCache(model, policy)


def has_latent_keys(model: nn.Module) -> bool:
    """Whether the model caches what keys and values are made of (MLA), and not what attention sees."""
    return any(rotation is not None and rotation.slot == "values" for rotation in find_rotations(model))


def _sliding(native: int) -> RollingLayer:
    return RollingLayer(0, native - 1, None, is_sliding=True)
