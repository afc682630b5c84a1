"""What ties a cache to its model: functions on it while a cache of it is open, and nothing after.

A forward pre-hook on the base model hands every forward pass with such a cache to the cache. A function on each model
that generates shows it the whole prompt that `generate()` was given, of which the forward pass gets only what is new.
Neither holds on to a cache, so a cache that is forgotten is collected, and unties itself.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sinkscope.hf.caches import given_cache
from sinkscope.hf.generation import show_prompts
from sinkscope.models.compiled import uncompiled


class Tied(ABC):
    """A cache that its model tells what it reads."""

    @abstractmethod
    def before_generation(self, ids: Tensor, new: int | None) -> None:
        """See the prompt [batch, token] of `generate()`, and how many of its last tokens are new; None: all are."""

    @abstractmethod
    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with which the base model reads instead."""


Ties = WeakKeyDictionary[nn.Module, tuple[int, Callable[[nn.Module], None]]]  # open caches, and what unties the last
_HOOKS: Ties = WeakKeyDictionary()  # on bases
_PROMPTS: Ties = WeakKeyDictionary()  # on models that generate


def tie(cache: Tied, model: nn.Module, base: nn.Module) -> weakref.finalize:
    """Tie a cache to a model and its base; calling what is returned, or collecting the cache, unties them.

    The model may be a wrapper: what generates is a model inside.
    """
    compiled = ExitStack()
    compiled.enter_context(uncompiled())
    if base not in _HOOKS:
        handle = base.register_forward_pre_hook(_hand_over, prepend=True, with_kwargs=True)
        _HOOKS[base] = (0, lambda _: handle.remove())
    for module in model.modules():
        if module not in _PROMPTS and (hide := show_prompts(module, _is_ours, _before_generation)):
            _PROMPTS[module] = (0, hide)
    generating = [weakref.ref(module) for module in model.modules() if module in _PROMPTS]
    _count(_HOOKS, base, 1)
    for known in generating:
        _count(_PROMPTS, known(), 1)
    return weakref.finalize(cache, _untie, generating, weakref.ref(base), compiled.close)


def _untie(
    generating: list[weakref.ref[nn.Module]], base: weakref.ref[nn.Module], compile_again: Callable[[], None]
) -> None:
    compile_again()
    _count(_HOOKS, base(), -1)
    for model in generating:
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
    return cache.before_forward(module, args, kwargs) if _is_ours(cache) else None


def _before_generation(cache: Tied, ids: Tensor, new: int | None) -> None:
    cache.before_generation(ids, new)


def _is_ours(cache: Any) -> bool:
    return isinstance(cache, Tied)
