"""The nulls: what a head that spreads its attention evenly over the keys it sees gives to the keys in
question.

Under uniform causal attention query i (0-based) gives 1/(i+1) to each key it sees, so the null of a metric is
a mean of 1/(i+1) over its queries (about ln(T)/T for the first key, not 1/T). An encoder's query gives 1/T to
each key.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinkscope.analysis.variables import is_causal, measured_queries, sequence_lengths
from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError


def uniform_importance(length: int, position: int = 0, causal: bool = True) -> float:
    """Importance (Gu et al. 2024) of the key at `position` (0-based) in a text of `length` tokens under
    uniform attention.

    Causal: the mean of 1/(i+1) over the queries i = position .. length-1; for position 0 the harmonic number
    H_T / T. Otherwise 1/length. Raises SinkscopeError if the position is not in the text.
    """
    length = whole_number(length, "length", 1)
    position = whole_number(position, "position", 0)
    if position >= length:
        raise SinkscopeError(
            f"position={position} is not in a text of {length} tokens: give one from 0 to {length - 1}."
        )
    if not causal:
        return 1.0 / length
    return float(np.mean(1.0 / np.arange(position + 1, length + 1)))


def uniform_mass(length: int, first: int = 1, causal: bool = True) -> float:
    """Mass on the `first` keys of a text of `length` tokens under uniform attention.

    Causal: the mean of first/(i+1) over the queries i = first .. length-1. Otherwise first/length.
    Raises SinkscopeError if no query comes after the first keys.
    """
    length = whole_number(length, "length", 1)
    first = whole_number(first, "first", 1)
    if first >= length:
        raise SinkscopeError(
            f"a text of {length} tokens has no query after its first {first}: give a longer text or a smaller first."
        )
    if not causal:
        return first / length
    return float(np.mean(first / np.arange(first + 1, length + 1)))


def even_share(record: xr.Dataset) -> xr.DataArray:
    """[sequence, query] what each measured query of the record gives to one key under uniform attention; NaN
    elsewhere."""
    measured = measured_queries(record)
    if is_causal(record):
        return (1.0 / (measured["query"] + 1.0)).where(measured)
    return (1.0 / sequence_lengths(record)).where(measured)
