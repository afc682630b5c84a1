"""Checks of arguments: what was given is returned as what is needed, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sinkscope.errors import SinkscopeError


def whole_number(value: Any, name: str, least: int) -> int:
    """`value` as an int of at least `least`, or SinkscopeError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise SinkscopeError(f"{name}={value!r} is not a whole number of {least} or more: give one.")
    return int(value)


def open_unit(value: Any, name: str) -> float:
    """`value` as a float above 0 and below 1, or SinkscopeError."""
    number = _number(value)
    if not 0.0 < number < 1.0:
        raise SinkscopeError(f"{name}={value!r} is not a number above 0 and below 1: give one, such as {name}=0.3.")
    return number


def finite_number(value: Any, name: str, above: float, inclusive: bool = False) -> float:
    """`value` as a finite float above (or at) a bound, or SinkscopeError."""
    number = _number(value)
    if not (np.isfinite(number) and (number >= above if inclusive else number > above)):
        bound = f"of {above:g} or more" if inclusive else f"above {above:g}"
        raise SinkscopeError(f"{name}={value!r} is not a finite number {bound}: give one.")
    return number


def one_of(value: Any, name: str, known: Sequence[str]) -> str:
    """`value`, which is one of the known words, or SinkscopeError."""
    if not isinstance(value, str) or value not in known:
        raise SinkscopeError(f"{name}={value!r} is unknown; give one of {', '.join(known)}.")
    return value


def one_or_several(given: Any, name: str, check: Callable[[Any], Any]) -> list[Any]:
    """One value or several as a list of what `check` makes of each, those given twice once; none is refused."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    checked = list(dict.fromkeys(check(each) for each in (given if several else [given])))
    if not checked:
        raise SinkscopeError(f"{name}={given!r} is empty; give at least one.")
    return checked


def are_places(numbers: Any) -> bool:
    """Whether these are layers, heads or places in a text: whole numbers from 0 on, at least one and each once."""
    whole = not isinstance(numbers, (int, str)) and all(isinstance(each, int) and each >= 0 for each in numbers)
    return whole and 0 < len(numbers) == len(set(numbers))


def check_places(numbers: Any, name: str) -> None:
    """Raise SinkscopeError for what is not a list of layers, heads or places in a text; None stands for all."""
    if numbers is not None and not are_places(numbers):
        raise SinkscopeError(f"{name}={numbers!r} says not which; give different whole numbers, such as {name}=[0, 5].")


def _number(value: Any) -> float:
    """NaN for what is no number."""
    try:
        return float("nan") if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        return float("nan")
