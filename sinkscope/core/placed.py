"""Where in a model something acts: in all layers and heads, or in chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError


@dataclass(frozen=True, kw_only=True, repr=False)
class Placed:
    """Fields that every policy and normaliser shares.

    Args:
        layers: the attention layers it acts in; all when None.
        heads: the query heads it acts in, the same in each of those layers; all when None.
    """

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __repr__(self) -> str:
        said = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if not field.kw_only or getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"

    @property
    def place(self) -> str:
        """Where it acts, in a few words; empty when everywhere."""
        chosen = (("layer", self.layers), ("head", self.heads))
        return ", ".join(f"{kind}{'s' * (len(numbers) > 1)} {_spans(numbers)}" for kind, numbers in chosen if numbers)

    def acts_in(self, layer: int) -> bool:
        """Whether it acts in a layer."""
        return self.layers is None or layer in self.layers

    def acting_heads(self, count: int) -> Tensor | None:
        """Booleans [head], True where it acts; None when it acts in all."""
        if self.heads is None:
            return None
        acting = torch.zeros(count, dtype=torch.bool)
        acting[list(self.heads)] = True
        return acting

    def check_place(self, layers: Sequence[int], heads: int | None) -> None:
        """Raise SinkscopeError when it names layers or heads that a model does not have.

        Args:
            layers: numbers of the model's attention layers.
            heads: how many query heads each has; None where it is not known.
        """
        _check(self, "layer", self.layers, layers)
        _check(self, "head", self.heads, None if heads is None else range(heads))


def _check(placed: Placed, kind: str, chosen: Any, known: Sequence[int] | None) -> None:
    if chosen is None:
        return
    if isinstance(chosen, (int, str)) or len(chosen) == 0:
        raise SinkscopeError(f"{placed!r} acts in no {kind}; give {kind}s=[0, 5] for example, or None for all.")
    for number in chosen:
        if number < 0 or (known is not None and number not in known):
            there = "" if known is None else f": the model has {kind}s {min(known)} to {max(known)}"
            raise SinkscopeError(f"{kind} {number!r} of {placed!r} is out of range{there}.")


def _spans(numbers: Sequence[int]) -> str:
    """Numbers with runs joined: 0-3 5 7-8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
