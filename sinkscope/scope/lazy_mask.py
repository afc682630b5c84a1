"""The mask that a model is given while a scope is attached: a tensor whose numbers are made once they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from sinkscope.attention.masks import (
    BiasedMask,
    CausalMask,
    ChosenMask,
    FullMask,
    IndexedMask,
    Mask,
    TensorMask,
    is_hidden,
)
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import AttentionCall, MaskRequest


@dataclass(frozen=True)
class Sight:
    """A mask with the positions of the first query and key."""

    mask: Mask
    start: int
    key_start: int
    padding: Tensor | None = None  # booleans [batch, token] that are False for padding; None without any


class LazyMask(Tensor):
    """What "eager" attention adds to the scores, [batch, 1, query, key]: 0 where a key is seen, else the lowest number.

    Our own attention reads its `sight` block by block, and no numbers are made. Layers that choose keys by themselves
    go on from the numbers; what they make of a mask in one step still knows its sight.
    """

    sight: Sight
    keys: int
    _made: tuple[Tensor, int] | None  # its numbers, and how often they were written to when new

    @staticmethod
    def __new__(cls, sight: Sight, asked: MaskRequest) -> LazyMask:
        shape = (asked.batch, 1, asked.queries, asked.keys)
        mask: LazyMask = Tensor._make_wrapper_subclass(cls, shape, dtype=asked.dtype, device=torch.device(asked.device))
        mask.sight, mask.keys, mask._made = sight, asked.keys, None
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if getattr(func, "__name__", "") == "__get__":
                return func(*args, **kwargs)
            if func is Tensor.__getitem__ and _takes_all(args[0].shape, args[1]):
                return args[0]
            sights: list[Sight] = []
            if func in _FREE:
                sights, result = [args[0].sight], func(*args, **kwargs)
            else:
                result = func(*_with_numbers(args, sights), **_with_numbers(kwargs, sights))
            if isinstance(result, Tensor):
                result.sight = sights[0]  # type: ignore[attr-defined]
            return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_with_numbers(args, []), **_with_numbers(kwargs or {}, []))

    def numbers(self) -> Tensor:
        """The mask as a plain tensor."""
        if self._made is None:
            made = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            self.sight.mask.hide(made, slice(0, self.shape[2]), slice(0, self.shape[3]))
            self._made = made, _version(made)
        return self._made[0]

    def changed(self) -> bool:
        """Whether somebody wrote into the numbers."""
        return self._made is not None and (self._made[0].is_inference() or _version(self._made[0]) != self._made[1])


_FREE = (Tensor.dim, Tensor.size, Tensor.is_floating_point, Tensor.to, Tensor.contiguous)
"""What can be done with a mask without its numbers, at least where nothing has to be done."""


def _takes_all(shape: Sequence[int], index: Any) -> bool:
    """Whether an index of slices leaves nothing out."""
    slices = index if isinstance(index, tuple) else (index,)
    return len(slices) <= len(shape) and all(
        isinstance(each, slice) and each.indices(size) == (0, size, 1)
        for each, size in zip(slices, shape, strict=False)
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _with_numbers(given: Any, sights: list[Sight]) -> Any:
    """Arguments with plain tensors in the place of masks, whose sights are collected."""

    def plain(argument: Any) -> Any:
        if not isinstance(argument, LazyMask):
            return argument
        sights.append(argument.sight)
        return argument.numbers()

    return tree_map(plain, given)


def lazy_mask(asked: MaskRequest) -> LazyMask:
    """The model's own mask as a tensor that answers block by block."""
    start, key_start, keys, padding = asked.start, asked.key_start, asked.keys, asked.padding
    if padding is not None and (missing := keys + key_start - padding.shape[-1]) > 0:
        padding = F.pad(padding, (0, missing))
    filled = keys if asked.bidirectional else start + asked.queries - key_start
    unpadded = padding is None or bool(padding[:, key_start : key_start + min(keys, filled)].all())
    plain = unpadded and (asked.window is None or keys < asked.window)
    if plain and asked.causal:
        return LazyMask(Sight(CausalMask(start - key_start), start, key_start), asked)
    if plain and asked.bidirectional:
        return LazyMask(Sight(FullMask(), start, key_start), asked)

    def function(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert asked.function is not None
        seen = asked.function(batch, head, query, key)
        return seen if padding is None else seen & padding[batch, key]

    batch = torch.arange(asked.batch, device=asked.device)
    rows = torch.arange(start, start + asked.queries, device=asked.device)
    columns = torch.arange(key_start, key_start + keys, device=asked.device)
    mask = IndexedMask(function, batch, rows, columns, vectorised=not asked.scalar)
    return LazyMask(Sight(mask, start, key_start, None if unpadded else padding), asked)


def sight_of(call: AttentionCall, query: Tensor, key: Tensor) -> Sight:
    """What queries [batch, head, query, dim] see of keys [batch, kv_head, key, dim] in a call of a layer's attention.

    Columns of a mask behind those of the tokens are keys that are no tokens (compressed ones): they take attention as
    a learned sink does.

    Raises:
        SinkscopeError: the mask covers fewer or more keys than there are, or other keys than the tokens come first.
    """
    given, causal, name = call.mask, call.causal, type(call.module).__name__
    queries, keys = query.shape[2], key.shape[2]
    covered = keys if given is None else given.keys if isinstance(given, LazyMask) else given.shape[-1]
    if covered not in (1, keys) or (given is None and causal and 1 < queries < keys):
        covers = "there is no mask" if given is None else f"the attention mask covers {covered}"
        raise SinkscopeError(
            f"{name} attends to {keys} keys from {queries} queries, but {covers}, so which keys a query sees is not "
            "known; measure its maps elsewhere and use sinkscope.from_maps."
        )
    asked: Sight | None = getattr(given, "sight", None)
    sight = asked or Sight(CausalMask(keys - queries) if causal else FullMask(), keys - queries, 0)
    if given is not None and not (isinstance(given, LazyMask) and not given.changed()):
        numbers = (given.numbers() if isinstance(given, LazyMask) else given).expand(-1, -1, queries, keys)
        mask = TensorMask(numbers)
        if asked is not None and (tokens := asked.start + queries - asked.key_start) < keys:
            before = query.new_zeros(len(query), 1, queries, tokens)
            asked.mask.hide(before, slice(0, queries), slice(0, tokens))
            if bool((mask.visible(slice(0, queries), slice(0, tokens)) & is_hidden(before)).any()):
                raise SinkscopeError(
                    f"{name} attends to {keys} keys for {tokens} tokens, and the others do not come behind those of "
                    "the tokens, so they cannot be told apart; measure its maps elsewhere and use sinkscope.from_maps."
                )
        sight = replace(sight, mask=mask)
    if call.chosen is not None:
        sight = replace(sight, mask=ChosenMask(sight.mask, call.chosen))
    if call.bias is not None:
        sight = replace(sight, mask=BiasedMask(sight.mask, call.bias.expand(-1, -1, queries, keys)))
    return sight
