"""The attention and mask functions that transformers calls while a scope is attached.

Both are registered under the name "sinkscope". The attention function returns, in the slot where eager attention
returns its maps, the `FusedLayer` that probes look at; a forward hook of the scope picks it up there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sinkscope.attention.attend_layer import PLAIN, Block, Weighing, attend_layer
from sinkscope.attention.eviction import Eviction
from sinkscope.attention.layer import FusedLayer, Layer, ScoredLayer
from sinkscope.attention.masks import BiasedMask, CausalMask, FullMask, IndexedMask, Mask, PerHeadMask, TensorMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import AttentionCall, MaskRequest, register
from sinkscope.hf.caches import cache_among, held_states
from sinkscope.normalisers import Normaliser
from sinkscope.normalisers.base import weighing_of

NAME = "sinkscope"

NORMALISERS: WeakKeyDictionary[nn.Module, Normaliser] = WeakKeyDictionary()
"""Attention modules whose softmax a scope has replaced."""

EVICTIONS: WeakKeyDictionary[nn.Module, tuple[Eviction, ...]] = WeakKeyDictionary()
"""Attention modules that carry out a policy."""


@dataclass(frozen=True)
class Sight:
    """A mask with the positions of the first query and key: what the mask function hands to the attention function."""

    mask: Mask
    start: int
    key_start: int
    padded: bool = False  # whether some tokens are padding

    def __getattr__(self, name: str) -> Any:
        raise MaskNeeded(name)

    def __getitem__(self, index: Any) -> Any:
        raise MaskNeeded("parts")


CROSSING: WeakSet[nn.Module] = WeakSet()
"""Attention modules whose queries look at what another model made."""

SEEN: WeakKeyDictionary[nn.Module, list[FusedLayer]] = WeakKeyDictionary()
"""What attention modules did that may not hand it on, call by call; a scope takes it from here."""


class MaskNeeded(SinkscopeError, AttributeError):
    """Something asks of a lazy mask what only a tensor has; `hasattr` and `getattr` take it for a missing attribute."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the model or its cache asks for the {name} of the attention mask, which is no tensor while a scope is "
            "attached; a static cache in generate() does so (leave cache_implementation out), and a few families."
        )


