"""What ties a cache to its model: functions on it while a cache of it is open, and nothing after.

Hooks on the base model hand every forward pass with such a cache to the cache, before it and behind it. A function on
each model that generates shows it the whole prompt that `generate()` was given, of which the forward pass gets only
what is new. Hooks on the models around the base tell what these were called with, where the base gets what they made of
it. None holds on to a cache, so a cache that is forgotten is collected, and unties itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sinkscope.hf.caches import Cache, given_cache
from sinkscope.hf.generation import show_prompts
from sinkscope.models.compiled import uncompiled
from sinkscope.scope.streams import Told


class Tied(Cache):
    """A cache that looks out for what its model is given."""

    def before_generation(self, ids: Tensor, new: int | None) -> None:
        """`generate()` begins with a prompt [batch, token], whose last `new` tokens are new; None when all are."""

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], told: Told
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a forward pass with this cache in place of those given; `told` is what the whole got."""
        return args, kwargs

    def after_forward(self) -> None:
        """The forward pass is over."""


Ties = WeakKeyDictionary[nn.Module, tuple[int, Callable[[nn.Module], None]]]  # open caches, and what unties the last
_HOOKS: Ties = WeakKeyDictionary()  # on bases
_EARS: Ties = WeakKeyDictionary()  # on the models around them
_PROMPTS: Ties = WeakKeyDictionary()  # on models that generate
_TOLD: WeakKeyDictionary[nn.Module, Told] = WeakKeyDictionary()  # by base


def tie(cache: Tied, model: nn.Module, base: nn.Module) -> weakref.finalize:
    """Tie a cache to a model and its base; calling what is returned, or collecting the cache, unties them.

    The model may be a wrapper: what generates is a model inside.
    """
    compiled = ExitStack()
    compiled.enter_context(uncompiled())
    if base not in _HOOKS:
        before = base.register_forward_pre_hook(_hand_over, prepend=True, with_kwargs=True)
        after = base.register_forward_hook(_hand_back, with_kwargs=True)

        def take_off(_: nn.Module) -> None:
            before.remove()
            after.remove()

        _HOOKS[base] = (0, take_off)
    if model not in _EARS:
        undo = ExitStack()
        _TOLD.setdefault(base, Told()).watch(model, base, undo)
        _EARS[model] = (0, lambda _: undo.close())
    for module in model.modules():
        if module not in _PROMPTS and (hide := show_prompts(module, _is_ours, _before_generation)):
            _PROMPTS[module] = (0, hide)
    generating = [weakref.ref(module) for module in model.modules() if module in _PROMPTS]
    _count(_HOOKS, base, 1)
    _count(_EARS, model, 1)
    for known in generating:
        _count(_PROMPTS, known(), 1)
    return weakref.finalize(cache, _untie, weakref.ref(model), generating, weakref.ref(base), compiled.close)


def _untie(
    model: weakref.ref[nn.Module],
    generating: list[weakref.ref[nn.Module]],
    base: weakref.ref[nn.Module],
    compile_again: Callable[[], None],
) -> None:
    compile_again()
    _count(_HOOKS, base(), -1)
    _count(_EARS, model(), -1)
    for module in generating:
        _count(_PROMPTS, module(), -1)


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


def _hand_back(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if _is_ours(cache := given_cache(kwargs)):
        cache.after_forward()


def _before_generation(cache: Tied, ids: Tensor, new: int | None) -> None:
    cache.before_generation(ids, new)


def _is_ours(cache: Any) -> bool:
    return isinstance(cache, Tied)
