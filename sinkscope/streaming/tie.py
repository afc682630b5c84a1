"""What ties a cache to its model: two functions on the model while a cache of it is open, and nothing after.

A forward pre-hook on the base model hands every forward pass with such a cache to the cache. A function on the model
shows it the whole prompt that ``generate()`` was given, of which the forward pass gets only what is new. Neither holds
on to a cache, so a cache that is forgotten is collected, and unties itself.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sinkscope.hf.caches import given_cache
from sinkscope.hf.generation import hide_prompts, show_prompts


class Tied(ABC):
    """A cache that looks at its model's inputs."""

    @abstractmethod
    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with which a forward pass should run."""

    @abstractmethod
    def before_generation(self, ids: Tensor, new: int | None) -> None:
        """Look at the ids [batch, token] given to `generate()`, of which the last `new` will be read, or all."""


_HOOKED: WeakKeyDictionary[nn.Module, tuple[int, Any]] = WeakKeyDictionary()  # open caches, and the hook's handle
_PREPARED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # open caches


def tie(cache: Tied, model: nn.Module, base: nn.Module) -> weakref.finalize:
    """Tie a cache to a model and its base; calling what is returned, or collecting the cache, unties them."""
    if base not in _HOOKED:
        _HOOKED[base] = (0, base.register_forward_pre_hook(_hand_over, prepend=True, with_kwargs=True))
    _HOOKED[base] = (_HOOKED[base][0] + 1, _HOOKED[base][1])
    if model not in _PREPARED and show_prompts(model, _is_tied, _show):
        _PREPARED[model] = 0
    if model in _PREPARED:
        _PREPARED[model] += 1
    return weakref.finalize(cache, _untie, weakref.ref(model), weakref.ref(base))


def _untie(model: weakref.ref[nn.Module], base: weakref.ref[nn.Module]) -> None:
    hooked, prepared = base(), model()
    if hooked is not None and hooked in _HOOKED:
        count, handle = _HOOKED[hooked]
        _HOOKED[hooked] = (count - 1, handle)
        if count == 1:
            handle.remove()
            del _HOOKED[hooked]
    if prepared is not None and prepared in _PREPARED:
        _PREPARED[prepared] -= 1
        if _PREPARED[prepared] == 0:
            hide_prompts(prepared)
            del _PREPARED[prepared]


def _hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cache = given_cache(kwargs)
    if cache is None:
        cache = next((given for given in args if isinstance(given, Tied)), None)
    return cache.before_forward(module, args, kwargs) if isinstance(cache, Tied) else None


def _is_tied(cache: Any) -> bool:
    return isinstance(cache, Tied)


def _show(cache: Tied, ids: Tensor, new: int | None) -> None:
    cache.before_generation(ids, new)
