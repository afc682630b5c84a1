"""Attention with its slots filled, by definition: one query at a time in float64, none of it from sinkscope."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sinkscope import ALL, attached
from tests.support.naive_eviction import _rotated


def softmax(scores: Tensor) -> Tensor:
    """Weights of scores [..., key], all of which are seen."""
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def softmax1(scores: Tensor) -> Tensor:
    return scores.exp() / (1 + scores.exp().sum(-1, keepdim=True))


def learned_sink(logit: Tensor) -> Callable[[Tensor], Tensor]:
    """Of logits [head], for scores [batch, head, 1, key]."""
    extra = logit.double().exp()[:, None, None]
    return lambda scores: scores.exp() / (extra + scores.exp().sum(-1, keepdim=True))


def clipped(gamma: float, zeta: float) -> Callable[[Tensor], Tensor]:
    return lambda scores: ((zeta - gamma) * softmax(scores) + gamma).clip(0, 1)


def sigmoid(bias: float | None) -> Callable[[Tensor], Tensor]:
    return lambda scores: 1 / (1 + (-(scores + (-math.log(scores.shape[-1]) if bias is None else bias))).exp())


def relu(scores: Tensor) -> Tensor:
    return scores.relu() / scores.shape[-1]


def run(
    model: nn.Module,
    ids: Tensor,
    *,
    weights: Callable[[Tensor], Tensor] = softmax,
    kept: Callable[[int], list[int]] = lambda at: list(range(at + 1)),
    in_cache: bool = False,
    anchors: Collection[int] = (),
    since: int = 0,
    bias: float = 0.0,
    values: str = "kept",
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Logits and each layer's maps [sequence, head, query, key].

    Args:
        weights: of the scores of the keys a query sees.
        kept: which keys those are, under the policy, for the query at a place.
        in_cache: whether positions are counted among them.
        anchors: keys whose logits get a bias and whose values become something else, for queries from `since` on.
        layers, heads: where all that holds; elsewhere attention is plain.
    """
    model = copy.deepcopy(model).double()
    frequencies = model.base_model.rotary_emb.inv_freq.double()
    maps: list[Tensor] = []

    def one(query, key, value, scaling, at, acts):
        own, seen = query[:, :, at : at + 1], kept(at) if acts else list(range(at + 1))
        where = torch.arange(len(seen)) if acts and in_cache else torch.tensor(seen)
        moved = _rotated(own, where[-1:] - at, frequencies) if acts and in_cache else own
        scores = moved @ _rotated(key[:, :, seen], where - torch.tensor(seen), frequencies).mT * scaling
        special = torch.tensor([acts and at >= since and place in anchors for place in seen])
        scores = scores + torch.where(special, bias, 0.0)
        given = (weights if acts else softmax)(scores)
        states = value[:, :, seen].clone()
        if special.any() and values == "zeroed":
            states[:, :, special] = 0
        if special.any() and values == "mean":
            states[:, :, special] = states[:, :, ~special].mean(2, keepdim=True)
        others = [place for place, is_special in zip(seen, special.tolist(), strict=True) if not is_special]
        if special.any() and values in ("drawn", "turned"):
            # the draw is a convention: a hash of the query's place, counted back from it or up among the others
            hashed = (at * 2654435761 % 2**32) // 2**8 % len(others)
            drawn = value[:, :, others[::-1][hashed] if in_cache else others[hashed]][:, :, None]
            own = states[:, :, special].norm(dim=-1, keepdim=True)
            states[:, :, special] = drawn if values == "drawn" else own * drawn / drawn.norm(dim=-1, keepdim=True)
        if special.any() and values == "long":
            typical = value[:, :, others].norm(dim=-1, keepdim=True).mean(2, keepdim=True)
            own = states[:, :, special]
            states[:, :, special] = typical * own / own.norm(dim=-1, keepdim=True)
        if special.any() and values == "added":
            given = torch.where(special, given, 0.0)
            given[..., ~special] = (weights if acts else softmax)(scores[..., ~special])
        full = torch.zeros(*scores.shape[:2], query.shape[2], dtype=torch.float64)
        full[:, :, seen] = given[:, :, 0]
        return (given @ states)[:, :, 0], full

    def attention(module, query, key, value, mask, scaling=None, **_):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        here = layers is None or module.layer_idx in layers
        rows = []
        for at in range(query.shape[2]):
            output, row = one(query, key, value, scaling, at, here)
            if here and heads is not None:
                plain_output, plain_row = one(query, key, value, scaling, at, False)
                acting = torch.tensor([head in heads for head in range(query.shape[1])])[None, :, None]
                output, row = torch.where(acting, output, plain_output), torch.where(acting, row, plain_row)
            rows.append((output, row))
        maps.append(torch.stack([row for _, row in rows], 2))
        return torch.stack([output for output, _ in rows], 1).contiguous(), None

    AttentionInterface.register("naive_slots", attention)
    AttentionMaskInterface.register("naive_slots", lambda *a, **k: None)
    model.set_attn_implementation("naive_slots")
    with torch.no_grad():
        return model(ids, use_cache=False).logits, maps


def check(model: nn.Module, ids: Tensor, expected: tuple[Tensor, list[Tensor]], **slots: Any) -> xr.Dataset:
    """The record of a model with its slots filled, its logits and all that probes read held against the expected."""
    with torch.no_grad(), attached(model, **slots, probes=ALL) as scope:
        logits = model(ids).logits
    torch.testing.assert_close(logits.double(), expected[0], atol=5e-5, rtol=1e-4)
    record, maps = scope.record, torch.stack(expected[1], 1).numpy()
    brute = {
        "sink_mass": maps[..., :4],
        "received": maps.sum(-2),
        "entropy": -(maps * np.log(np.where(maps > 0, maps, 1))).sum(-1),
    }
    if maps.shape[-1] <= record.sizes["map_key"]:  # not pooled
        brute["attention_map"] = maps
    for variable, values in brute.items():
        np.testing.assert_allclose(record[variable].values, values, atol=1e-4, err_msg=variable)
    return record


def loss(model: nn.Module, ids: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean loss [] of a float64 model in float64, with gradients, through full maps."""

    def attention(module, query, key, value, mask, scaling=None, **_):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.mT * scaling
        rows = [weights(scores[:, :, at : at + 1, : at + 1]) @ value[:, :, : at + 1] for at in range(query.shape[2])]
        return torch.cat(rows, 2).transpose(1, 2).contiguous(), None

    AttentionInterface.register("naive_loss", attention)
    AttentionMaskInterface.register("naive_loss", lambda *a, **k: None)
    model.set_attn_implementation("naive_loss")
    logits = model(ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
