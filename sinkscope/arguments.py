"""Checks of arguments: what was given is returned as what is needed, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
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


def check_names(given: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raise SinkscopeError for the first name that is not known, with the one that was probably meant."""
    names = list(known)
    for name in given:
        if name not in names:
            near = get_close_matches(str(name), names, 1)
            meant = f"did you mean {near[0]!r}" if near else f"give any of {', '.join(names)}"
            raise SinkscopeError(f"{name!r} is no {what}; {meant}{'?' if near else '.'}")


def instance(given: Any, kinds: Mapping[str, Any], what: str) -> Any:
    """What a class makes that is given by its name, or by its name and arguments, such as {"SinkMass": {"first": 2}}.

    Anything but a text or a mapping is given back as it is; SinkscopeError for unknown names and arguments.
    """
    if not isinstance(given, (str, Mapping)):
        return given
    if isinstance(given, str):
        given = {given: None}
    if len(given) != 1:
        raise SinkscopeError(f"{dict(given)!r} is not one {what}; give each in an entry of its own, as {{name: ...}}.")
    ((name, options),) = given.items()
    check_names([name], kinds, what)
    if not isinstance(options, (Mapping, type(None))):
        raise SinkscopeError(f"{name} is given {options!r}; give its arguments by name, as {{{name}: {{...}}}}.")
    taken, told = signature(kinds[name]).parameters, dict(options or {})
    check_names(told, [each for each, one in taken.items() if one.kind is not one.VAR_KEYWORD], f"argument of {name}")
    missing = [each for each, one in taken.items() if one.default is one.empty and each not in told]
    if missing := [
        each for each in missing if taken[each].kind in (taken[each].POSITIONAL_OR_KEYWORD, taken[each].KEYWORD_ONLY)
    ]:
        raise SinkscopeError(f"{name} needs {' and '.join(missing)}; give it as {{{name}: {{{missing[0]}: ...}}}}.")
    try:
        return kinds[name](**told)
    except TypeError as problem:
        raise SinkscopeError(f"{name} cannot be made of {told!r} ({problem}); see its documentation.") from problem


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
