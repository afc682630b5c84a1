"""Attention for training a Llama-style model with any normaliser: its definition, T x T weights and all.

The same as `attached(model, normaliser=...)`, which keeps no T x T weights and so computes them twice in training: for
short passages this is three times quicker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM

from sinkscope.core.normalisers import Normaliser, Softmax

NAME = "sinkscope_lab"
NORMALISERS: WeakKeyDictionary[nn.Module, Normaliser] = WeakKeyDictionary()


@contextmanager
def training_attention(model: LlamaForCausalLM, normaliser: Normaliser) -> Iterator[None]:
    """Within it the model's attention has this normaliser; softmax is its own, and quicker left alone."""
    if normaliser == Softmax():
        yield
        return
    modules, before = [layer.self_attn for layer in model.model.layers], model.config._attn_implementation
    for module in modules:
        NORMALISERS[module] = normaliser
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for module in modules:
            NORMALISERS.pop(module, None)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention, as transformers' attention interface wants it: [batch, query, head, dim]."""
    scores = query @ key.mT * scaling
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = NORMALISERS[module].weights(scores.masked_fill(later, -torch.inf))
    return (weights @ value).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The attention function knows what is later by itself."""


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)
