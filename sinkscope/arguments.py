"""Checks of arguments: what was given is returned as what is needed, or refused in one sentence."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date
from difflib import get_close_matches
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import numpy as np

from sinkscope.errors import SinkscopeError, shown

LARGEST = 2**63 - 1  # that torch, numpy and files hold as a whole number
MOST = 100_000  # things in a list of arguments
MOST_PLACES = 10_000_000  # layers, heads or places in a text
MOST_RESAMPLES = 100_000  # of a bootstrap, which holds a number for each

P = ParamSpec("P")
R = TypeVar("R")


def checks_types(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which refuses arguments that are not of the types that its signature names.

    Numbers, texts, paths, tensors, records and tables are checked, alone or one or the other (`int | None`). What
    else a signature names is for the function itself to look at.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_types(signature, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return call


def check_types(signature: inspect.Signature, arguments: Mapping[str, Any]) -> None:
    """Raise SinkscopeError for the first argument that is not of a type that a signature names."""
    for name, value in arguments.items():
        parameter = signature.parameters[name]
        named = str(parameter.annotation).split(" | ")
        if parameter.kind is parameter.VAR_KEYWORD and name == "attributes":
            _check_notes(value, signature)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not set(named) <= _TYPES.keys():
            continue
        if not any(_TYPES[each][1](value) for each in named):
            words = list(dict.fromkeys(_TYPES[each][0] for each in named))
            raise SinkscopeError(f"{name}={shown(value)} is not {' or '.join(words)}: give one.")
        if "os.PathLike[str]" in named and value is not None and not is_a_name(os.fspath(value)):
            raise SinkscopeError(f"{name}={shown(value)} names no file: it holds a NUL, or what is no character.")


def _check_notes(notes: Mapping[str, Any], signature: inspect.Signature) -> None:
    """Raise SinkscopeError for a note of a record that was meant for an argument: one that acts would not act there."""
    for name, value in notes.items():
        if meant := get_close_matches(name, signature.parameters, 1, 0.85):
            raise SinkscopeError(
                f"{name}={shown(value)} would be a note of the record alone: did you mean {meant[0]}=?"
            )
        if not _is_note(value):
            raise SinkscopeError(
                f"{name}={shown(value)} is none of the arguments, and no note of the record either, which is of words "
                "and numbers; leave it out."
            )


def _is_note(value: Any) -> bool:
    """Whether a value is made of words and numbers."""
    if isinstance(value, Mapping):
        return all(map(_is_note, [*value, *value.values()]))
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) <= MOST and all(map(_is_note, value))
    plain = (str, bytes, bool, int, float, complex, type(None), np.generic, np.ndarray, os.PathLike, date)
    return isinstance(value, plain)


def check_fields(given: Any) -> None:
    """Raise SinkscopeError for the first field of a dataclass that is not of the type it names."""
    kind: Any = type(given)
    check_types(_signature(kind), {each.name: getattr(given, each.name) for each in fields(given)})


_signature = functools.cache(inspect.signature)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or numpy, that a file can hold."""
    is_one = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return is_one and bool(-LARGEST <= value <= LARGEST)


def is_listed(value: Any) -> bool:
    """Whether a value has entries that can be counted, and is no text."""
    return isinstance(value, Collection) and not isinstance(value, (str, bytes)) and bool(getattr(value, "ndim", 1))


def is_path(value: Any) -> bool:
    """Whether a value is a path-like object, of text."""
    return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)


def is_a_name(path: str) -> bool:
    """Whether a file system can look for it."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def in_characters(name: str) -> str:
    """A name as tables and files can hold it: with "?" for a byte of a file's name that is no character."""
    return name.encode("utf-8", "replace").decode("utf-8")


