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

import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import implementation
from sinkscope.hf.caches import given_cache, with_cache
from sinkscope.hf.generation import hide_prompts, show_prompts
from sinkscope.hf.models import alibi_limit
from sinkscope.models.facts import find_anatomy
from sinkscope.models.rotary import changes_with_length, position_ceiling, position_limit
from sinkscope.policies import SinkWindow
from sinkscope.scope.binding import block_within_limits, native_windows
from sinkscope.scope.interface import EVICTIONS, NAME
from sinkscope.scope.scope import attached
from sinkscope.streaming.rolling import RollingCache
from sinkscope.streaming.store import Store


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


BLOCK = 512  # tokens per forward pass
PER_TOKEN = ("input_ids", "inputs_embeds", "token_type_ids")  # arguments [batch, token, ...] that go with the tokens


def part_of(given: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The arguments of a forward pass that go with its tokens from `start` to `stop`."""
    return {name: given[name][:, start:stop] for name in PER_TOKEN if given.get(name) is not None}


def can_read_blocks(base: Any, store: Store) -> bool:
    """Whether attention can follow a policy in blocks: through transformers' interface, free of scopes, unpadded."""
    one_device = len({kind.device for kind in store.kinds}) == 1
    free = implementation(base) != NAME
    return store.pads is None and one_device and free and find_anatomy(base).interface


@torch.no_grad()
def read_blocks(base: nn.Module, store: Store, given: dict[str, Any], count: int) -> None:
    """Read the first `count` tokens of a forward pass in blocks; the store changes when all are read."""
    policy = SinkWindow(store.sinks, store.window)
    rolling = RollingCache(base, policy)
    device = store.kinds[0].device
    seen, ids = store.seen, given.get("input_ids")
    if seen:
        rolling.load_tensors(_without_sinks(store), seen, device)
    block = block_within_limits(base, policy, BLOCK)
    with attached(base, policy=policy):
        for start in range(0, count, block):
            tokens = part_of(given, start, min(count, start + block))
            size = min(count, start + block) - start
            base(**tokens, **with_cache(base, rolling), **rolling.positions(size, device))
    store.load_tensors(rolling.tensors(), seen + count)
    assert store.memory is not None
    store.memory.note(seen, count, None if ids is None else ids[:, :count])


@torch.no_grad()
def read_one_by_one(base: nn.Module, cache: Any, given: dict[str, Any], count: int) -> None:
    """Read the first `count` tokens of a forward pass in one of their own each."""
    mask, seen = given.get("attention_mask"), cache.seen
    for at in range(count):
        masked = {} if mask is None else {"attention_mask": mask[:, : seen + at + 1]}
        base(**part_of(given, at, at + 1), **masked, **with_cache(base, cache))


def _without_sinks(store: Store) -> dict[str, Tensor]:
    """What a store holds as a `RollingCache` holds it: sinks that are still in the window are no neighbours there."""
    tensors = store.tensors()
    for layer, kind in enumerate(store.kinds):
        for slot in ("keys", "values"):
            first, last = f"{layer}.first.{slot}", f"{layer}.last.{slot}"
            whole = store.seen <= kind.sinks + kind.window
            tensors[last] = tensors[last][:, :, kind.sinks if whole else 0 :].to(tensors[first].dtype).clone()
            tensors[first] = tensors[first].clone()
    return tensors


def checked_ceiling(model: Any, policy: SinkWindow) -> int | None:
    """Positions from which on the model fails or changes its rotation, or None when there is no such limit.

    Raises:
        SinkscopeError: the cache itself is longer than the model can look back.
    """
    needed = policy.sinks + policy.window + 1
    biases = alibi_limit(model)
    limit = position_limit(model) if changes_with_length(model) else None
    for most, what in ((biases, "has ALiBi distances"), (limit, "keeps its rotary frequencies")):
        if most and needed > most:
            raise SinkscopeError(
                f"{type(model).__name__} {what} for {most} tokens, and {needed} are needed by sinks={policy.sinks}, "
                f"window={policy.window} and the token being read; take a smaller window."
            )
    return position_ceiling(model)


def hides_sinks(model: nn.Module, layers: int, policy: SinkWindow) -> bool:
    """Whether every layer slides, in a window that would hide the sinks: the policy takes its place."""
    windows = native_windows(model, layers)
    return all(windows) and any(window <= policy.sinks + policy.window for window in windows if window)


def has_policy(base: Any) -> bool:
    """Whether a scope has the model's attention evict tokens by itself."""
    return implementation(base) == NAME and any(part.attention in EVICTIONS for part in find_anatomy(base).parts)
