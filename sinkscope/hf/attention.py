"""Attention and mask functions registered with transformers, and the implementation that a model uses.

transformers calls both functions with arguments of its own naming; what is registered here hands them on as a
`MaskRequest` and an `AttentionCall`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import setting
from sinkscope.undo import Undo

CHANGES_ATTENTION = ("block_indices",)
"""Arguments by which some families change attention in a way of their own: a choice of blocks."""


class MaskRequest(NamedTuple):
    """Which mask a model asks for."""

    batch: int
    queries: int
    keys: int
    start: int  # the place of the first query
    key_start: int  # and of the first key
    function: Callable[..., Tensor] | None  # of indices (batch, head, query, key): is it seen; None: causal attention
    padding: Tensor | None  # booleans or numbers [batch, key] that are 0 for padding
    window: int | None  # keys of a native sliding window, or of a chunk; None for full attention
    causal: bool  # whether `function` is just that
    bidirectional: bool  # whether it hides nothing
    scalar: bool  # whether it takes one index at a time
    dtype: torch.dtype  # of the scores that it is for
    device: torch.device | str


class AttentionCall(NamedTuple):
    """A call of one layer's attention."""

    module: nn.Module
    query: Tensor  # [batch, head, query, dim]
    key: Tensor  # [batch, kv_head, key, dim]
    value: Tensor
    mask: Tensor | None  # what the mask function gave, or what the model made of it
    bias: Tensor | None  # on the scores, [batch or 1, head or 1, query, key]
    chosen: Tensor | None  # [batch, query, chosen] places of the keys that a query sees, among those of the mask
    scale: float | None  # factor on the scores; None for dim ** -0.5
    dropout: float  # of the weights
    softcap: float | None  # of the scores
    learned_sinks: Tensor | None  # [head], or [batch, head, query], logits that join the softmax
    causal: bool  # whether attention is causal where there is no mask
    foreign: tuple[str, ...]  # arguments that change attention and are not known here


