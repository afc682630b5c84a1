"""Independent references for what heads are for: eager maps, values, W_O and gates in float64, read by plain hooks."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.hf.tiny import eager_twin, tiny_model
from tests.support.zoo import DECODERS, build


class Heads(NamedTuple):
    """What the heads of a model did, float64; lists over its attention layers."""

    maps: list[np.ndarray]  # [sequence, head, query, key]
    values: list[np.ndarray]  # [sequence, head, key, dim], each query head its own
    weights: list[np.ndarray]  # [head, width, dim] W_O
    mixed: list[np.ndarray]  # [sequence, head, query, dim] what W_O reads
    hidden: list[np.ndarray]  # [sequence, token, width] behind each layer
    embedded: np.ndarray  # [sequence, token, width] before the first


def tiny(name: str) -> nn.Module:
    return build(name) if name in DECODERS else tiny_model(name).eval()


def heads_of(model: nn.Module, ids: Tensor, wo: str = "o_proj", v: str = "v_proj") -> Heads:
    """Of a model whose projections have these names."""
    twin = eager_twin(copy.deepcopy(model)).double()
    if hasattr(twin, "set_experts_implementation"):
        twin.set_experts_implementation("eager")
    maps, values, weights, mixed, hidden, embedded = [], [], [], [], [], []

    def attention(module, args, output):
        maps.append(output[1].numpy())

    def value(module, args, output):
        values.append(output)

    def leave(module, args):
        weights.append(module.weight)
        mixed.append(args[0])

    def layer(module, args, output):
        hidden.append((output[0] if isinstance(output, tuple) else output).numpy())

    for module in twin.modules():
        if hasattr(module, wo) and hasattr(module, v):
            module.register_forward_hook(attention)
            getattr(module, v).register_forward_hook(value)
            getattr(module, wo).register_forward_pre_hook(leave)
    for module in twin.model.layers:
        module.register_forward_hook(layer)
    twin.model.layers[0].register_forward_pre_hook(lambda module, args: embedded.append(args[0].numpy()))
    with torch.no_grad():
        twin(ids, output_attentions=True, use_cache=False)
    found = Heads(maps, [], [], [], hidden, embedded[0])
    for each, states, weight, read in zip(maps, values, weights, mixed, strict=True):
        heads, dim = each.shape[1], weight.shape[1] // each.shape[1]
        own = states.unflatten(-1, (-1, dim)).transpose(1, 2)
        found.values.append(own.repeat_interleave(heads // own.shape[1], 1).numpy())
        found.weights.append(weight.detach().unflatten(1, (heads, dim)).transpose(0, 1).numpy())
        found.mixed.append(read.unflatten(-1, (heads, dim)).transpose(1, 2).numpy())
    return found


def purpose(maps: np.ndarray, values: np.ndarray, weights: np.ndarray, mass: float = 0.5) -> dict[str, np.ndarray]:
    """The measurements of Fesser et al. of one layer, word by word: [sequence, head] each."""
    handed = np.einsum("shkd,hwd->shkw", values, weights)
    out: dict[str, list[float]] = {name: [] for name in ("key", "mean", "share", "ratio", "rank")}
    for sequence in range(len(maps)):
        for head in range(maps.shape[1]):
            attention, u = maps[sequence, head], handed[sequence, head]
            key = int(attention.mean(0).argmax())
            norms = np.linalg.norm(u, axis=-1)
            singular = np.linalg.svd(attention @ u, compute_uv=False)
            out["key"].append(key)
            out["mean"].append(attention[:, key].mean())
            out["share"].append((attention[:, key] >= mass).mean())
            out["ratio"].append(norms[key] / np.delete(norms, key).mean())
            out["rank"].append((singular**2).sum() / singular[0] ** 2)
    return {name: np.reshape(each, maps.shape[:2]) for name, each in out.items()}


def reach(maps: np.ndarray, values: np.ndarray, sinks: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Attention inside, and the error of a head that streams, of one layer: [sequence, head] each. Where rows sum to
    less than one, the rest is on a learned sink, which stays in the denominator."""
    tokens = maps.shape[-1]
    inside = np.zeros((tokens, tokens), dtype=bool)
    for query in range(tokens):
        for key in range(query + 1):
            inside[query, key] = key < sinks or query - window < key
    kept = maps * inside
    rest = 1 - maps.sum(-1, keepdims=True)
    streamed = kept / (kept.sum(-1, keepdims=True) + rest)
    lost = np.linalg.norm((maps - streamed) @ values, axis=(-2, -1))
    return kept.sum(-1).mean(-1), lost / np.linalg.norm(maps @ values, axis=(-2, -1))
