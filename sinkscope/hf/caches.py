"""The cache of keys and values: its protocol, and the argument that carries it.

The argument of a forward pass is called ``cache`` from transformers 5.24 on and ``past_key_values`` before; models that
bring their own code may keep the old name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from sinkscope.hf.models import core, text_config

NAMES = ("cache", "past_key_values")


def _known(*names: str) -> tuple[type, ...]:
    return tuple(getattr(cache_utils, name) for name in names if hasattr(cache_utils, name))


RECURRENT = _known("LinearAttentionLayer")
"""Layers that hold states of a fixed size, of convolutions and recurrences; some hold keys and values beside them."""

UNDERSTOOD = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    *RECURRENT,
    *_known("LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer", "DummyLayer"),
)
"""Layers of which it is known what they hold: keys and values, recurrent states, both, or nothing."""


class CacheLayer(CacheLayerMixin):
    """One layer of a cache of our own; it gives `update`, `get_mask_sizes` and `get_seq_length`."""

    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def get_max_length(self) -> int:
        """Tokens that fit; -1 for no bound."""
        return -1


def argument_name(forward: Callable[..., Any]) -> str | None:
    """The name under which a forward pass takes its cache; None where it takes none."""
    accepted = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in accepted), None)


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The arguments with which a forward pass of a model, or its `generate()`, uses and fills a cache."""
    return {argument_name(core(model).forward) or NAMES[0]: cache, "use_cache": True}


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the named arguments of a forward pass; None without one."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The named arguments of a forward pass but the cache, under any of its names."""
    return {name: value for name, value in arguments.items() if name not in NAMES}


def returned_cache(output: Any) -> Any:
    """The cache that a forward pass gave back; None where it gave none."""
    declared = getattr(type(output), "__dataclass_fields__", {})  # asking for an older name prints a warning
    held = (getattr(output, name) for name in NAMES if name in declared)
    return next((cache for cache in held if cache is not None), None)


def growing_cache(model: Any = None) -> Any:
    """transformers' own cache, of what the layers of a model look back to; every layer keeps all when None."""
    return DynamicCache() if model is None else DynamicCache(config=text_config(model))


def growing_window(layer: Any) -> int | None:
    """The sliding window of a layer of transformers' own cache, in tokens, that being read included; None without."""
    return getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None


def foreign_layer(layers: Iterable[Any]) -> str | None:
    """The class of the first layer of a cache of which it is not known what it holds; None without one."""
    return next((type(layer).__name__ for layer in layers if type(layer) not in UNDERSTOOD), None)


def is_recurrent(layer: Any) -> bool:
    """Whether a layer of a cache holds recurrent states, alone or beside keys and values."""
    return isinstance(layer, RECURRENT)


def _in_place_of(layer: CacheLayer, own: Any) -> CacheLayer:
    """A layer of ours in the place of a model's own, empty one: it holds the recurrent states of that one too."""
    if is_recurrent(own):
        layer.__class__ = _with_states(type(layer))
        vars(layer).update({name: value for name, value in vars(own).items() if name not in vars(layer)})
    return layer


@cache
def _with_states(kind: type[CacheLayer]) -> type[CacheLayer]:
    """A class of layers with recurrent states beside what `kind` holds."""

    def lazy_initialization(self: Any, *keys_and_values: Tensor, **states: Any) -> None:
        owner: Any = kind if keys_and_values else RECURRENT[0]
        owner.lazy_initialization(self, *keys_and_values, **states)

    return type(f"{kind.__name__}WithStates", (kind, *RECURRENT), {"lazy_initialization": lazy_initialization})


STATES = ("conv", "recurrent")


def _recurrent_states(layer: Any) -> dict[str, Tensor]:
    """The recurrent states that a layer of a cache holds, with the batch first, by name; empty where it has none."""
    if not is_recurrent(layer):
        return {}
    held = {(kind, index): state for kind in STATES for index, state in getattr(layer, f"{kind}_states").items()}
    return {f"{kind}.{index}": state for (kind, index), state in held.items() if state is not None}


def _put_recurrent_states(layer: Any, states: Mapping[str, Tensor]) -> None:
    """Have a layer hold the states that `_recurrent_states` gave, and no others."""
    for kind in STATES if is_recurrent(layer) else ():
        for index in getattr(layer, f"{kind}_states"):
            state = states.get(f"{kind}.{index}")
            getattr(layer, f"{kind}_states")[index] = state
            getattr(layer, f"is_{kind}_states_initialized")[index] = state is not None
            if kind == "conv":
                layer.has_previous_state[index] = bool(states)
                layer.conv_kernel_size[index] = None if state is None else state.shape[-1]
            if state is not None:
                layer.dtype, layer.device = state.dtype, state.device


def layers_with(model: nn.Module, ours: Mapping[int, CacheLayer]) -> list[Any]:
    """The layers of a cache with ours at their places; where none of them is, what the model itself would put there.

    Recurrent states are kept as the model keeps them, also beside keys of ours.
    """
    own = list(growing_cache(model).layers)
    count = max(len(own), *(place + 1 for place in ours)) if ours else len(own)
    plain = [own[place] if place < len(own) else None for place in range(count)]
    return [_in_place_of(ours[place], plain[place]) if place in ours else plain[place] for place in range(count)]


def states_of(cache: Cache) -> dict[str, Tensor]:
    """The recurrent states that the layers of a cache hold, with the batch first, by name."""
    held = [(place, _recurrent_states(layer)) for place, layer in enumerate(cache.layers)]
    return {f"state.{place}.{name}": state for place, states in held for name, state in states.items()}


def put_states(cache: Cache, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> None:
    """Have a cache hold those of `tensors` that `states_of` gave, and no other states, on `device` if given."""
    for place, layer in enumerate(cache.layers):
        own = f"state.{place}."
        held = {name.removeprefix(own): each for name, each in tensors.items() if name.startswith(own)}
        _put_recurrent_states(layer, {name: each.to(device or each.device) for name, each in held.items()})


def held_layers(cache: Any) -> list[Any]:
    """The layers of a cache; of a decoder with cross-attention, those of what it reads itself."""
    return getattr(getattr(cache, "self_attention_cache", cache), "layers", [])


def held_states(cache: Any, index: int) -> dict[str, Tensor]:
    """ "keys" and "values" [batch, kv_head, token, dim] of one layer of a cache; empty where it holds none."""
    layers = held_layers(cache)
    layer = layers[index] if index < len(layers) else None
    states = {slot: getattr(layer, slot, None) for slot in ("keys", "values")}
    return {slot: state for slot, state in states.items() if isinstance(state, Tensor) and state.dim() == 4}


def cache_among(arguments: Iterable[Any]) -> Any:
    """The first cache of transformers' kind among some arguments, whatever they are called; None without one."""
    return next((argument for argument in arguments if isinstance(argument, Cache)), None)
