"""What ties a cache to its model: two functions on the model while a cache of it is open, and nothing after.

A forward pre-hook on the base model hands every forward pass with such a cache to the cache. A function around the
model's ``prepare_inputs_for_generation`` shows it the whole prompt that ``generate()`` was given, of which the forward
pass gets only what is new. Neither holds on to a cache, so a cache that is forgotten is collected, and unties itself.
"""

from __future__ import annotations

import functools
import types
import weakref
from abc import ABC, abstractmethod
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

PREPARE = "prepare_inputs_for_generation"


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
    if model not in _PREPARED and hasattr(type(model), PREPARE) and PREPARE not in vars(model):
        setattr(model, PREPARE, types.MethodType(_shown(getattr(type(model), PREPARE)), model))
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
            vars(prepared).pop(PREPARE, None)
            del _PREPARED[prepared]


def _hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cache = kwargs.get("past_key_values")
    if cache is None:
        cache = next((given for given in args if isinstance(given, Tied)), None)
    return cache.before_forward(module, args, kwargs) if isinstance(cache, Tied) else None


def _shown(original: Any) -> Any:
    @functools.wraps(original)
    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        from transformers import GenerationMixin

        generic: Any = GenerationMixin
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, Tied):
            return original(self, input_ids, *args, **kwargs)
        if kwargs.get("is_first_iteration"):
            cache.before_generation(input_ids, kwargs.get("next_sequence_length"))
        elif kwargs.get("use_cache") is False:  # the default of MPT, with which every step would read all tokens again
            kwargs["next_sequence_length"] = 1
        inputs = original(self, input_ids, *args, **kwargs)
        if inputs.get("past_key_values") is not cache:  # longrope models drop it where their frequencies would change
            inputs = generic.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)
        return inputs

    return prepare_inputs_for_generation
