"""Interventions by their definition, in float64, by the models' own eager attention: nothing here is sinkscope's."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.zoo import build, inputs

LENGTHS = (60, 53)
START = 40
LINE_BREAK = 7


class Tokenizer:
    """Every eleventh token is a delimiter, one of them with a space in front; token 7 is the line break."""

    def decode(self, ids):
        return "".join(map(self._word, ids))

    def _word(self, token):
        if token % 11 == 0:
            return " ," if token % 2 else "."
        return "\n" if token == LINE_BREAK else f" word{token}"

    def encode(self, text, add_special_tokens=False):
        assert text == "\n"
        return [LINE_BREAK]


class Twin(NamedTuple):
    """What a float64 twin makes of one text: losses [token - 1], maps and norms of head outputs."""

    losses: np.ndarray
    maps: np.ndarray  # [layer, head, query, key]
    norms: np.ndarray | None  # [layer, head, query]


def texts() -> list[Tensor]:
    """Two texts of different lengths."""
    rows = inputs("llama", batch=2, tokens=max(LENGTHS))["input_ids"]
    return [row[:length] for row, length in zip(rows, LENGTHS, strict=True)]


def dense(name: str, ids: Tensor) -> Twin:
    return biased(name, ids, torch.zeros(len(ids), len(ids)))


def without(name: str, ids: Tensor, keys: Collection[int], start: int = START, **where: Collection[int]) -> Twin:
    """The keys gone for all queries from `start` on."""
    return biased(name, ids, on_keys(len(ids), keys, -torch.inf, start), **where)


def mean(twins: Iterable[Twin]) -> Twin:
    """What several draws give together."""
    parts = zip(*twins, strict=True)
    return Twin(*(None if each[0] is None else np.mean(each, 0) for each in parts))


def on_keys(length: int, keys: Collection[int], bias: float, start: int = START) -> Tensor:
    """What is added to the scores [query, key]."""
    added = torch.zeros(length, length)
    added[start:, list(keys)] = bias
    return added


def without_recent(length: int, count: int, start: int = START, behind: int = 0) -> Tensor:
    added = torch.zeros(length, length)
    for query in range(start, length):
        added[query, query - behind - count : query - behind] = -torch.inf
    return added


def biased(
    name: str,
    ids: Tensor,
    added: Tensor,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
) -> Twin:
    """A family with something added to its attention scores; layers with a native window stay as they are."""
    model = build(name, "eager", torch.float64)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the fused experts know no float64
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * model.config.num_hidden_layers
    attentions = [module for path, module in model.named_modules() if path.endswith((".self_attn", ".attn"))]
    everywhere = added.double()[None, None].expand(1, model.config.num_attention_heads, -1, -1).clone()
    if heads is not None:
        everywhere[:, [head for head in range(everywhere.shape[1]) if head not in heads]] = 0
    outputs: list[Tensor] = []

    def bias(module, args, kwargs):
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] + everywhere}

    for number, (module, kind) in enumerate(zip(attentions, kinds, strict=True)):
        if kind == "full_attention" and (layers is None or number in layers):
            module.register_forward_pre_hook(bias, with_kwargs=True)
        if hasattr(module, "o_proj"):
            module.o_proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    with torch.no_grad():
        out = model(input_ids=ids[None], use_cache=False, output_attentions=True)
    maps = torch.cat(out.attentions)
    norms = [output.view(len(ids), maps.shape[1], -1).norm(dim=-1).T for output in outputs]
    return Twin(losses(out.logits[0], ids), maps.numpy(), torch.stack(norms).numpy() if norms else None)


def plain(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits [token, vocabulary] of a model as it is."""
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0]


def losses(logits: Tensor, ids: Tensor) -> np.ndarray:
    """The loss of every token but the first: [token - 1]."""
    scores = logits[:-1].double()
    picked = scores.gather(-1, ids[1:, None])[:, 0]
    return (scores.exp().sum(-1).log() - picked).numpy()


def check(record, name: str, number: int, twin: Twin, first: int) -> None:
    """The record of one intervention and text equals its float64 twin over the same tokens."""
    found = record.sel(policy=name).isel(sequence=number)
    length = len(twin.losses) + 1
    np.testing.assert_allclose(found.nll[START + 1 : length], twin.losses[START:], atol=3e-4, rtol=1e-4)
    assert np.isnan(found.nll[: START + 1]).all() and np.isnan(found.nll[length:]).all()
    mass = twin.maps[..., START:, :first].sum(-1).mean(-1)
    np.testing.assert_allclose(found.sink_mass, mass, atol=2e-5)
    if twin.norms is not None:
        np.testing.assert_allclose(found.output_norm, twin.norms[..., START:].mean(-1), rtol=2e-4)
