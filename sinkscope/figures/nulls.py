"""The uniform nulls drawn beside what was measured: what a head that looks at every key alike would give.

Causal: query i (0-based) sees i + 1 keys and gives each 1 / (i + 1). Encoder: every query sees all T keys.
The nulls of the mass and of alpha come from sinkscope.analysis; these two belong to the figures alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.analysis import sink_mass
from sinkscope.figures.need import is_causal, lengths


def null_mass(record: xr.Dataset, first: int) -> float:
    """Mean mass on the first `first` keys under uniform attention, over the same queries and sequences."""
    return float(sink_mass(record, first=first).attrs["null"])


def null_entropy(record: xr.Dataset) -> float:
    """Mean entropy of uniform attention in nats: the mean of ln(i + 1) over the queries (encoder: ln T)."""
    real = lengths(record)
    if not is_causal(record):
        return float(np.average(np.log(real), weights=real))
    return float(sum(np.log(np.arange(1, int(length) + 1)).sum() for length in real) / real.sum())


def null_distance(length: int) -> np.ndarray:
    """Mean attention at each distance d under uniform causal attention, [distance]: the mean of 1/(i + 1)
    over i >= d.
    """
    rows = 1.0 / np.arange(1, length + 1)
    return np.cumsum(rows[::-1])[::-1] / np.arange(length, 0, -1)


def null_mass_from(attributes: Mapping[Any, Any]) -> float:
    """Mean mass on the first keys under uniform causal attention, over the queries from the start on, of a table of
    interventions or doses: its attrs say how many keys, where the start is and how long the texts are. NaN where they
    do not, or the texts are not equally long.
    """
    first, start, tokens, sequences = (attributes.get(name) for name in ("first", "start", "tokens", "sequences"))
    if not first or not start or not tokens or not sequences or int(tokens) % int(sequences):
        return float("nan")
    query = np.arange(int(start), int(tokens) // int(sequences))
    return float(np.mean(np.minimum(int(first) / (query + 1), 1))) if len(query) else float("nan")
