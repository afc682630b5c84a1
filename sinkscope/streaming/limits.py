"""How long a text, and how large a cache, a model's positions allow."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.policies import Policy
from sinkscope.core.policy_on_layers import native_windows
from sinkscope.core.readiness import check_unchunked
from sinkscope.core.rotary import changes_with_length, find_rotations, position_ceiling, position_limit
from sinkscope.errors import SinkscopeError, warn


def check_limits(model: nn.Module, policy: Policy, tokens: int) -> None:
    """Refuse, or warn of, a policy that leads beyond the positions a model was made for.

    Raises:
        SinkscopeError: as `limit_notes`.
    """
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