def lazy_mask(asked: MaskRequest) -> Sight:
    """The model's own mask as an object that answers block by block."""
    start, key_start, keys, padding = asked.start, asked.key_start, asked.keys, asked.padding
    if padding is not None and (missing := keys + key_start - padding.shape[-1]) > 0:
        padding = F.pad(padding, (0, missing))
    filled = keys if asked.bidirectional else start + asked.queries - key_start
    unpadded = padding is None or bool(padding[:, key_start : key_start + min(keys, filled)].all())
    plain = unpadded and (asked.window is None or keys < asked.window)
    if plain and asked.causal:
        return Sight(CausalMask(start - key_start), start, key_start)
    if plain and asked.bidirectional:
        return Sight(FullMask(), start, key_start)

    def function(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert asked.function is not None
        seen = asked.function(batch, head, query, key)
        return seen if padding is None else seen & padding[batch, key]

    batch = torch.arange(asked.batch, device=asked.device)
    rows = torch.arange(start, start + asked.queries, device=asked.device)
    columns = torch.arange(key_start, key_start + keys, device=asked.device)
    mask = IndexedMask(function, batch, rows, columns, vectorised=not asked.scalar)
    return Sight(mask, start, key_start, padded=not unpadded)


def scoped_attention(call: AttentionCall) -> tuple[Tensor, FusedLayer]:
    """Attention of one layer: the output [batch, head, query, dim], and the layer for the probes."""
    module, value = call.module, call.value
    if call.foreign:
        raise SinkscopeError(
            f"{type(module).__name__} changes its attention by `{call.foreign[0]}`, which sinkscope cannot follow; "
            "measure its maps elsewhere and use sinkscope.from_maps."
        )
    check_dropout(call.dropout)
    query, key = call.query.to(value.dtype), call.key.to(value.dtype)  # autocast leaves rotated ones in float32
    sight = _sight(call.mask, query, key, call.causal)
    if module in CROSSING:  # all keys are there, wherever the queries stand
        sight = replace(sight, start=key.shape[2] - query.shape[2], key_start=0)
    if call.bias is not None:
        sight = replace(sight, mask=BiasedMask(sight.mask, call.bias))
    weighing = weighing_of(NORMALISERS.get(module), call.learned_sinks, query.shape[1], query.device)
    evictions = EVICTIONS.get(module, ())
    output, layer = observed_layer(query, key, value, sight, call.scale, call.softcap, weighing, evictions)
    if module in SEEN:
        SEEN[module].append(layer)
    return output, layer


def observed_layer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sight: Sight,
    scale: float | None = None,
    softcap: float | None = None,
    weighing: Weighing = PLAIN,
    evictions: tuple[Eviction, ...] = (),
) -> tuple[Tensor, FusedLayer]:
    """The output [batch, head, query, dim] of one layer's attention, and the layer for the probes."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if evictions and (sight.padded or not isinstance(sight.mask, (CausalMask, IndexedMask))):
        raise SinkscopeError(
            "a policy acts on texts without padding under a causal mask; give texts of one length, one by one."
        )
    attended = attend_layer(Block(query, key, value, sight.start, scale, softcap), sight.mask, evictions, weighing)
    if evictions:
        mask: Mask = CausalMask(sight.start)
        for eviction in evictions:
            own = eviction.mask(query, sight.start)
            mask = own if eviction.heads is None else PerHeadMask(eviction.heads, own, mask)
        sight = replace(sight, mask=mask)
    filled = min(key.shape[2], sight.start + query.shape[2] - sight.key_start)
    virtual = weighing.virtual_logit
    return attended.output, FusedLayer(
        lse=attended.lse.detach(),
        query=query.detach(),
        key=key[:, :, :filled].detach(),
        value=value[:, :, :filled].detach(),
        mask=sight.mask,
        scale=scale,
        softcap=softcap,
        start=sight.start,
        key_start=sight.key_start,
        virtual_logit=None if virtual is None else virtual.detach(),
        output=attended.output.detach(),
        evictions=evictions,
        shift=None if attended.shift is None else attended.shift.detach(),
        weighing=weighing,
    )


def _sight(given: Sight | Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Sight:
    if isinstance(given, Sight):
        return given
    queries, keys = query.shape[2], key.shape[2]
    mask: Mask = CausalMask(keys - queries) if causal else FullMask()
    if given is not None:
        mask = TensorMask(given[..., :keys].expand(-1, -1, queries, -1))
    return Sight(mask, keys - queries, 0)


def check_dropout(dropout: float) -> None:
    """Raise SinkscopeError when attention drops out: its probabilities would be random."""
    if dropout > 0:
        raise SinkscopeError(
            f"attention dropout of {dropout} is on, so probabilities are random; call model.eval() first."
        )


register(NAME, scoped_attention, lazy_mask)


SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class AttentionWatch(TorchFunctionMode):
    """Sees one attention module compute its score matrix or call the fused attention: its `layer`, None without one."""

    layer: Layer | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.layer = _fused(*args, **kwargs)
        if func in SOFTMAX and args and isinstance(args[0], Tensor) and args[0].dim() == 4:
            scores = args[0].detach()
            past = scores.shape[3] - scores.shape[2]
            lse = scores.float().logsumexp(-1).clamp(min=torch.finfo(torch.float32).min)  # a row may see nothing
            self.layer = ScoredLayer(lse=lse, scores=scores, key=None, value=None, start=past)
        return func(*args, **kwargs)

    def show_states(self, index: int, arguments: Iterable[Any]) -> None:
        """Give the layer keys and values from the cache among some arguments, where attention did not show them."""
        cache = cache_among(arguments)
        states = {} if cache is None else held_states(cache, index)
        if self.layer is not None and self.layer.key is None and len(states) == 2:
            key, value = states["keys"].detach(), states["values"].detach()
            self.layer = replace(self.layer, key=key, value=value)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FusedLayer:
    """What the probes need of a call of `scaled_dot_product_attention`, whose arguments these are."""
    check_dropout(dropout_p)
    past = key.shape[2] - query.shape[2]
    mask: Mask = FullMask()
    if attn_mask is not None:
        mask = TensorMask(attn_mask[(None,) * (4 - attn_mask.dim())].expand(-1, -1, query.shape[2], key.shape[2]))
    elif is_causal:
        mask = CausalMask(0)
    return observed_layer(query, key, value, Sight(mask, past, 0), scale)[1]
