"""What ties a cache to its model: functions on the model while a cache of it is open, and nothing after.

A forward pre-hook on the base model hands every forward pass with such a cache to the cache. A function on the model
shows it the whole prompt that `generate()` was given, of which the forward pass gets only what is new. Hooks on the
models around the base tell what these were called with, where the base gets what they made of it. None of them holds on
to a cache, so a cache that is forgotten is collected, and unties itself.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sinkscope.hf.caches import Cache, given_cache
from sinkscope.hf.generation import hide_prompts, show_prompts
from sinkscope.scope.streams import Told


class TiedCache(Cache):
    """A cache that is shown what its model is given."""

    @abstractmethod
    def before_generation(self, ids: Tensor, new: int | None) -> None:
        """Look at the prompt [batch, token] of `generate()`, of which the last `new` are; None where all are."""

    @abstractmethod
    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], told: Told
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with which the base is run in place of those given; `told` is what the whole was given."""


Ties = WeakKeyDictionary[nn.Module, tuple[int, Callable[[nn.Module], None]]]  # open caches, and what unties the last
_HOOKS: Ties = WeakKeyDictionary()  # on bases
_EARS: Ties = WeakKeyDictionary()  # on models around them
_PROMPTS: Ties = WeakKeyDictionary()  # on models
_TOLD: WeakKeyDictionary[nn.Module, Told] = WeakKeyDictionary()  # by base


def tie(cache: TiedCache, model: nn.Module, base: nn.Module) -> weakref.finalize:
    """Tie a cache to a model and its base; calling what is returned, or collecting the cache, unties them."""
    if base not in _HOOKS:
        handle = base.register_forward_pre_hook(_hand_over, prepend=True, with_kwargs=True)
        _HOOKS[base] = (0, lambda _: handle.remove())
    if model not in _EARS:
        undo = ExitStack()
        _TOLD.setdefault(base, Told()).watch(model, base, undo)
        _EARS[model] = (0, lambda _: undo.close())
    if model not in _PROMPTS and show_prompts(model, _is_ours, lambda cache, *shown: cache.before_generation(*shown)):
        _PROMPTS[model] = (0, hide_prompts)
    _count(_HOOKS, base, 1)
    _count(_EARS, model, 1)
    _count(_PROMPTS, model, 1)
    return weakref.finalize(cache, _untie, weakref.ref(model), weakref.ref(base))


def _untie(model: weakref.ref[nn.Module], base: weakref.ref[nn.Module]) -> None:
    _count(_HOOKS, base(), -1)
    _count(_EARS, model(), -1)
    _count(_PROMPTS, model(), -1)


def _count(ties: Ties, module: nn.Module | None, change: int) -> None:
    """One open cache more or less; what ties goes with the last."""
    if module is not None and module in ties:
        opened, take_off = ties[module]
        ties[module] = (opened + change, take_off)
        if opened + change == 0:
            take_off(module)
            del ties[module]


def _hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cache = given_cache(kwargs)
    if cache is None:
        cache = next(filter(_is_ours, args), None)
    return cache.before_forward(module, args, kwargs, _TOLD.get(module, Told())) if _is_ours(cache) else None


def _is_ours(cache: Any) -> bool:
    return isinstance(cache, TiedCache)
