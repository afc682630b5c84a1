"""A slow sink cache to compare with: one token at a time, unrotated keys, all joined and rotated anew in each step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import repeat_kv

from sinkscope.models.facts import find_anatomy
from sinkscope.models.rotary import find_rotations
from sinkscope.scope.binding import native_windows


class NaiveLayer(DynamicLayer):
    """Keys at position 0; before each use, every one is turned to its place in the cache."""

    def __init__(self, sinks, window, rotation):
        super().__init__()
        self.sinks, self.window, self.rotation, self.position = sinks, window, rotation, 0
        self.stored = None

    def _turned(self, keys, values, by):
        if self.rotation is None:
            return keys, values
        if self.rotation.slot == "keys":
            return self.rotation.turned(keys, by), values
        return keys, self.rotation.turned(values, by)

    def update(self, key_states, value_states, *args, **kwargs):
        assert key_states.shape[2] == 1
        new = self._turned(key_states, value_states, -self.position)
        self.stored = (
            new if self.stored is None else tuple(torch.cat(pair, 2) for pair in zip(self.stored, new, strict=True))
        )
        count = self.stored[0].shape[2]
        seen = self._turned(*self.stored, torch.arange(count) + self.position - count + 1)
        if count > self.sinks + self.window:
            self.stored = tuple(
                torch.cat([states[:, :, : self.sinks], states[:, :, count - self.window :]], 2)
                for states in self.stored
            )
        return seen

    def get_seq_length(self):
        return 0 if self.stored is None else self.stored[0].shape[2]

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length, 0


@torch.no_grad()
def one_token_run(model: Any, ids: torch.Tensor, sinks: int, window: int, new: int = 0):
    """Logits [batch, token, vocabulary] of every token of `ids` and of `new` greedy ones; and the ids with those."""
    base = find_anatomy(model).base
    rotations, natives = find_rotations(model), list(native_windows(model).values())
    mixed = None in natives
    layers = [
        NaiveLayer(0, native - 1, rotation) if mixed and native else NaiveLayer(sinks, window, rotation)
        for native, rotation in zip(natives, rotations, strict=True)
    ]
    for layer, native in zip(layers, natives, strict=True):
        layer.is_sliding = bool(mixed and native)
    cache = Cache(layers=layers)
    logits = []
    total = ids.shape[1] + new
    for at in range(total - (new > 0)):
        for layer in layers:
            layer.position = min(at, sinks + window)
        held = max(layer.get_seq_length() for layer in layers) + 1
        mask = torch.ones(len(ids), held, dtype=torch.long)
        if not mixed and natives[0]:
            mask = torch.zeros(1, 1, 1, held, dtype=next(model.parameters()).dtype)
        given = {"attention_mask": mask}
        if "position_ids" in inspect.signature(base.forward).parameters:
            given["position_ids"] = torch.full((len(ids), 1), min(at, sinks + window))
        logits.append(model(ids[:, at : at + 1], cache=cache, use_cache=True, **given).logits[:, -1])
        if at + 1 == ids.shape[1] and at + 1 < total:
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    return torch.stack(logits, 1), ids


@torch.no_grad()
def by_formula(model: Any, ids: torch.Tensor, sinks: int, window: int, new: int = 0):
    """The same for llama and gpt_neox, from the formula of rotary embeddings alone: no cache, nothing of sinkscope."""
    frequencies = model.base_model.rotary_emb.inv_freq.double()
    width = 2 * len(frequencies)
    stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def placed(states, positions):
        angles = torch.outer(positions.double(), frequencies).repeat(1, 2)
        part = states[..., :width]
        half = torch.cat([-part[..., width // 2 :], part[..., : width // 2]], -1)
        return torch.cat([part * angles.cos().float() + half * angles.sin().float(), states[..., width:]], -1)

    def attention(module, query, key, value, mask, scaling=None, **_):
        if module.layer_idx in stored:
            key, value = (torch.cat(pair, 2) for pair in zip(stored[module.layer_idx], (key, value), strict=True))
        count, group = key.shape[2], query.shape[1] // key.shape[1]
        at = placed(query, torch.tensor([count - 1]))
        weights = torch.softmax(at @ repeat_kv(placed(key, torch.arange(count)), group).mT * scaling, -1)
        output = weights @ repeat_kv(value, group)
        if count > sinks + window:
            key, value = (torch.cat([x[:, :, :sinks], x[:, :, count - window :]], 2) for x in (key, value))
        stored[module.layer_idx] = (key, value)
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("sink_formula", attention)
    AttentionMaskInterface.register("sink_formula", lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("sink_formula")
    logits, total = [], ids.shape[1] + new
    for at in range(total - (new > 0)):
        nowhere = torch.zeros(len(ids), 1, dtype=torch.long)
        logits.append(model(ids[:, at : at + 1], position_ids=nowhere, use_cache=False).logits[:, -1])
        if at + 1 == ids.shape[1] and at + 1 < total:
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    model.set_attn_implementation(before)
    return torch.stack(logits, 1), ids
