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

    @property
    def settings(self) -> dict[str, Any]:
        """All that was set on it, by name: fields, and attributes of a class that is no dataclass."""
        names = dict.fromkeys([*(field.name for field in fields(self)), *vars(self)])
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        silent = {field.name: field.default for field in fields(self) if field.kw_only}
        said = [
            f"{name}={value!r}"
            for name, value in self.settings.items()
            if name not in silent or value != silent[name]
        ]  # fmt: skip
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
        return None if self.heads is None else chosen_heads(self.heads, count)

    def check_place(self, layers: Sequence[int], heads: int | None, kv_heads: int | None = None) -> None:
        """Raise SinkscopeError when it names layers or heads that a model does not have.

        Args:
            layers: numbers of the model's attention layers.
            heads, kv_heads: how many query heads, and heads of keys and values, each has; None where it is not known.
        """
        _check(self, "layer", self.layers, layers)
        _check(self, "head", self.heads, None if heads is None else range(heads))


def chosen_heads(heads: Sequence[int], count: int) -> Tensor:
    """Booleans [head], True for some of `count` heads."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[list(heads)] = True
    return chosen


def overrides(cls: type, method: str, others: Sequence[str]) -> bool:
    """Whether a class, or one it descends from, redefines a method below the class that defines any of the others.

    What is built on `others` would then pass over the redefinition.
    """
    for each in cls.__mro__:
        if method in vars(each):
            return not any(other in vars(each) for other in others)
        if any(other in vars(each) for other in others):
            return False
    return False


def _check(placed: Placed, kind: str, chosen: Any, known: Sequence[int] | None) -> None:
    if chosen is None:
        return
    if isinstance(chosen, (int, str)) or not hasattr(chosen, "__len__") or len(chosen) == 0:
        raise SinkscopeError(f"{placed!r} acts in no {kind}; give {kind}s=[0, 5] for example, or None for all.")
    for number in chosen:
        if not isinstance(number, int) or isinstance(number, bool):
            advice = "; for other heads in other layers use sinkscope.PerHead" if isinstance(number, tuple) else ""
            raise SinkscopeError(
                f"{kind}s={chosen!r} holds {number!r}, which is no number of a {kind}; give {kind}s=[0, 5] for "
                f"example{advice}."
            )
        if number < 0 or (known is not None and number not in known):
            there = "" if known is None else f": the model has {kind}s {min(known)} to {max(known)}"
            raise SinkscopeError(f"{kind} {number!r} of {placed!r} is out of range{there}.")


def _spans(numbers: Sequence[int]) -> str:
    """Numbers with runs joined: 0-3 5 7-8; what is no number as it is."""
    if not all(isinstance(number, int) for number in numbers):
        return " ".join(map(str, numbers))
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
