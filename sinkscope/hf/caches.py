"""The cache of keys and values: its protocol, and the argument that carries it.

The argument of a forward pass is called ``cache`` from transformers 5.24 on and ``past_key_values`` before; models that
bring their own code may keep the old name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from sinkscope.hf.models import text_config

NAMES = ("cache", "past_key_values")
SHARED: tuple[type, ...] = tuple(getattr(cache_utils, name) for name in ("DummyLayer",) if hasattr(cache_utils, name))
"""Layers that stand in for others whose keys and values they share; older releases leave them out of the cache."""


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
    return {argument_name(model.forward) or NAMES[0]: cache, "use_cache": True}


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


def native_windows(model: Any) -> dict[int, int | None]:
    """The model's own sliding window in each layer of its cache, in tokens, that being read included; None for full."""
    return {
        number: getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
        for number, layer in enumerate(_layers(model))
        if not isinstance(layer, SHARED)
    }


def has_only_keys_and_values(model: Any) -> bool:
    """Whether a model caches keys and values in every layer, and no other states."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, *SHARED) for layer in _layers(model))


def held_states(cache: Any, index: int) -> dict[str, Tensor]:
    """ "keys" and "values" [batch, kv_head, token, dim] of one layer of a cache; empty where it holds none."""
    layers = getattr(cache, "self_attention_cache", cache).layers  # an encoder-decoder has two caches in one
    layer = layers[index] if index < len(layers) else None
    states = {slot: getattr(layer, slot, None) for slot in ("keys", "values")}
    return {slot: state for slot, state in states.items() if isinstance(state, Tensor) and state.dim() == 4}


def cache_among(arguments: Iterable[Any]) -> Any:
    """The first cache of transformers' kind among some arguments, whatever they are called; None without one."""
    return next((argument for argument in arguments if isinstance(argument, Cache)), None)


def _layers(model: Any) -> list[Any]:
    return DynamicCache(config=model.config).layers
