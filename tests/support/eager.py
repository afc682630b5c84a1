"""The reference for every probe: attention maps that the models make themselves, in float64, and plain numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

from tests.support.zoo import build


def eager_maps(name: str, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Maps [sequence, layer, head, query, key] of a family's float64 twin, by its own eager attention."""
    model = _twin(name)
    if name == "falcon_alibi":
        return falcon_alibi_maps(model, inputs["input_ids"])
    with torch.no_grad():
        attentions = model(**_double(inputs), output_attentions=True).attentions
    return np.stack([maps.numpy() for maps in attentions], 1)


def hidden_states(name: str, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Hidden states [sequence, layer, token, dim] after every layer but the last, in float64."""
    with torch.no_grad():
        states = _twin(name)(**_double(inputs), output_hidden_states=True).hidden_states
    return np.stack([state.numpy() for state in states[1:-1]], 1)


def falcon_alibi_maps(model: nn.Module, ids: torch.Tensor) -> np.ndarray:
    """Falcon's ALiBi attention from its formula: transformers 5.23's eager path adds the bias a second time."""
    projected: list[torch.Tensor] = []
    hooks = [
        layer.self_attention.query_key_value.register_forward_hook(lambda m, a, out: projected.append(out))
        for layer in model.transformer.h
    ]
    model.set_attn_implementation("sdpa")
    for config in (model.config, *(layer.self_attention.config for layer in model.transformer.h)):
        config._attn_implementation = "sdpa"
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    heads, tokens = model.config.num_attention_heads, ids.shape[1]
    width = model.config.hidden_size // heads
    slopes = np.array([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])  # Press et al. 2022
    maps = []
    for qkv in projected:
        query, key, _ = qkv.view(*ids.shape, heads, 3, width).permute(3, 0, 2, 1, 4).numpy()
        scores = query @ key.swapaxes(-1, -2) + slopes[None, :, None, None] * np.arange(tokens)
        scores = np.where(np.tri(tokens, dtype=bool), scores / np.sqrt(width), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        maps.append(weights / weights.sum(-1, keepdims=True))
    return np.stack(maps, 1)


def without_padding(inputs: dict[str, torch.Tensor], row: int, padded: int) -> dict[str, torch.Tensor]:
    """The inputs of one row of a left-padded batch alone."""
    return {"input_ids": inputs["input_ids"][row : row + 1, padded:]}


def left_padded(inputs: dict[str, torch.Tensor], padding: list[int]) -> dict[str, torch.Tensor]:
    """A batch with so many padding tokens in front of each row, and positions that begin at the first real token."""
    ids = inputs["input_ids"].clone()
    mask = torch.ones_like(ids)
    for row, length in enumerate(padding):
        ids[row, :length] = 0
        mask[row, :length] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def stack_ragged(rows: list[np.ndarray], tokens: int) -> np.ndarray:
    """Maps [1, layer, head, query, key] of different lengths as one array, NaN past the end."""
    padded = [pad(torch.from_numpy(r), (0, tokens - r.shape[-1], 0, tokens - r.shape[-2]), value=np.nan) for r in rows]
    return torch.cat(padded).numpy()


def entropy(maps: np.ndarray) -> np.ndarray:
    """Shannon entropy of every row, in nats."""
    return -np.where(maps > 0, maps * np.log(np.where(maps > 0, maps, 1.0)), 0.0).sum(-1)


def distance_profile(maps: np.ndarray) -> np.ndarray:
    """Mass by distance, summed over queries, by walking over all pairs of positions."""
    tokens = maps.shape[-1]
    profile = np.zeros((*maps.shape[:-2], tokens))
    for query in range(tokens):
        for key in range(tokens):
            profile[..., abs(query - key)] += maps[..., query, key]
    return profile


def _twin(name: str) -> nn.Module:
    model = build(name, "eager", torch.float64)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the fused experts know no float64
    return model


def _double(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
