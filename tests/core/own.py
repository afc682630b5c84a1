"""Policies and normalisers written outside the package, and what they should give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import sinkscope

FAMILIES = ["llama", "qwen3", "gpt_neox"]


@dataclass(frozen=True)
class Stripes(sinkscope.StaticPolicy):
    """Keys of one's own parity, and the first."""

    period: int = 3

    def sees(self, query, key):
        return ((query - key) % self.period == 0) | (key == 0)


class Plain(sinkscope.StaticPolicy):
    """No dataclass: what it is made with is an attribute."""

    def __init__(self, reach):
        super().__init__()
        object.__setattr__(self, "reach", reach)

    def sees(self, query, key):
        return query - key < self.reach


class Squared(sinkscope.Normaliser):
    """Squares of the scores, over their sum."""

    def weights(self, scores):
        squares = torch.where(scores > -torch.inf, scores**2, 0.0)
        return squares / squares.sum(-1, keepdim=True).clamp(min=1e-9)


class Hard(sinkscope.Softmax1):
    """A redefinition of `weights` below a class that is carried out by another method."""

    def weights(self, scores):
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def naive_softpick(scores: torch.Tensor) -> torch.Tensor:
    """Softpick's formula as it is printed, on scores in float64, with hidden keys left out."""
    grown = torch.where(scores.isneginf(), 0.0, scores.exp() - 1)
    return grown.clamp(min=0) / (grown.abs().sum(-1, keepdim=True) + 1e-6)


def naive_squared(scores):
    return scores**2 / (scores**2).sum(-1, keepdim=True)


def naive_sparsemax(scores):
    """By bisection of the threshold, where `sparsemax` sorts."""
    low, high = scores.amax(-1, keepdim=True) - 1, scores.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        over = (scores - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (scores - high).clamp(min=0)


def losses_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )
