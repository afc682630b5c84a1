"""Maps as a browser gets them: one byte a cell, pooled to what a screen can show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

SIDE = 512  # cells along each side at most
FAINTEST = -5.0  # log10 of the smallest probability that is told from none
ROUNDING = 1e-4  # what a probability may be above 1 for no reason
SCALES = {"log": "log10 probability", "linear": "probability", "logit": "logit"}


@dataclass(frozen=True)
class Limits:
    """What the ends of the colour scale mean.

    Attributes:
        low, high: values, on the scale, of bytes 1 and 255.
        unit: of those values.
        diverging: whether zero is the middle of the scale.
    """

    low: float
    high: float
    unit: str
    diverging: bool = False


def edges(length: int, cells: int) -> np.ndarray:
    """Where `cells` cells begin, as even as whole tokens allow: [cell]."""
    return -(-np.arange(cells) * length // cells)


def pooled(values: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The largest value in each cell, so that a sink one column wide survives; NaN where nothing is seen.

    Args:
        values: [query, key] with NaN for hidden keys.
        side: cells along each side at most.
    """
    for axis in (0, 1):
        length = values.shape[axis]
        if length > side and length % side == 0:  # the same as below, many times faster
            step = length // side
            values = reduce(np.fmax, [values[i::step] if axis == 0 else values[:, i::step] for i in range(step)])
        elif length > side:
            values = np.fmax.reduceat(values, edges(length, side), axis=axis)
    return values


def scaled(probabilities: np.ndarray, scale: str) -> np.ndarray:
    """Probabilities on a scale of `SCALES`; no probability at all is at the foot of the logarithmic one."""
    if scale != "log":
        return probabilities
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(probabilities), FAINTEST)


def limits(values: np.ndarray, scale: str, stretched: bool = False) -> Limits:
    """The ends of the colour scale for values that are on it.

    Args:
        values: [query, key], NaN where hidden.
        scale: one of `SCALES`.
        stretched: whether a linear scale ends at the largest value even where that is below 1. Weights above 1, which
            ReLU can give, stretch every scale.
    """
    if scale == "log":
        highest = float(np.nanmax(values, initial=FAINTEST))
        return Limits(FAINTEST, highest if highest > ROUNDING else 0.0, SCALES[scale])
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    if scale == "logit":
        return Limits(-largest, largest, SCALES[scale], diverging=True)
    return Limits(0.0, largest if stretched or largest > 1 + ROUNDING else 1.0, SCALES[scale])


def encoded(values: np.ndarray, ends: Limits) -> np.ndarray:
    """Bytes: 0 for NaN, and 1 to 255 from `low` to `high`."""
    share = (values - np.float32(ends.low)) / np.float32(ends.high - ends.low)
    steps = np.rint(np.clip(share, 0, 1) * np.float32(254)) + 1
    return np.where(np.isnan(values), 0, steps).astype(np.uint8)
