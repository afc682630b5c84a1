"""Where in a model something acts: in all layers and heads, or in chosen ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Placed:
    """Fields that every policy and normaliser shares.

    Args:
        layers: the attention layers it acts in; all when None.
        heads: the query heads it acts in, the same in each of those layers; all when None.
    """

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Equality and repr go by all settings in every class, whether or not it is a dataclass."""
        super().__init_subclass__(**kwargs)
        for name in ("__eq__", "__hash__", "__repr__"):
            if name not in vars(cls):
                setattr(cls, name, getattr(Placed, name))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Placed):
            return False
        mine, others = self.settings, other.settings
        return mine.keys() == others.keys() and all(is_same(value, others[name]) for name, value in mine.items())

    def __hash__(self) -> int:
        return hash(type(self))  # a setting may be a list

    @property
    def settings(self) -> dict[str, Any]:
        """All that was set on it, by name: fields, and attributes of a class that is no dataclass."""
        names = dict.fromkeys([*(field.name for field in fields(self)), *vars(self)])
        derived = [name for name in names if isinstance(getattr(type(self), name, None), cached_property)]
        return {name: getattr(self, name) for name in names if name not in derived}

    @property
    def definition(self) -> str:
        """A hash of the code of a class from outside the package and of numbers in tensors; empty without any."""
        parts = [_code(cls) for cls in type(self).__mro__ if not is_ours(cls)]
        parts += [_content(value) for value in self.settings.values()]
        told = "".join(parts)
        return hashlib.sha256(told.encode()).hexdigest()[:16] if told else ""

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
        told = []
        for kind, numbers in (("layer", self.layers), ("head", self.heads)):
            if numbers is not None and len(numbers):
                told.append(f"{kind}{'s' * (len(numbers) > 1)} {_spans(numbers)}")
        return ", ".join(told)

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


def is_ours(cls: type) -> bool:
    """Whether a class is one of this package, or of Python itself."""
    return cls.__module__.partition(".")[0] in ("sinkscope", "builtins", "abc", "typing")


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal; objects that cannot be compared, such as those of tensors, are not."""
    with suppress(RuntimeError, ValueError, TypeError):  # tensors of several numbers
        return one is other or bool(one == other)
    return False


def _code(cls: type) -> str:
    """The code of a class's own methods, with the constants, defaults and closures they use."""
    told = []
    for name, member in sorted(vars(cls).items()):
        function = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if isinstance(function, FunctionType):
            used = [function.__defaults__, *(cell.cell_contents for cell in function.__closure__ or ())]
            told.append(f"{name} {_constant(function)} {''.join(map(_constant, used))}")
    return "\n".join(told)


def _constant(value: Any) -> str:
    """A value that code uses, without the places in memory that a repr may tell."""
    code = value.__code__ if isinstance(value, FunctionType) else value
    if isinstance(code, CodeType):
        return f"{code.co_code.hex()} {code.co_names} {''.join(map(_constant, code.co_consts))}"
    return _content(value) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _content(value: Any) -> str:
    """The numbers of a tensor or an array; the definition of what is one itself."""
    if isinstance(value, Placed):
        return value.definition
    if isinstance(value, (tuple, list)):
        return "".join(map(_content, value))
    if isinstance(value, (Tensor, np.ndarray)):
        held = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return f"{held.dtype} {held.shape} {hashlib.sha256(np.ascontiguousarray(held).tobytes()).hexdigest()}"
    return ""


def chosen_heads(heads: Sequence[int], count: int) -> Tensor:
    """Booleans [head], True for some of `count` heads."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[list(heads)] = True
    return chosen


def owner(cls: type, member: str) -> type:
    """The class that gives another one a member."""
    return next(each for each in cls.__mro__ if member in vars(each))


def _check(placed: Placed, kind: str, chosen: Any, known: Sequence[int] | None) -> None:
    if chosen is None:
        return
    if isinstance(chosen, (int, str)) or not hasattr(chosen, "__len__") or len(chosen) == 0:
        raise SinkscopeError(f"{placed!r} acts in no {kind}; give {kind}s=[0, 5] for example, or None for all.")
    for number in chosen:
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
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
    if not all(isinstance(number, (int, np.integer)) for number in numbers):
        return " ".join(map(str, numbers))
    spans = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda placed: placed[1] - placed[0]):
        first, *others = (number for _, number in run)
        spans.append(f"{first}-{others[-1]}" if others else f"{first}")
    return " ".join(spans)
