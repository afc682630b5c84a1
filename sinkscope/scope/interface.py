"""The attention and mask functions that transformers calls while a scope is attached.

Both are registered under the name "sinkscope". The attention function returns, in the slot where eager attention
returns its maps, the `FusedLayer` that probes look at; a forward hook of the scope picks it up there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinkscope.attention.attend_layer import PLAIN, Block, Weighing, attend_layer
from sinkscope.attention.eviction import Eviction, mask_under
from sinkscope.attention.layer import FusedLayer
from sinkscope.attention.masks import (
    CausalMask,
    FullMask,
    IndexedMask,
    TensorMask,
)  # fmt: skip
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import AttentionCall, register
from sinkscope.normalisers import Normaliser
from sinkscope.normalisers.base import weighing_of
from sinkscope.scope.lazy_mask import Sight, lazy_mask, sight_of

NAME = "sinkscope"

NORMALISERS: WeakKeyDictionary[nn.Module, Normaliser] = WeakKeyDictionary()
"""Attention modules whose softmax a scope has replaced."""

EVICTIONS: WeakKeyDictionary[nn.Module, tuple[Eviction, ...]] = WeakKeyDictionary()
"""Attention modules that carry out a policy."""

CROSSING: WeakSet[nn.Module] = WeakSet()
"""Attention modules whose queries look at what another model made."""

SEEN: WeakKeyDictionary[nn.Module, list[FusedLayer]] = WeakKeyDictionary()
"""What attention modules did that may not hand it on, call by call; a scope takes it from here."""

SPANNED: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
"""Attention modules that sum their attention over spans of the keys: [batch or 1, key, span], 1 for a key inside."""

EASY = 16  # columns of values of which the kernels take a multiple

TRIED: WeakKeyDictionary[nn.Module, Callable[[AttentionCall], Tensor]] = WeakKeyDictionary()
"""Attention modules that are handed other outputs, to see what they make of them."""


def scoped_attention(call: AttentionCall) -> tuple[Tensor, FusedLayer | None]:
    """Attention of one layer: the output [batch, head, query, dim], and the layer for the probes."""
    module, value = call.module, call.value
    if module in TRIED:
        return TRIED[module](call), None
    if call.foreign:
        raise SinkscopeError(
            f"{type(module).__name__} changes its attention by `{call.foreign[0]}`, which sinkscope cannot follow; "
            "measure its maps elsewhere and use sinkscope.from_maps."
        )
    check_dropout(call.dropout)
    query, key = call.query.to(value.dtype), call.key.to(value.dtype)  # autocast leaves rotated ones in float32
    sight = sight_of(call, query, key)
    if module in CROSSING:  # all keys are there, wherever the queries stand
        sight = replace(sight, start=key.shape[2] - query.shape[2], key_start=0)
    evictions = EVICTIONS.get(module, ())
    if evictions:
        _check_evicts(sight, module)
    if call.softcap is not None and call.bias is not None:
        raise SinkscopeError(
            f"{type(module).__name__} gives its scores both a soft cap and a bias, and does not say which comes first; "
            "measure its maps elsewhere and use sinkscope.from_maps."
        )
    normaliser = NORMALISERS.get(module)
    if call.learned_sinks is not None and call.learned_sinks.dim() > 1 and (evictions or normaliser is not None):
        raise SinkscopeError(
            f"every token of {type(module).__name__} has a learned sink of its own, beside which no policy and no "
            "other normaliser can act; leave them out."
        )
    weighing = weighing_of(normaliser, call.learned_sinks, query.shape[1], query.device)
    spans = SPANNED.get(module)
    output, layer = observed_layer(query, key, value, sight, call.scale, call.softcap, weighing, evictions, spans)
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
    spans: Tensor | None = None,
) -> tuple[Tensor, FusedLayer]:
    """The output [batch, head, query, dim] of one layer's attention, and the layer for the probes."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    widened, dim = _beside_values(value, spans), value.shape[-1]
    attended = attend_layer(Block(query, key, widened, sight.start, scale, softcap), sight.mask, evictions, weighing)
    output, shares = attended.output[..., :dim], attended.output[..., dim:].detach()
    if evictions:
        sight = replace(sight, mask=mask_under(evictions, query, sight.start))
    filled = min(key.shape[2], sight.start + query.shape[2] - sight.key_start)
    virtual = weighing.virtual_logit
    return output, FusedLayer(
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
        output=output.detach(),
        others=key.shape[2] - filled if isinstance(sight.mask, TensorMask) else 0,
        evictions=evictions,
        shift=None if attended.shift is None else attended.shift.detach(),
        weighing=weighing,
        spans=None if spans is None or not shares.shape[-1] else shares[..., : spans.shape[-1]],
    )


def _beside_values(value: Tensor, spans: Tensor | None) -> Tensor:
    """Values [batch, kv_head, key, dim] with columns that attention sums to its share of each span.

    Only where sums keep the digits of a share, and where all keys are tokens of the texts, or room behind them.
    """
    room = None if spans is None else value.shape[2] - spans.shape[1]
    if spans is None or room is None or room < 0 or len(spans) not in (1, len(value)) or value.dtype.itemsize < 4:
        return value
    columns = F.pad(spans.to(value), (0, -(value.shape[-1] + spans.shape[-1]) % EASY, 0, room))
    return torch.cat([value, columns[:, None].expand(*value.shape[:3], -1)], -1)


def _check_evicts(sight: Sight, module: nn.Module) -> None:
    if sight.padding is not None or isinstance(sight.mask, FullMask):
        raise SinkscopeError(
            "a policy acts on texts without padding under a causal mask; give texts of one length, one by one."
        )
    if isinstance(sight.mask, IndexedMask) and sight.mask.looks_ahead:
        raise SinkscopeError(
            f"{type(module).__name__} lets some tokens see later ones, as those of an image, beside which a policy "
            "cannot act; leave the policy or the image out."
        )
    if not isinstance(sight.mask, (CausalMask, IndexedMask)):
        raise SinkscopeError(
            f"{type(module).__name__} was given a mask of another kind than its model's causal one, or makes one or a "
            "bias by itself, beside which a policy cannot act; leave the policy or the mask out."
        )


def check_dropout(dropout: float) -> None:
    """Raise SinkscopeError when attention drops out: its probabilities would be random."""
    if dropout > 0:
        raise SinkscopeError(
            f"attention dropout of {dropout} is on, so probabilities are random; call model.eval() first."
        )


register(NAME, scoped_attention, lazy_mask)
