"""Seeing the scores of a model that does not use transformers' attention interface.

Families such as GPT-J, CodeGen, MPT, BLOOM, GPT-Neo and Falcon, and modelling code of one's own, call torch's softmax
or its scaled dot product attention inside their attention modules. While such a module runs, a `TorchFunctionMode` of
this thread looks at that one call. Nothing is patched, and the mode ends with the module's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sinkscope.core.interface import Sight, check_dropout, observed_layer
from sinkscope.core.layer import FusedLayer, Layer, ScoredLayer
from sinkscope.core.masks import CausalMask, FullMask, Mask, TensorMask
from sinkscope.hf.caches import cache_among, held_states

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class AttentionWatch(TorchFunctionMode):
    """Sees one attention module compute: its score matrix, or its call of the fused attention.

    Attributes:
        layer: what was seen, once the module has run; None when it called neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer: Layer | None = None

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

    def with_states(self, states: dict[str, Tensor]) -> Layer:
        """The layer, with keys and values from a cache where attention itself did not show them."""
        assert self.layer is not None
        missing = states and self.layer.key is None
        return replace(self.layer, key=states["key"], value=states["value"]) if missing else self.layer


def cached_states(index: int, arguments: Iterable[Any]) -> dict[str, Tensor]:
    """Keys and values [batch, kv_head, key, dim] of a layer from the cache among its arguments, if there is one."""
    cache = cache_among(arguments)
    states = {} if cache is None else held_states(cache, index)
    return {"key": states["keys"].detach(), "value": states["values"].detach()} if len(states) == 2 else {}


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
