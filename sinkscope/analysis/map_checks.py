"""Attention maps as given, turned into one [layer, head, query, key] array per sequence, or refused in one
sentence."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from sinkscope.errors import SinkscopeError

ROUNDING = 2.0**-8
"""How far a row's sum may be from one: the spacing of bfloat16 below one, in which maps often come."""


def checked_maps(array: Any) -> list[np.ndarray]:
    """One [layer, head, query, key] array per sequence; layers and heads the same for all. Raises
    SinkscopeError."""
    maps = _one_per_sequence(array)
    shapes = {each.shape[:2] for each in maps}
    if len(shapes) > 1:
        raise SinkscopeError(
            f"the sequences' maps have different numbers of layers and heads {sorted(shapes)}: "
            "give maps of one model, [layer, head, query, key] each."
        )
    for each in maps:
        _check(each)
    return maps


def _one_per_sequence(array: Any) -> list[np.ndarray]:
    if isinstance(array, tuple) and len(array) > 0 and all(_dimensions(each) == 4 for each in array):
        layers = [_as_array(each) for each in array]
        if len({each.shape for each in layers}) > 1:
            raise SinkscopeError(
                "the layers' maps have different shapes: a tuple is read as one "
                "[sequence, head, query, key] array per layer, all of one shape; give a list for one array "
                "per sequence."
            )
        return list(np.stack(layers, axis=1))
    if isinstance(array, list) and len(array) > 0 and all(_dimensions(each) == 4 for each in array):
        sequences = [_as_array(each) for each in array]
        if len(sequences) > 1 and len({each.shape for each in sequences}) == 1 and sequences[0].shape[0] == 1:
            raise SinkscopeError(
                f"a list of {len(sequences)} arrays of shape {sequences[0].shape} may hold one array per "
                "layer or one per sequence: give a tuple for one [sequence, head, query, key] array per "
                "layer, or stack them yourself."
            )
        return sequences
    whole = _as_array(array)
    if whole.ndim not in (4, 5):
        raise SinkscopeError(
            f"maps of shape {whole.shape} have {whole.ndim} dimensions: "
            "give [layer, head, query, key] or [sequence, layer, head, query, key]."
        )
    if 0 in whole.shape:
        raise SinkscopeError(f"maps of shape {whole.shape} are empty: give at least one layer, one head and one token.")
    return [whole] if whole.ndim == 4 else list(whole)


def _dimensions(value: Any) -> int:
    try:
        return len(value.shape)
    except (AttributeError, TypeError):
        return -1


def _as_array(value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SinkscopeError(
            f"numpy cannot read these maps ({error}): give a rectangular array of numbers on the CPU, "
            "such as maps.detach().float().cpu() of a torch tensor."
        ) from error
    # Extension types such as ml_dtypes' bfloat16 have kind "V" and still turn into float32.
    if array.dtype.kind in "V" and array.dtype.names is None:
        with contextlib.suppress(TypeError, ValueError):
            array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise SinkscopeError(
            f"maps hold values of type {array.dtype}, not real numbers: give an array of probabilities."
        )
    return array


def _check(maps: np.ndarray) -> None:
    if 0 in maps.shape:
        raise SinkscopeError(f"maps of shape {maps.shape} are empty: give at least one layer, one head and one token.")
    queries, keys = maps.shape[-2:]
    if queries != keys:
        raise SinkscopeError(
            f"maps have {queries} queries and {keys} keys: give square maps, in which every token is a query and a key."
        )
    for layer, values in enumerate(maps):
        if not np.isfinite(values).all():
            raise SinkscopeError(
                f"the maps of layer {layer} hold NaN or infinity: give finite probabilities, with 0 for masked keys."
            )
        if values.min() < 0:
            raise SinkscopeError(
                f"the maps of layer {layer} hold {float(values.min()):.4g}, below zero: give probabilities "
                "(after the softmax), not logits."
            )
        total = float(values.sum(-1, dtype=np.float64).max())
        if total > 1 + ROUNDING:
            raise SinkscopeError(
                f"a row of the maps of layer {layer} sums to {total:.4g}: give probabilities (after the "
                "softmax) that sum to at most 1."
            )
