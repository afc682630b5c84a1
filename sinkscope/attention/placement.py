"""Where in a model something acts: in all layers and heads, or in chosen ones."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import MISSING, dataclass, fields
from functools import cached_property, wraps
from itertools import groupby
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sinkscope.arguments import MOST_PLACES, is_listed
from sinkscope.definition import definition, is_found
from sinkscope.errors import SinkscopeError, safe_repr, shown


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Placed:
    """Fields that every policy and normaliser shares.

    Args:
        layers: the attention layers it acts in; all when None.
        heads: the query heads it acts in, the same in each of those layers; all when None.
    """

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        _make_effective(cls)
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Equality and repr go by all settings in every class, whether or not it is a dataclass."""
        super().__init_subclass__(**kwargs)
        for name in ("__eq__", "__hash__", "__repr__"):
            if vars(cls).get(name) is None:  # Python takes `__hash__` from a class that gives `__eq__` alone
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
        """A hash of all that a class from outside the package, and settings that are no plain values, follow from.

        Empty where the repr tells it all, and `Unknown` where there is something that cannot be told.
        """
        return "" if _is_plain(self) else definition(self)

    def __repr__(self) -> str:
        silent = {field.name: field.default for field in fields(self) if field.kw_only}
        said = [
            f"{name}={safe_repr(value)}"
            for name, value in self.settings.items()
            if name not in silent or not is_same(value, silent[name])
        ]  # fmt: skip
        return f"{type(self).__name__}({', '.join(said)})"

    @property
    def place(self) -> str:
        """Where it acts, in a few words; empty when everywhere."""
        told = []
        for kind, numbers in (("layer", self.layers), ("head", self.heads)):
            if (
                numbers is not None and is_listed(numbers) and 0 < len(numbers) <= MOST_PLACES
            ):  # others are refused when it is used
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
    """Whether a class is one of this package, or of Python itself, and found there under its name."""
    return cls.__module__.partition(".")[0] in ("sinkscope", "builtins", "abc", "typing") and is_found(
        cls, cls.__module__
    )


def is_built_in(code: Any) -> bool:
    """Whether a class or a function was written in this package."""
    return str(getattr(code, "__module__", "")).partition(".")[0] == "sinkscope"


def passed_over(cls: type, ideas: Sequence[str], asked: Sequence[str]) -> str | None:
    """The first of some methods that a class from outside gives and nobody asks; None where there is none."""
    unasked = (name for name in ideas if name not in asked and callable(getattr(cls, name, None)))
    return next((name for name in unasked if not is_built_in(owner(cls, name))), None)


def kind_of(cls: type) -> str:
    """The name of a class, with its module where that is none of this package."""
    return cls.__name__ if is_ours(cls) else f"{cls.__module__}.{cls.__qualname__}"


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal; objects that cannot be compared, such as those of tensors, are not."""
    with suppress(RuntimeError, ValueError, TypeError):  # tensors of several numbers
        return one is other or bool(one == other)
    return False


def _is_plain(value: Any) -> bool:
    """Whether the repr of a value tells all of it."""
    if isinstance(value, Placed):
        return all(map(is_ours, type(value).__mro__)) and all(map(_is_plain, value.settings.values()))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if type(value) in (tuple, list, set, frozenset):
        return all(map(_is_plain, value))
    return type(value) in (type(None), bool, int, float, str, range) or isinstance(value, (np.integer, np.floating))


def _make_effective(cls: type[Placed]) -> None:
    """Make class attributes that stand for inherited fields the defaults of these, as their writer expects."""
    given = {}
    for field in fields(cls):
        value = inspect.getattr_static(cls, field.name, MISSING)
        taken = hasattr(Placed, field.name) and field.name not in ("layers", "heads")
        if taken or hasattr(type(value), "__set__") or (value is not field.default and hasattr(type(value), "__get__")):
            raise SinkscopeError(
                f"{cls.__name__} has a field `{field.name}` and a property or method of that name, which hide each "
                "other; call one of them otherwise, or give the field a plain value."
            )
        if value is not MISSING and value is not field.default:
            given[field.name] = value
    if not given:
        return
    init: Any = cls.__init__
    made = inspect.unwrap(init).__code__
    is_generated, signature = made.co_filename == "<string>", inspect.signature(init)
    told = signature.parameters if is_generated else (*made.co_names, *made.co_varnames)
    if passed_over := [name for name in given if name not in told]:
        raise SinkscopeError(
            f"{cls.__name__} gives `{passed_over[0]}` as a class attribute, and its `__init__` passes it over; hand "
            f"it on, as super().__init__({passed_over[0]}=self.{passed_over[0]})."
        )
    if not is_generated:
        return
    changed = {field.name: copy(field) for field in fields(cls) if field.name in given}
    for name, field in changed.items():
        field.default, field.default_factory = given[name], MISSING

    @wraps(init)
    def with_defaults(self: Placed, *args: Any, **kwargs: Any) -> None:
        init(**(given | signature.bind_partial(self, *args, **kwargs).arguments))

    cls.__init__ = with_defaults  # type: ignore[method-assign]
    cls.__dataclass_fields__ = cls.__dataclass_fields__ | changed


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
    if not is_listed(chosen) or not 0 < len(chosen) <= MOST_PLACES:
        raise SinkscopeError(f"{shown(placed)} acts in no {kind}; give {kind}s=[0, 5] for example, or None for all.")
    for number in chosen:
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
            advice = "; for other heads in other layers use sinkscope.PerHead" if isinstance(number, tuple) else ""
            raise SinkscopeError(
                f"{kind}s={shown(chosen)} holds {shown(number)}, which is no number of a {kind}; give {kind}s=[0, 5] "
                f"for example{advice}."
            )
        if number < 0 or (known is not None and number not in known):
            there = "" if known is None else f": the model has {kind}s {min(known)} to {max(known)}"
            raise SinkscopeError(f"{kind} {number!r} of {shown(placed)} is out of range{there}.")


def _spans(numbers: Sequence[int]) -> str:
    """Numbers with runs joined: 0-3 5 7-8; what is no number as it is."""
    if not all(isinstance(number, (int, np.integer)) for number in numbers):
        return " ".join(map(str, numbers))
    spans = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda placed: placed[1] - placed[0]):
        first, *others = (number for _, number in run)
        spans.append(f"{first}-{others[-1]}" if others else f"{first}")
    return " ".join(spans)
