"""What ties a cache to its model: functions on it while a cache of it is open, and nothing after.

Hooks on the base model hand every forward pass with such a cache to the cache, before it and behind it. A function on
each model that generates shows it the whole prompt that `generate()` was given, of which the forward pass gets only
what is new. Hooks on the models around the base tell what these were called with, where the base gets what they made of
it. None holds on to a cache, so a cache that is forgotten is collected, and unties itself.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Self
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sinkscope.hf.caches import Cache, given_cache
from sinkscope.hf.generation import generates, is_newly_taken, show_prompts
from sinkscope.models.compiled import run_eagerly
from sinkscope.models.threads import Turn
from sinkscope.scope.streams import Told, models_around
from sinkscope.undo import Undo, entering, holding, leaving


class Tied(Cache):
    """A cache that looks out for what its model is given, until it is closed."""

    def __enter__(self) -> Self:
        entering(self)
        return self

    @leaving
    def __exit__(self, *_: Any) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Take the cache off its model."""

    def before_generation(self, ids: Tensor, new: int | None) -> None:
        """`generate()` begins with a prompt [batch, token], whose last `new` tokens are new; None when all are."""

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], told: Told
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a forward pass with this cache in place of those given; `told` is what the whole got."""
        return args, kwargs

    def after_forward(self) -> None:
        """The forward pass is over."""


class Shared:
    """What is on a module while some caches are open, and goes with the last of them."""

    def __init__(self) -> None:
        self.tickets: set[object] = set()  # one for each cache
        self.undo = Undo()

    def let_go(self, ticket: object) -> None:
        self.tickets.discard(ticket)
        if not self.tickets:
            self.undo.close()


_LOCK = threading.RLock()  # a cache that is collected may go while another one comes
_SHARED: WeakKeyDictionary[nn.Module, dict[str, Shared]] = WeakKeyDictionary()  # by what it is
_TOLD: WeakKeyDictionary[nn.Module, Told] = WeakKeyDictionary()  # by base
_TURNS: WeakKeyDictionary[Tied, Turn] = WeakKeyDictionary()


def tie(cache: Tied, model: nn.Module, base: nn.Module) -> Undo:
    """Tie a cache to a model and its base until what is returned is closed, or collected with the cache that holds it.

    The model may be a wrapper: what generates is a model inside.
    """
    undo = Undo()
    try:
        run_eagerly(undo)
        _TURNS[cache] = Turn([base, *models_around(base, model)], f"a {type(cache).__name__}")
        holding(_LOCK, _tie, undo, model, base)
        return undo
    except BaseException:
        undo.close()
        raise


def _tie(undo: Undo, model: nn.Module, base: nn.Module) -> None:
    def hang(on: Undo) -> None:
        on.hang(base, _hand_over, before=True, prepend=True, with_kwargs=True)
        on.hang(base, _hand_back, with_kwargs=True)

    _share(base, "hooks", undo, hang)
    _share(model, "ears", undo, partial(_TOLD.setdefault(base, Told()).watch, model, base))
    for module in filter(generates, model.modules()):
        _share(module, "prompts", undo, partial(show_prompts, module, _is_ours, _before_generation))


def _share(module: nn.Module, name: str, undo: Undo, put: Callable[[Undo], None]) -> None:
    """Have on a module what `put` puts on it, unless it is there, until `undo` is closed."""
    shared, ticket = _SHARED.setdefault(module, {}).setdefault(name, Shared()), object()
    undo.callback(holding, _LOCK, shared.let_go, ticket)
    shared.tickets.add(ticket)
    if not shared.undo.is_entered:
        put(shared.undo)


def _hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cache = given_cache(kwargs)
    if cache is None:
        cache = next(filter(_is_ours, args), None)
    if not _is_ours(cache):
        return None
    _TURNS[cache].take()
    return cache.before_forward(module, args, kwargs, _TOLD.get(module, Told()))


def check_alone(cache: Tied) -> None:
    """Raise SinkscopeError when another thread is running the model of a cache."""
    _TURNS[cache].check_alone()


def _hand_back(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if _is_ours(cache := given_cache(kwargs)):
        cache.after_forward()


def _before_generation(cache: Tied, ids: Tensor, new: int | None) -> None:
    is_newly_taken(cache)  # and its prompt is shown
    _TURNS[cache].take()
    cache.before_generation(ids, new)


def _is_ours(cache: Any) -> bool:
    return isinstance(cache, Tied)
