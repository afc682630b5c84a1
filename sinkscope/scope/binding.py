"""What a policy means for each layer of a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sinkscope.attention.eviction import Eviction
from sinkscope.errors import SinkscopeError, first_line, warn
from sinkscope.hf.models import is_head_present, key_value_heads, query_heads
from sinkscope.hf.placement import reading_device
from sinkscope.models.cached import BLOCKS, find_layout, find_reading, takes_positions
from sinkscope.models.facts import Anatomy, Part, find_anatomy
from sinkscope.models.requirements import check_reader, check_streamable
from sinkscope.models.rotary import (
    changes_with_length,
    find_rotations,
    position_ceiling,
    position_limit,
    scales_queries,
)
from sinkscope.policies import Policy
from sinkscope.policies.base import BoundLayer, Geometry, bound_evictions

PADDED = 2  # positions of a table that may be for padding


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
    policy.check()
    policy.check_place(anatomy.numbers, query_heads(model), key_value_heads(model))
    if policy.is_dense:
        return [()] * len(anatomy.parts)
    if policy.recomputed:
        check_reader(model)
        raise SinkscopeError(
            f"{policy!r} runs every window as a text of its own, so it is no way to attend in one forward pass; "
            "use sinkscope.perplexity."
        )
    if goes_by_token(model):
        _check_by_token(model, policy)
        raise SinkscopeError(
            f"{type(model).__name__} {_out_of_reach(anatomy)}, so its attention cannot follow a policy in one forward "
            "pass; use sinkscope.perplexity or a SinkCache, which go token by token."
        )
    check_none_missed(model, f"`{policy.name}`")
    natives = native_windows(model)
    if policy.remembers:
        _check_one_layer_each(policy, model)
    if policy.kept is not None:
        check_streamable(model)
        find_rotations(model)  # or the reason why keys cannot leave a cache of this model
    elif natives and None not in natives.values():
        raise SinkscopeError(
            f"every layer of {type(model).__name__} slides over its own window, so there is none whose keys "
            f"`{policy.name}` could act on; give a policy with a window."
        )
    acting, geometry = policy_layers(model), Geometry(model)
    return [
        _bound(policy, model, index, part, geometry) if index in acting and policy.acts_in(part.number) else ()
        for index, part in enumerate(anatomy.parts)
    ]


def _check_one_layer_each(policy: Policy, model: nn.Module) -> None:
    """Refuse to remember attention by layers where several share keys, or one runs several times."""
    reads = [place for places in find_layout(model).reads for place in places]
    if len(set(reads)) < len(reads) or any(len(places) > 1 for places in find_layout(model).reads):
        raise SinkscopeError(
            f"{type(model).__name__} has attention layers that share keys or run several times in one forward pass, "
            f"and `{policy.name}` chooses keys in each layer by the attention of that alone; give a policy that "
            "follows from places in the text, such as sinkscope.SinkWindow(4, 1020)."
        )


def _bound(policy: Policy, model: nn.Module, index: int, part: Part, geometry: Geometry) -> tuple[Eviction, ...]:
    """How one layer carries out a policy, on the layer's device."""
    layer = BoundLayer(model, index, part.number, geometry)
    own, taken = policy.acting_heads(layer.heads), None
    bound = []
    for eviction in bound_evictions(policy, layer):
        heads = own if eviction.heads is None else eviction.heads if own is None else eviction.heads & own
        everywhere = torch.ones(layer.heads, dtype=torch.bool) if heads is None else heads
        if taken is not None and bool((taken & everywhere).any()):
            raise SinkscopeError(f"`bind` of {policy!r} gave two evictions for one head; give each head one at most.")
        taken = everywhere if taken is None else taken | everywhere
        moved = heads if heads is None else heads.to(reading_device(part.attention))
        bound.append(replace(eviction, heads=moved))
    return tuple(bound)


def check_none_missed(model: nn.Module, slot: str) -> None:
    """Refuse to fill a slot of attention where some of a model's attention is in modules that are not known for it."""
    if missed := find_layout(model).missed:
        raise SinkscopeError(
            f"{type(model).__name__} attends in {missed}, which is not known for an attention layer (the innermost "
            f'modules with "Attention" in the name of their class are), and {slot} would not act there; give that '
            "class such a name, and the modules inside it others."
        )


def native_windows(model: nn.Module) -> dict[int, int | None]:
    """The model's own sliding window in each attention layer that has keys, by the place of that among the others.

    It is counted in tokens, that being read included, and None for full layers.
    """
    return find_layout(model).natives


def policy_layers(model: nn.Module) -> list[int]:
    """The attention layers that a policy can act on: the full ones, or where every layer slides, all of them."""
    natives = native_windows(model)
    return [index for index, native in natives.items() if native is None] or list(natives)


def check_limits(model: nn.Module, policy: Policy, tokens: int) -> None:
    """Refuse, or warn of, a policy that leads beyond the positions a model was made for, as `limit_notes` says."""
    for note in limit_notes(model, policy, tokens):
        warn(note)