def register(
    name: str, attention: Callable[[AttentionCall], tuple[Tensor, Any]], mask: Callable[[MaskRequest], Any]
) -> None:
    """Make known to transformers by a name an implementation of attention, and of the mask that this gets.

    `attention` gives the output [batch, head, query, dim], and what takes the place of the attention map.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        indices: Tensor | None = None,
        sinks: Tensor | None = None,
        is_causal: bool | None = None,
        **given: Any,
    ) -> tuple[Tensor, Any]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        foreign = tuple(argument for argument in CHANGES_ATTENTION if given.get(argument) is not None)
        call = AttentionCall(
            module, query, key, value, attention_mask, position_bias, indices, scaling, dropout, softcap,
            s_aux if sinks is None else sinks.squeeze(-1), causal, foreign,
        )  # fmt: skip
        output, shown = attention(call)
        return output.transpose(1, 2).contiguous(), shown

    def make_mask(
        batch_size: int,
        q_length: int,
        kv_length: int,
        q_offset: int | Tensor = 0,
        kv_offset: int = 0,
        mask_function: Callable[..., Tensor] | None = None,
        attention_mask: Tensor | None = None,
        local_size: int | None = None,
        allow_is_causal_skip: bool = True,
        allow_is_bidirectional_skip: bool = False,
        use_vmap: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **_: Any,
    ) -> Any:
        return mask(
            MaskRequest(
                batch_size, q_length, kv_length, int(q_offset), int(kv_offset), mask_function, attention_mask,
                local_size, allow_is_causal_skip, allow_is_bidirectional_skip, use_vmap, dtype, device,
            )
        )  # fmt: skip

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, make_mask)


def has_interface(model: Any) -> bool:
    """Whether a model's attention can be replaced: it goes through transformers' attention interface."""
    can_set = getattr(model, "_can_set_attn_implementation", None)
    return bool(can_set and can_set())


def makes_its_own_softmax(attention: nn.Module) -> bool:
    """Whether a module makes its attention by hand, where others of a model use the interface.

    Some do by what transformers wrote for them (git), and some by a forward that somebody put in its place.
    """
    forward: Any = inspect.unwrap(vars(attention).get("forward", type(attention).forward))
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    by_hand = {"softmax"} if is_of_transformers(forward) else {"softmax", "scaled_dot_product_attention"}
    return not by_hand.isdisjoint(names) and "ALL_ATTENTION_FUNCTIONS" not in names


def implementation(model: Any) -> str:
    """The attention implementation that a model uses now; "unknown" for a module without a configuration."""
    return str(setting(model, "_attn_implementation", "unknown"))


def expert_implementation(model: Any) -> str:
    """The implementation of experts that a model uses now; "unknown" where it says none."""
    return str(setting(model, "_experts_implementation", "unknown"))


def use_implementation(models: Sequence[Any], name: str, undo: Undo) -> None:
    """Send the attention of some models through a registered implementation until `undo` is closed.

    Raises:
        SinkscopeError: a configuration carries a scope already, or its attention is a function of its user's own.
    """
    found = {id(config): (config, model) for model in models for config in configurations(model)}
    before = []
    for config, model in found.values():
        before.append((config, used := config._attn_implementation))
        if used == name:
            raise SinkscopeError(
                "this model shares its configuration with another one that carries a scope; leave that one first."
            )
        if own_function(used, model) is not None:
            other = "eager" if used == "sdpa" else "sdpa"
            raise SinkscopeError(
                f"{type(model).__name__} attends by {used!r}, a function that is none of transformers' own, and a "
                "scope would put softmax attention in its place; call "
                f'model.set_attn_implementation("{other}") before, if that is what it computes, else measure its maps '
                "elsewhere and use sinkscope.from_maps."
            )

    def restore() -> None:
        for config, used in before:  # outer ones first: setting one sets those inside it
            config._attn_implementation = used

    undo.callback(restore)
    for model in models:
        model.set_attn_implementation(name)


def own_function(implementation: str | None, model: nn.Module) -> Callable[..., Any] | None:
    """The function of its user's own by which a model attends; None where it is transformers' plain softmax attention.

    Whose a function is follows from its code, since a decorator may give it the name and the module of another.
    """
    name = (implementation or "eager").removeprefix("paged|")
    function: Any = ALL_ATTENTION_FUNCTIONS.get(name)
    if name == "sdpa" and not isinstance(F.scaled_dot_product_attention, BuiltinFunctionType):
        return F.scaled_dot_product_attention  # in the place of torch's
    if function is None:  # "eager": a function beside the code of each family
        return next(filter(None, map(_other_eager, {type(module) for module in model.modules()})), None)
    return None if _is_theirs(function) else function


def own_functions() -> dict[str, Callable[..., Any]]:
    """Functions that somebody put in the place of transformers' own attention, for all models, by its name."""
    theirs = ("sdpa", "flex_attention", "flash_attention", "paged|")
    found = {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in ALL_ATTENTION_FUNCTIONS if name.startswith(theirs)}
    return {f"attention {name}": each for name, each in found.items() if each and not _is_theirs(each)}


def _is_theirs(function: Any) -> bool:
    """Whether an attention function is transformers' own, also where an implementation was chosen for it."""
    is_chosen = isinstance(function, partial) and not function.args and set(function.keywords) <= {"implementation"}
    return is_of_transformers(function.func if is_chosen else function)


def is_of_transformers(function: Any) -> bool:
    """Whether the code of a function is transformers' own, whatever name it goes by."""
    return str(getattr(function, "__globals__", {}).get("__name__")).startswith("transformers.")


def _other_eager(kind: type) -> Callable[..., Any] | None:
    """The eager attention that modules of a class call, where that is neither their own nor transformers'."""
    around = getattr(inspect.unwrap(kind.forward), "__globals__", {})  # type: ignore[attr-defined]
    eager = around.get("eager_attention_forward")
    is_its_own = eager is None or getattr(eager, "__globals__", None) is around or is_of_transformers(eager)
    return None if is_its_own else eager


def leave_maps_out(model: Any, undo: Undo) -> None:
    """Set aside, until `undo` is closed, that a configuration asks for attention maps of every forward pass."""

    def restore() -> None:
        for config in asking:
            config._output_attentions = True  # as it was, whatever implementation was set since

    asking = [config for config in configurations(model) if getattr(config, "output_attentions", False)]
    undo.callback(restore)
    for config in asking:
        config._output_attentions = False


def configurations(model: Any) -> list[Any]:
    """The configurations of a model, its parts and theirs, each once, outer ones first."""
    found = [module.config for module in model.modules() if hasattr(getattr(module, "config", None), "sub_configs")]
    for config in found:  # grows on the way
        found += [part for key in config.sub_configs if (part := getattr(config, key, None)) is not None]
    return list({id(config): config for config in found}.values())
