"""Policies and normalisers as a user writes them: classes outside the package that nothing knows of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sinkscope import SinkWindow
from sinkscope.normalisers import Normaliser, Pointwise
from sinkscope.policies import StaticPolicy


@dataclass(frozen=True, repr=False)
class TwoSinks(SinkWindow):
    """Two sinks, whatever the window."""

    sinks: int = 2
    window: int = 20

    @property
    def description(self) -> str:
        return f"two sinks and {self.window}"


@dataclass(frozen=True, repr=False)
class OddKeys(StaticPolicy):
    """Itself, and odd keys once they are three tokens away."""

    distance: int = 3

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query - key < self.distance) | (key % 2 == 1)

    @property
    def description(self) -> str:
        return f"odd keys beyond {self.distance}"


@dataclass(frozen=True, repr=False)
class Squares(Pointwise):
    """The square of each softmax weight."""

    power: float = 2.0

    def weigh(self, scores: torch.Tensor, lse: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return (scores - lse).exp() ** self.power


class Plain(Normaliser):
    """A class without fields of its own; half of each softmax weight."""

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(-1) / 2
