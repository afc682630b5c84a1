"""Reading many tokens into a sink cache exactly: each sees the sinks and its own window, as if it had come alone.

Dense attention over a prompt longer than the cache is not what the cache stands for: a late token would see all before
it. Where attention can be given a policy, the tokens are read in blocks under it; elsewhere they are read one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.interface import NAME
from sinkscope.core.policies import SinkWindow
from sinkscope.core.scope import attached
from sinkscope.hf.attention import implementation
from sinkscope.hf.caches import with_cache
from sinkscope.streaming.cache.store import Store
from sinkscope.streaming.limits import block_within_limits
from sinkscope.streaming.rolling import RollingCache

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
