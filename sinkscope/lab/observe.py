"""What is recorded of a model on its way: losses, attention on BOS, and the norms that go with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sinkscope.lab.backcopy import Backcopy
from sinkscope.lab.decoder import Decoder, Trace

TOKENS = ("all", "trigger", "non-trigger")
"""Queries apart: every character, triggers, all others. BOS, which sees itself alone, is none of them."""


@torch.no_grad()
def observed(model: Decoder, task: Backcopy, ids: Tensor) -> dict[str, Tensor]:
    """Measure a model on sequences [sequence, 1 + token]; means over sequences and over the queries of each kind.

    Returns:
        loss [tokens]: nats.
        bos_mass, previous_mass [layer, head, tokens]: attention on BOS, and on the token before the query's.
        row_sum [layer, head, tokens]: on BOS and all characters together, a learned sink token left out.
        bos_value_norm, value_norm [layer, head]: of BOS, and mean over the characters.
        bos_hidden_norm, hidden_norm [layer]: the same of the hidden states behind each layer.
    """
    seen, target = ids[:, :-1], ids[:, 1:]
    logits, traces = model(seen)
    losses = functional.cross_entropy(logits.mT, target, reduction="none")
    kinds = kinds_of(task, seen)
    found = {"loss": _means(losses, kinds)}
    own = [_without_sink_token(trace, seen.shape[1]) for trace in traces]
    for name, mass in (("bos_mass", _on_bos), ("previous_mass", _on_previous), ("row_sum", _on_all)):
        found[name] = torch.stack([_means(mass(trace.weights), kinds) for trace in own])
    values = torch.stack([trace.values.norm(dim=-1).mean(0) for trace in own])  # [layer, head, token]
    hidden = torch.stack([trace.hidden.norm(dim=-1).mean(0) for trace in own])  # [layer, token]
    found |= {"bos_value_norm": values[..., 0], "value_norm": values[..., 1:].mean(-1)}
    return found | {"bos_hidden_norm": hidden[..., 0], "hidden_norm": hidden[..., 1:].mean(-1)}


def kinds_of(task: Backcopy, seen: Tensor) -> Tensor:
    """Which queries [sequence, token] are of each kind: booleans [tokens, sequence, token]."""
    character, trigger = seen != task.bos, task.is_trigger(seen)
    return torch.stack([character, trigger, character & ~trigger])


def uniform_bos_mass(task: Backcopy, ids: Tensor, sink_tokens: int) -> Tensor:
    """Attention on BOS [tokens] of a head that looks at every key alike, over the same queries."""
    seen = ids[:, :-1]
    share = 1.0 / (torch.arange(seen.shape[1], dtype=torch.float64) + 1 + sink_tokens)
    return _means(share.expand(seen.shape), kinds_of(task, seen))


def _without_sink_token(trace: Trace, tokens: int) -> Trace:
    """The layer as the characters and BOS are in it."""
    weights, values, hidden = trace
    return Trace(weights[:, :, -tokens:, -tokens:], values[:, :, -tokens:], hidden[:, -tokens:])


def _on_bos(weights: Tensor) -> Tensor:
    return weights[..., 0]


def _on_previous(weights: Tensor) -> Tensor:
    return functional.pad(weights.diagonal(-1, dim1=-2, dim2=-1), (1, 0))


def _on_all(weights: Tensor) -> Tensor:
    return weights.sum(-1)


def _means(values: Tensor, kinds: Tensor) -> Tensor:
    """[sequence, ..., token] over the queries of each kind: [..., tokens]; NaN for a kind that there is none of."""
    total = torch.einsum("s...t,kst->...k", values.double(), kinds.double())
    return total / kinds.sum((1, 2))
