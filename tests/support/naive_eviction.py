"""Attention under a policy by its definition, one query at a time in float64: nothing here comes from sinkscope.

For every query the keys that are kept are gathered, all of them, and the query itself, are rotated to their places in
the cache from scratch, and softmax does the rest. For families with one rotary table and the half layout.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

FAMILIES = ("llama", "qwen3", "gpt_neox", "phi")  # the last two rotate part of each head


def run(
    model: nn.Module, ids: torch.Tensor, sinks: int, window: int, positions: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits [sequence, token, vocabulary] and each layer's maps [sequence, head, query, key] under a policy."""
    model = copy.deepcopy(model).double()
    frequencies = model.base_model.rotary_emb.inv_freq.double()
    maps: list[torch.Tensor] = []

    def attention(module, query, key, value, mask, scaling=None, **_):
        output, seen = _one_by_one(query, key, value, scaling, frequencies, sinks, window, positions)
        maps.append(seen)
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("naive_eviction", attention)
    AttentionMaskInterface.register("naive_eviction", lambda *a, **k: None)
    model.set_attn_implementation("naive_eviction")
    with torch.no_grad():
        return model(ids, use_cache=False).logits, maps


def _one_by_one(query, key, value, scaling, frequencies, sinks, window, positions):
    tokens, group = query.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    places = torch.arange(tokens)
    query, key = _rotated(query, -places, frequencies), _rotated(key, -places, frequencies)
    output, maps = torch.zeros_like(query[..., : value.shape[-1]]), query.new_zeros(*query.shape[:3], tokens)
    for at in range(tokens):
        kept = [j for j in range(at + 1) if j < sinks or j >= at - window]
        where = torch.arange(len(kept)) if positions == "cache" else torch.tensor(kept)
        turned = _rotated(query[:, :, at : at + 1], where[-1:], frequencies)
        scores = turned @ _rotated(key[:, :, kept], where, frequencies).mT * scaling
        weights = scores.softmax(-1)
        maps[:, :, at, kept] = weights[:, :, 0]
        output[:, :, at] = (weights @ value[:, :, kept])[:, :, 0]
    return output, maps


def _rotated(states: torch.Tensor, by: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    width = 2 * len(frequencies)
    angles = torch.cat([torch.outer(by.double(), frequencies)] * 2, -1)
    rotary, rest = states[..., :width], states[..., width:]
    first, second = rotary.chunk(2, -1)
    return torch.cat([rotary * angles.cos() + torch.cat([-second, first], -1) * angles.sin(), rest], -1)