def limit_notes(model: nn.Module, policy: Policy, tokens: int) -> list[str]:
    """What a user should know of a policy on a text of so many tokens; nothing where all is well.

    Raises:
        SinkscopeError: absolute positions are streamed, or read past their table; a rotation that changes with length
            is read past that change; a cache that keys cannot be taken out of.
    """
    policy.check()
    policy.check_places(tokens)
    limit, name = position_limit(model), type(model).__name__
    reach = tokens if policy.kept is None or policy.is_partial else min(tokens, sum(policy.kept))
    if goes_by_token(model):
        _check_by_token(model, policy)
    if policy.remembers:
        _check_one_layer_each(policy, model)
    if policy.kept is None or policy.recomputed:
        check_table(model, reach, f"`{policy.name}`")
    else:
        check_streamable(model)
        find_rotations(model)
    bounded = policy.kept is not None and not policy.recomputed
    if bounded and (ceiling := position_ceiling(model)) and tokens > ceiling and scales_queries(model):
        raise SinkscopeError(
            f"{name} scales its queries by their position in the text and knows {ceiling} of them; give fewer tokens."
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
        losses = "its losses are the dense ones"
        own = [native for native in native_windows(model).values() if native]
        if len(own) == len(native_windows(model)) and tokens > min(own) and not policy.recomputed:
            losses = (
                f"and as it takes the place of the window of {min(own)} tokens that every layer has, its losses are "
                "those of attention to all tokens, and not those of `dense`, which keeps that window"
            )
        notes.append(f"{tokens} tokens fit into the cache of `{policy.name}`: nothing is evicted, {losses}")
    return notes


def check_table(model: nn.Module, tokens: int, who: str) -> None:
    """Raise SinkscopeError where so many tokens, which `who` needs, are past the end of a table of positions."""
    limit = position_limit(model)
    ends = limit and limit - max(_padding(each, limit) for each in find_anatomy(model).base.modules())
    if ends and tokens > ends and _has_table(model):
        raise SinkscopeError(
            f"{type(model).__name__} has a table of {ends} positions, and {who} needs {tokens}; give fewer tokens."
        )


@contextmanager
def within_table(model: nn.Module, tokens: int) -> Iterator[None]:
    """Say in a sentence that a text is past the positions a model was made for, where the model fails on it."""
    try:
        yield
    except (IndexError, RuntimeError) as problem:
        limit = position_limit(model)
        if limit is None or tokens <= limit - PADDED or isinstance(problem, torch.OutOfMemoryError):
            raise
        if find_layout(model).windows:  # whether it has a table was told before: this is something else
            raise
        raise SinkscopeError(
            f"{type(model).__name__} failed on a text of {tokens} tokens ({first_line(problem).rstrip('.')}), and was "
            f"made for {limit} positions; give fewer tokens."
        ) from problem


def goes_by_token(model: nn.Module) -> bool:
    """Whether a model's attention cannot be given a policy, so that only what its cache keeps can follow one."""
    return not find_anatomy(model).interface or not find_layout(model).is_followed


def _check_by_token(model: nn.Module, policy: Policy) -> None:
    """Refuse what a model whose attention cannot be given a policy cannot be read under token by token either."""
    name, reason = type(model).__name__, _out_of_reach(find_anatomy(model))
    if policy.kept is not None and not policy.recomputed:
        check_streamable(model)
        find_rotations(model)
    if not policy.is_plain:
        raise SinkscopeError(
            f"{name} {reason}, so it can be read under a plain window, sinks and all, or densely at most, but not "
            f"under `{policy.name}`."
        )
    if policy.kept is not None and policy.kept.first and policy.coordinates["positions"] == "original":
        raise SinkscopeError(
            f'{name} {reason}, so sinks are counted only by their place in the cache; give positions="cache".'
        )


def _out_of_reach(anatomy: Anatomy) -> str:
    if not anatomy.interface:
        return "does not use transformers' attention interface"
    return "changes its attention by a bias, a mask or a function of its own"


def block_within_limits(model: nn.Module, policy: Policy, block: int) -> int:
    """The size of a block whose positions stay below where they end or a rotation changes with length.

    Where a model does not read on in blocks as it reads a whole text, that is one block.
    """
    if not reads_in_blocks(model):
        return sys.maxsize
    ceiling = position_ceiling(model)
    return block if ceiling is None or policy.cache_size is None else min(block, ceiling)


def reads_in_blocks(model: nn.Module) -> bool:
    """Whether a model reads a text in blocks, on a cache of ours, as it reads the whole of it."""
    layout = find_layout(model)
    return bool(layout.windows) and not layout.foreign and layout.is_followed and find_reading(model) == BLOCKS


def _has_table(model: nn.Module) -> bool:
    """Whether positions are looked up in a table that ends: learned, or sines or biases computed once."""
    base: Any = find_anatomy(model).base
    if any(callable(getattr(module, "make_weights", None)) for module in base.modules()):
        return False  # XGLM makes its sines again for a longer text
    if any(isinstance(getattr(module, "embed_positions", None), torch.Tensor) for module in base.modules()):
        return True  # GPT-J, CodeGen
    if not find_layout(model).windows:  # nothing of its cache can be looked at
        limit, has_head = position_limit(model), is_head_present(model)
        tables = [module for module in base.modules() if isinstance(module, nn.Embedding)]
        return has_head and any(len(table.weight) == limit for table in tables)
    if not takes_positions(base):
        return True  # the biases of MPT
    try:
        find_rotations(model)
    except SinkscopeError:
        return True
    return False


def _padding(module: nn.Module, limit: int) -> int:
    """How many of so many positions, of which it is the table, are for padding (RoBERTa)."""
    is_table = isinstance(module, nn.Embedding) and len(module.weight) == limit
    padding: Any = getattr(module, "padding_idx", None)
    return padding + 1 if is_table and padding is not None else 0
