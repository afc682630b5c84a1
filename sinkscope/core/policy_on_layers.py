"""What a policy means for each layer of a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sinkscope.core.anatomy import Anatomy
from sinkscope.core.eviction import Eviction, KeyEviction, ReadKeyEviction, RecentEviction, WindowEviction
from sinkscope.core.policies import Policy
from sinkscope.core.readiness import check_unchunked
from sinkscope.core.rotary import find_rotations
from sinkscope.core.rotation import Rotation
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import native_windows as cached_windows
from sinkscope.hf.models import query_heads


def layer_evictions(policy: Policy, model: nn.Module, anatomy: Anatomy) -> list[Eviction | None]:
    """How each attention layer carries out a policy; None where a layer is left as it is.

    A model that mixes layers with a native sliding window and full ones keeps the former as they are: the policy acts
    on the full ones. Where every layer slides, the policy takes the place of the window in all of them.

    Raises:
        SinkscopeError: the policy cannot be carried out on this model.
    """
    if not isinstance(policy, Policy):
        raise SinkscopeError(f"{policy!r} is not a policy; give an instance such as sinkscope.SinkWindow(4, 1020).")
    policy.check_place(anatomy.numbers, query_heads(model))
    if policy.is_dense:
        return [None] * len(anatomy.parts)
    if policy.recomputed:
        raise SinkscopeError(
            f"{policy!r} runs every window as a text of its own, so it is no way to attend in one forward pass; "
            "use sinkscope.perplexity."
        )
    if not anatomy.interface:
        raise SinkscopeError(
            f"{type(model).__name__} does not use transformers' attention interface, so its attention cannot follow a "
            "policy in one forward pass; use sinkscope.perplexity or a SinkCache, which go token by token."
        )
    natives = _own_windows(policy, model, anatomy)
    make = _window_eviction if policy.window is not None else _key_eviction
    if policy.window is None and None not in natives:
        raise SinkscopeError(
            f"every layer of {type(model).__name__} slides over its own window, so there is none whose keys "
            f"`{policy.name}` could act on; give a policy with a window."
        )
    rotations = find_rotations(model) if policy.window is not None else [None] * len(natives)
    heads = policy.acting_heads(query_heads(model) or 0)
    return [
        None if (None in natives and native) or not policy.acts_in(part.number) else make(policy, rotation, heads)
        for part, native, rotation in zip(anatomy.parts, natives, rotations, strict=True)
    ]


def _own_windows(policy: Policy, model: nn.Module, anatomy: Anatomy) -> list[int | None]:
    """The windows of the attention layers; chosen keys can be acted on in layers that have no cache of their own."""
    if policy.window is not None:
        return native_windows(model, len(anatomy.parts))
    check_unchunked(model)
    windows = cached_windows(model)
    return [windows.get(number) for number in anatomy.numbers]


def _window_eviction(policy: Policy, rotation: Rotation | None, heads: Tensor | None) -> Eviction:
    assert policy.window is not None
    return WindowEviction(
        sinks=policy.sinks,
        window=policy.window,
        rotation=rotation if policy.sinks and policy.positions == "cache" else None,
        since=policy.sinks + policy.window + 1,
        heads=heads,
        bias=policy.bias,
        values=policy.values,
    )


def _key_eviction(policy: Policy, rotation: Rotation | None, heads: Tensor | None) -> Eviction:
    assert policy.start is not None
    if policy.recent:
        return RecentEviction(recent=policy.recent, since=policy.start, heads=heads)
    keys = tuple(policy.keys or ())
    if policy.once_read:
        return ReadKeyEviction(keys=keys, since=policy.start, heads=heads)
    return KeyEviction(keys=keys, since=policy.start, heads=heads, bias=policy.bias, values=policy.values)


def native_windows(model: Any, layers: int) -> list[int | None]:
    """The model's own sliding window in each attention layer, in tokens, that being read included; None for full ones.

    Args:
        model: a decoder.
        layers: how many attention layers it has; each needs one of its own in the cache.

    Raises:
        SinkscopeError: attention in chunks (llama4); other layers in the cache, or layers that share one (gemma3n).
    """
    check_unchunked(model)
    windows = list(cached_windows(model).values())
    if len(windows) != layers:
        raise SinkscopeError(
            f"{type(model).__name__} has {layers} attention layers, but {len(windows)} layers in its cache, and a "
            "policy needs one for each; it cannot be streamed."
        )
    return windows
