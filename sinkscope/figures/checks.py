"""What a figure is made of, checked when it is made: what no renderer could draw is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np

from sinkscope.arguments import check_fields, finite_number, is_a, one_of, real_number, several, whole_number
from sinkscope.errors import SinkscopeError, first_line, shown

# Okabe and Ito (2008): told apart with any colour vision; with the dashes also in grey.
SERIES = {
    "blue": "#0072B2", "vermilion": "#D55E00", "green": "#009E73", "purple": "#CC79A7", "orange": "#E69F00",
    "sky": "#56B4E9",
}  # fmt: skip
"""In the order in which series take them."""
PALETTE = SERIES | {"ink": "#1a1a1a", "quiet": "#6b6b6b", "faint": "#c8c8c8", "grid": "#e0e0e0"}
"""The others are of text, of what stands behind, of what is hardly seen, and of what only divides."""
_FRACTIONS = ("opacity", "band")
_SIZES = ("width", "height", "size", "step", "aspect", "factor", "handle")


@cache
def _words(cls: Any) -> dict[str, tuple[str, ...]]:
    """The fields that take one of a few words, with these."""
    return {name: get_args(hint) for name, hint in get_type_hints(cls).items() if get_origin(hint) is Literal}


class Checked:
    """A dataclass with known words, sizes above 0, and arrays of float64 in its fields of `Numbers`."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        check_fields(self)
        for name, known in _words(kind).items():
            one_of(getattr(self, name), name, known)
        for each in fields(cast(Any, self)):
            value = getattr(self, each.name)
            if ("colour" in each.name and value is not None) or (each.name == "edge" and value):
                check_colours([value] if isinstance(value, str) else value, each.name)
            if each.name in _SIZES:
                finite_number(value, each.name, 0.0)
            if each.name in _FRACTIONS and finite_number(value, each.name, 0.0, inclusive=True) > 1:
                raise SinkscopeError(f"{each.name}={value!r} is none of the shares from 0 to 1.")
            if each.type == "Numbers" and value is not None:
                try:
                    numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
                except (TypeError, ValueError, OverflowError, MemoryError) as error:
                    said = f"{each.name} of a {type(self).__name__} are no numbers"
                    raise SinkscopeError(f"{said}: {first_line(error)}.") from error
                object.__setattr__(self, each.name, numbers)


def check_colours(colours: Sequence[str], name: str) -> None:
    """Refuse what is neither a named colour nor "#rrggbb"."""
    for colour in several(colours, name):
        if not isinstance(colour, str) or (colour not in PALETTE and not re.fullmatch("#[0-9a-fA-F]{6}", colour)):
            raise SinkscopeError(f'{name}={shown(colour)} is unknown; give one of {", ".join(PALETTE)}, or "#rrggbb".')


def check_ends(low: float | None, high: float | None, is_log: bool, what: str, may_turn: bool = True) -> None:
    """Refuse ends that a logarithmic scale has not, and without `may_turn` those the wrong way round."""
    for end in (low, high):
        if end is not None and real_number(end) != real_number(end):
            raise SinkscopeError(f"{what} was given from {shown(low)} to {shown(high)}: give numbers, or None.")
    if is_log and any(end is not None and not end > 0 for end in (low, high)):
        raise SinkscopeError(f"a logarithmic scale has only numbers above 0; {what} was given from {low} to {high}.")
    if not may_turn and low is not None and high is not None and low > high:
        raise SinkscopeError(f"{what} begins at its lower end, and was given from low={low} to high={high}.")


def check_points(series: Any) -> None:
    """Refuse numbers that do not belong to one row of points, and an interval with one bound."""
    given = {name: getattr(series, name, None) for name in ("x", "y", "low", "high", "left", "right", "texts")}
    sizes = {name: np.shape(value) for name, value in given.items() if value is not None}
    for pair in (("low", "high"), ("left", "right")):
        if len(sizes.keys() & {*pair}) == 1:
            raise SinkscopeError(f"an interval has two bounds; give both {pair[0]} and {pair[1]}, or neither.")
    if len(sizes["x"]) > 1 or len({*sizes.values()}) > 1:
        listed = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in sizes.items())
        raise SinkscopeError(f"a {type(series).__name__} takes one value for each of its points; given are {listed}.")


def check_axis(axis: Any) -> None:
    """Refuse limits that are not two, unknown words for ticks, and names that do not belong to ticks."""
    if not isinstance(axis.limits, (tuple, list)) or len(axis.limits) != 2:
        raise SinkscopeError(f"limits={shown(axis.limits)} of the axis {axis.label!r} are not two: give (low, high).")
    low, high = axis.limits
    check_ends(low, high, axis.scale == "log", f"the axis {axis.label!r}")
    if isinstance(axis.ticks, str):
        one_of(axis.ticks, "ticks", ["round"])
    for name, at in (("names", "ticks"), ("name_colours", "names")):
        few, many = getattr(axis, name), getattr(axis, at)
        if few is None:
            continue
        if many is None or isinstance(many, str) or len(several(few, name)) != len(several(many, at)):
            raise SinkscopeError(f"{name} of the axis {axis.label!r} stand one at each of {at}; give as many.")


def check_layout(drawing: Any) -> None:
    """Refuse ratios that are not one width for each column, and attributes that are not those of a record."""
    for ratio in drawing.ratios:
        finite_number(ratio, "ratios", 0.0)
    if len(drawing.ratios) not in (0, whole_number(drawing.columns, "columns", 1)):
        raise SinkscopeError(f"ratios are the widths of {drawing.columns} columns; given are {len(drawing.ratios)}.")
    if not isinstance(drawing.attributes, Mapping):
        raise SinkscopeError(f"attributes={shown(drawing.attributes)} are not those of a record: give a dict.")


def check_drawing(drawing: Any) -> None:
    """Refuse what is no Drawing."""
    if not is_a(drawing, "sinkscope.figures.marks", "Drawing"):
        raise SinkscopeError(
            f"a {type(drawing).__name__} is no Drawing: give what a figure's `describe` makes of a record."
        )
