"""What a policy means for each layer of a model."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sinkscope.attention.eviction import Eviction
from sinkscope.errors import SinkscopeError, warn
from sinkscope.hf.caches import native_windows as cached_windows
from sinkscope.hf.models import key_value_heads, query_heads
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import Anatomy, Part, find_anatomy
from sinkscope.models.requirements import check_unchunked
from sinkscope.models.rotary import changes_with_length, find_rotations, position_ceiling, position_limit
from sinkscope.policies import Policy
from sinkscope.policies.base import BoundLayer


def layer_evictions(policy: Policy, model: nn.Module, anatomy: Anatomy) -> list[tuple[Eviction, ...]]:
    """How each attention layer carries out a policy; nothing where a layer is left as it is.

    A model that mixes layers with a native sliding window and full ones keeps the former as they are: the policy acts
    on the full ones. Where every layer slides, a policy that keeps the last tokens takes the place of the window in all
    of them, and no other can act.

    Raises:
        SinkscopeError: the policy cannot be carried out on this model.
    """
    if not isinstance(policy, Policy):
        raise SinkscopeError(f"{policy!r} is not a policy; give an instance such as sinkscope.SinkWindow(4, 1020).")
    policy.check_place(anatomy.numbers, query_heads(model), key_value_heads(model))
    policy.check()
    if policy.is_dense:
        return [()] * len(anatomy.parts)
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
    if policy.kept is not None:
        natives = native_windows(model, len(anatomy.parts))
        find_rotations(model)  # or the reason why keys cannot leave a cache of this model
    else:  # keys can be acted on in layers that have no cache of their own
        check_unchunked(model)
        windows = cached_windows(model)
        natives = [windows.get(number) for number in anatomy.numbers]
        if None not in natives:
            raise SinkscopeError(
                f"every layer of {type(model).__name__} slides over its own window, so there is none whose keys "
                f"`{policy.name}` could act on; give a policy with a window."
            )
    slides = [None in natives and native is not None for native in natives]
    return [
        () if sliding or not policy.acts_in(part.number) else _bound(policy, model, index, part)
        for index, (part, sliding) in enumerate(zip(anatomy.parts, slides, strict=True))
    ]


def _bound(policy: Policy, model: nn.Module, index: int, part: Part) -> tuple[Eviction, ...]:
    """How one layer carries out a policy, on the layer's device."""
    layer = BoundLayer(model, index, part.number)
    evictions: Any = policy.bind(layer)
    if not isinstance(evictions, tuple) or not all(isinstance(each, Eviction) for each in evictions):
        raise SinkscopeError(
            f"`bind` of {policy!r} gave {evictions!r}; it has to give a tuple of evictions, empty for dense attention."
        )
    own, taken = policy.acting_heads(layer.heads), None
    bound = []
    for eviction in evictions:
        heads = own if eviction.heads is None else eviction.heads if own is None else eviction.heads & own
        everywhere = torch.ones(layer.heads, dtype=torch.bool) if heads is None else heads
        if taken is not None and bool((taken & everywhere).any()):
            raise SinkscopeError(f"`bind` of {policy!r} gave two evictions for one head; give each head one at most.")
        taken = everywhere if taken is None else taken | everywhere
        moved = heads if heads is None else heads.to(reading_device(part.attention))
        bound.append(replace(eviction, heads=moved))
    return tuple(bound)


def native_windows(model: Any, layers: int) -> list[int | None]:
    """The model's own sliding window in each attention layer, in tokens, that being read included; None for full ones.

    Raises:
        SinkscopeError: attention in chunks (llama4); other than `layers` layers in the cache, or shared ones (gemma3n).
    """
    check_unchunked(model)
    windows = list(cached_windows(model).values())
    if len(windows) != layers:
        raise SinkscopeError(
            f"{type(model).__name__} has {layers} attention layers, but {len(windows)} layers in its cache, and a "
            "policy needs one for each; it cannot be streamed."
        )
    return windows


def check_limits(model: nn.Module, policy: Policy, tokens: int) -> None:
    """Refuse, or warn of, a policy that leads beyond the positions a model was made for, as `limit_notes` says."""
    for note in limit_notes(model, policy, tokens):
        warn(note)


def limit_notes(model: nn.Module, policy: Policy, tokens: int) -> list[str]:
    """What a user should know of a policy on a text of so many tokens; nothing where all is well.

    Raises:
        SinkscopeError: learned absolute positions are streamed, or read past their table; a rotation that changes
            with length is read past that change; attention in chunks, or layers that share keys, where they cannot be.
    """
    limit, name, anatomy = position_limit(model), type(model).__name__, find_anatomy(model)
    reach = tokens if policy.kept is None or policy.is_partial else min(tokens, sum(policy.kept))
    if not policy.is_plain and not anatomy.interface:
        raise SinkscopeError(
            f"{name} does not use transformers' attention interface, so it can be read token by token under a window, "
            f"sinks and all, but not under `{policy.name}`."
        )
    if policy.kept is None:
        check_unchunked(model)
    if policy.kept is None or policy.recomputed:
        if limit and reach > limit and _has_table(model):
            raise SinkscopeError(
                f"{name} has a table of {limit} positions, and `{policy.name}` needs {reach}; give fewer tokens."
            )
    else:
        native_windows(model, len(anatomy.parts))
        find_rotations(model)
        if policy.kept.first and policy.coordinates["positions"] == "original" and not anatomy.interface:
            raise SinkscopeError(
                f"{name} does not use transformers' attention interface, so sinks are counted only by their place in "
                'the cache; give positions="cache".'
            )
    if limit and reach > limit and changes_with_length(model):
        raise SinkscopeError(
            f"{name} changes its rotary frequencies beyond {limit} tokens, which keys cached before cannot follow; "
            f"`{policy.name}` needs {reach}."
        )
    notes = []
    if limit and policy.cache_size and policy.cache_size > limit:
        notes.append(
            f"a cache of {policy.cache_size} tokens is longer than the {limit} positions {name} was trained on: once "
            "it has filled up, its farthest tokens lie at distances the model has never seen"
        )
    if policy.cache_size and tokens <= policy.cache_size:
        notes.append(
            f"{tokens} tokens fit into the cache of `{policy.name}`: nothing is evicted, its losses are the dense ones"
        )
    return notes


def block_within_limits(model: nn.Module, policy: Policy, block: int) -> int:
    """The size of a block whose positions stay below where they end or a rotation changes with length."""
    ceiling = position_ceiling(model)
    return block if ceiling is None or policy.cache_size is None else min(block, ceiling)


def _has_table(model: nn.Module) -> bool:
    """Whether positions are looked up in a table that ends: learned, or sines or biases computed once."""
    base: Any = find_anatomy(model).base
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return True  # the biases of MPT
    if any(isinstance(getattr(module, "embed_positions", None), torch.Tensor) for module in base.modules()):
        return True  # GPT-J, CodeGen
    try:
        find_rotations(model)
    except SinkscopeError:
        return True
    return False
