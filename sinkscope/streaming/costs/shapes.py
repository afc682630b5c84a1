"""The shapes behind a model's cost, found by running it on one and two tokens, not looked up by name.

One forward of q tokens over k cached and new keys does, in an attention layer,

    F(q, k) = projections · q  +  pair · q · k  +  key · k

floating-point operations: the products of every query with every key and value, and, where latents are cached
(multi-head latent attention), the making of all keys and values from them. F(1, 1), F(1, 2) and F(2, 2) give the three.
They are counted by torch's `FlopCounterMode`: two for each multiply-add of a matrix product, nothing for the rest. So
experts count when they are active, and only then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.policy_on_layers import native_windows
from sinkscope.core.readiness import check_decoder, check_unscoped, not_a_decoder
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import implementation
from sinkscope.hf.caches import growing_cache, held_states, with_cache
from sinkscope.hf.models import query_heads

Flops = dict[str, int]  # by path of the module; "" is the model


@dataclass(frozen=True)
class LayerShape:
    """One attention layer.

    Attributes:
        heads: query heads.
        kv_heads: heads of keys and values in the cache.
        key_dim, value_dim: numbers in one head's "keys" and "values" slot of the cache. For latent attention the slots
            hold the latent and the shared rotated key, with one head.
        itemsize: bytes of one cached number.
        window: the model's own sliding window in tokens, the token being read included; None for a full layer.
        flops_per_pair: of one query with one key and its value, all heads: 2 · heads · (key dim + value dim).
        flops_per_key: to make one key and value anew from its latent, in every forward pass; 0 where they are cached.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    itemsize: int
    window: int | None
    flops_per_pair: int
    flops_per_key: int

    @property
    def kv_bytes(self) -> int:
        """Bytes that one token takes in the cache."""
        return self.kv_heads * (self.key_dim + self.value_dim) * self.itemsize

    @property
    def kv_bytes_mha(self) -> int:
        """The same if every query head had its own keys and values (multi-head attention)."""
        return self.flops_per_pair // 2 * self.itemsize

    @property
    def kv_bytes_mqa(self) -> int:
        """The same if all query heads shared one key and value (multi-query attention)."""
        return self.kv_bytes_mha // self.heads


@dataclass(frozen=True)
class Shapes:
    """A model as far as its cost goes.

    Attributes:
        layers: the attention layers, in order.
        body_flops: per token, of everything below the output head but what grows with the text: projections,
            feed-forward layers, active experts.
        head_flops: per token, of the output head; 0 for a model without one.
    """

    layers: tuple[LayerShape, ...]
    body_flops: int
    head_flops: int


@torch.no_grad()
def shapes_of(model: Any) -> Shapes:
    """The shapes of a loaded decoder, as it is now: dtype, attention implementation, expert implementation.

    Raises:
        SinkscopeError: a model without a cache of keys and values (encoders, vision), attention in chunks, a scope
            attached, or an attention kernel whose operations torch cannot count.
    """
    anatomy = find_anatomy(model)
    check_decoder(model)
    check_unscoped(anatomy.base)
    windows = native_windows(model, len(anatomy.parts))
    cache, fresh = growing_cache(model), growing_cache(model)
    first, second = _count(model, 1, cache), _count(model, 1, cache)
    both = _count(model, 2, fresh)
    layers = []
    for part, window in zip(anatomy.parts, windows, strict=True):
        pair = (both.get(part.name, 0) - 2 * first.get(part.name, 0)) // 2
        key = second.get(part.name, 0) - first.get(part.name, 0) - pair
        layers.append(_layer_shape(model, cache, part.number, window, (pair, key)))
    base = next(name for name, module in model.named_modules() if module is anatomy.base)
    growing = sum(layer.flops_per_pair + layer.flops_per_key for layer in layers)
    return Shapes(tuple(layers), body_flops=first[base] - growing, head_flops=first[""] - first[base])


def _count(model: nn.Module, tokens: int, cache: Any) -> Flops:
    """Floating-point operations of a forward pass over `tokens` new tokens, by path of the module."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=next(model.parameters()).device)
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(input_ids=ids, **with_cache(model, cache))
    root = type(model).__name__
    counts = counter.get_flop_counts().items()
    return {path.removeprefix(root).removeprefix("."): sum(each.values()) for path, each in counts}


def _layer_shape(model: Any, cache: Any, number: int, window: int | None, flops: tuple[int, int]) -> LayerShape:
    """What a layer cached, beside the operations per pair and per key counted in it."""
    name = type(model).__name__
    held = held_states(cache, number)
    if len(held) < 2:
        raise not_a_decoder(name, "keeps no keys in its cache in some layers")
    pair, key = flops
    if pair <= 0:
        raise SinkscopeError(
            f"{name} computes attention with {implementation(model)!r}, whose operations torch does not "
            'count; call model.set_attn_implementation("sdpa") first.'
        )
    keys, value_dim = held["keys"], held["values"].shape[-1]
    _, kv_heads, _, key_dim = keys.shape
    heads = (query_heads(model) or 0) if key else pair // 2 // (key_dim + value_dim)
    return LayerShape(heads, kv_heads, key_dim, value_dim, keys.element_size(), window, pair, key)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Formulas for products that torch's counter does not know: attention on the CPU and Apple chips, and experts."""
    known: list[tuple[Any, str, Callable[..., int]]] = [
        (torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", _attention_flops),
        (torch.ops.aten, "_scaled_dot_product_attention_math_for_mps", _attention_flops),
        (torch.ops.aten, "_grouped_mm", _grouped_flops),
        (torch.ops.transformers, "grouped_mm_fallback", _grouped_flops),
    ]
    return {getattr(library, name): formula for library, name, formula in known if hasattr(library, name)}


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _grouped_flops(rows: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Rows [row, dim] times the weight [expert, dim, out] of the expert each belongs to."""
    return int(2 * rows[0] * rows[1] * weight[-1])