def is_a(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of a library that may not be imported, which nothing is of then."""
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "None": ("None", lambda value: value is None),
    "bool": (
        "True or False",
        lambda value: isinstance(value, (bool, np.bool_)) or (is_whole(value) and value in (0, 1)),
    ),
    "int": ("a whole number", is_whole),
    "float": ("a number", lambda value: is_whole(value) or isinstance(value, (float, np.floating))),
    "str": ("a text", lambda value: isinstance(value, str)),
    "os.PathLike[str]": ("a path", is_path),
    "Tensor": ("a tensor", lambda value: is_a(value, "torch", "Tensor")),
    "torch.Tensor": ("a tensor", lambda value: is_a(value, "torch", "Tensor")),
    "xr.Dataset": ("a record", lambda value: is_a(value, "xarray", "Dataset")),
    "xr.DataArray": ("an array of a record", lambda value: is_a(value, "xarray", "DataArray")),
    "pd.DataFrame": ("a table", lambda value: is_a(value, "pandas", "DataFrame")),
}
"""What a type is called, and whether a value is of it, by how annotations write it."""


def whole_number(value: Any, name: str, least: int, most: int = LARGEST) -> int:
    """`value` as an int of at least `least` and at most `most`, or SinkscopeError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise SinkscopeError(f"{name}={shown(value)} is not a whole number of {least} or more: give one.")
    if value > most:
        raise SinkscopeError(f"{name}={shown(value)} is more than {most:,}: give less.")
    return int(value)


def open_unit(value: Any, name: str) -> float:
    """`value` as a float above 0 and below 1, or SinkscopeError."""
    number = real_number(value)
    if not 0.0 < number < 1.0:
        raise SinkscopeError(
            f"{name}={shown(value)} is not a number above 0 and below 1: give one, such as {name}=0.3."
        )
    return number


def finite_number(value: Any, name: str, above: float, inclusive: bool = False) -> float:
    """`value` as a finite float above (or at) a bound, or SinkscopeError."""
    number = real_number(value)
    if not (np.isfinite(number) and (number >= above if inclusive else number > above)):
        bound = f"of {above:g} or more" if inclusive else f"above {above:g}"
        raise SinkscopeError(f"{name}={shown(value)} is not a finite number {bound}: give one.")
    return number


def one_of(value: Any, name: str, known: Sequence[str]) -> str:
    """`value`, which is one of the known words, or SinkscopeError."""
    if not isinstance(value, str) or value not in known:
        raise SinkscopeError(f"{name}={shown(value)} is unknown; give one of {', '.join(known)}.")
    return value


def one_or_several(given: Any, name: str, check: Callable[[Any], Any]) -> list[Any]:
    """One value or several as a list of what `check` makes of each, those given twice once; none is refused."""
    checked = list(dict.fromkeys(check(each) for each in several(given, name)))
    if not checked:
        raise SinkscopeError(f"{name}={shown(given)} is empty; give at least one.")
    return checked


def several(given: Any, name: str) -> list[Any]:
    """One thing or several as a list; SinkscopeError for more than anybody has."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) or not getattr(given, "ndim", 1):
        return [given]
    found = list(islice(given, MOST + 1))
    if len(found) > MOST:
        raise SinkscopeError(f"{name}={shown(given)} has more than {MOST:,} entries: give fewer.")
    return found


def check_names(given: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raise SinkscopeError for the first name that is not known, with the one that was probably meant."""
    names = list(known)
    for name in given:
        if name not in names:
            near = get_close_matches(str(name), names, 1)
            meant = f"did you mean {near[0]!r}" if near else f"give any of {', '.join(names)}"
            raise SinkscopeError(f"{shown(name)} is no {what}; {meant}{'?' if near else '.'}")


def each_once(given: Any, known: Iterable[str], name: str) -> list[str]:
    """One name or several of those that are known; SinkscopeError for none, for others and for one given twice."""
    found, names = several(given, name), list(known)
    check_names(found, names, f"entry of {name}")
    if not found or len(set(found)) < len(found):
        raise SinkscopeError(f"{name}={shown(given)}: give one or more of {', '.join(names)}, each once.")
    return found


def instance(given: Any, kinds: Mapping[str, Any], what: str) -> Any:
    """What a class makes that is given by its name, or by its name and arguments, such as {"SinkMass": {"first": 2}}.

    Anything but a text or a mapping is given back as it is; SinkscopeError for unknown names and arguments.
    """
    if not isinstance(given, (str, Mapping)):
        return given
    if isinstance(given, str):
        given = {given: None}
    if len(given) != 1:
        raise SinkscopeError(
            f"{shown(dict(given))} is not one {what}; give each in an entry of its own, as {{name: ...}}."
        )
    ((name, options),) = given.items()
    check_names([name], kinds, what)
    if not isinstance(options, (Mapping, type(None))):
        raise SinkscopeError(f"{name} is given {shown(options)}; give its arguments by name, as {{{name}: {{...}}}}.")
    taken, told = inspect.signature(kinds[name]).parameters, dict(options or {})
    check_names(told, [each for each, one in taken.items() if one.kind is not one.VAR_KEYWORD], f"argument of {name}")
    missing = [each for each, one in taken.items() if one.default is one.empty and each not in told]
    if missing := [
        each for each in missing if taken[each].kind in (taken[each].POSITIONAL_OR_KEYWORD, taken[each].KEYWORD_ONLY)
    ]:
        raise SinkscopeError(f"{name} needs {' and '.join(missing)}; give it as {{{name}: {{{missing[0]}: ...}}}}.")
    try:
        return kinds[name](**told)
    except TypeError as problem:
        raise SinkscopeError(f"{name} cannot be made of {shown(told)} ({problem}); see its documentation.") from problem


def are_places(numbers: Any) -> bool:
    """Whether these are layers, heads or places in a text: whole numbers from 0 on, at least one and each once."""
    if not is_listed(numbers) or not 0 < len(numbers) <= MOST_PLACES:
        return False
    return all(is_whole(each) and each >= 0 for each in numbers) and len(numbers) == len({*numbers})


def check_places(numbers: Any, name: str) -> None:
    """Raise SinkscopeError for what is not a list of layers, heads or places in a text; None stands for all."""
    if numbers is not None and not are_places(numbers):
        raise SinkscopeError(
            f"{name}={shown(numbers)} says not which; give different whole numbers, such as {name}=[0, 5]."
        )


def head_pairs(given: Any, most: int) -> list[tuple[int, int]]:
    """Pairs (layer, head), `most` of them at most, or SinkscopeError."""
    pairs = several(given, "heads")
    if not all(is_listed(each) and len(each) == 2 and all(map(is_whole, each)) for each in pairs):
        raise SinkscopeError(f"heads={shown(given)} are no pairs (layer, head); give such as heads=[(5, 3), (0, 1)].")
    if not 1 <= len(pairs) <= most:
        raise SinkscopeError(f"1 to {most} heads are drawn side by side, not {len(pairs)}: choose fewer.")
    return [(int(layer), int(head)) for layer, head in pairs]


def real_number(value: Any) -> float:
    """`value` as a float; NaN for what is no real number."""
    try:
        is_one = (
            hasattr(value, "__float__") and not isinstance(value, (bool, np.bool_)) and not getattr(value, "ndim", 0)
        )
        return float(value) if is_one else float("nan")
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return float("nan")
