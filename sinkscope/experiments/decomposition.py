"""The collapse of window attention decomposed: which part is the lost denominator, which the lost value, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import perplexity
from sinkscope.models.facts import find_anatomy
from sinkscope.policies import Dense, Policy, SinkWindow, Window


@checks_types
def decompose(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    cache_size: int = 512,
    sinks: int = 4,
    *,
    arms: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Losses with the sinks kept, with half of what they do, and without them, over the same tokens.

    Beside StreamingLLM and the window, at one cache size: *phantom* sinks keep their keys in the denominator while
    their values are zeroed, or replaced by the mean of the values in the window; *values only* adds what the sinks
    would hand on, while their keys are out of the denominator of the others. If the collapse were nothing but parked
    mass forced onto the others, phantoms would recover all of it; if it were nothing but a lost bias, values only.

    >>> record = sinkscope.decompose(model, ids, cache_size=16, sinks=2)
    >>> record.policy.values.tolist()[0]
    'sinks 2+14'

    Args:
        model, ids, options: as those of `perplexity`; a model inside transformers' attention interface.
        cache_size, sinks: tokens kept, and the first ones among them.
        arms: whether to measure also phantoms with the value of a random token of the window, with their own direction
            and the norm of an ordinary value, and with the direction of a random one and their own norm.

    Returns:
        A record as that of `perplexity`, StreamingLLM first; `collapse_table` gives paired intervals, and
        `factorial_table` what each half closes in either order.

    Raises:
        SinkscopeError: as `perplexity`; sinks that leave no window.
    """
    return perplexity(model, ids, collapse_policies(cache_size, sinks, arms), **options)


@checks_types
def decompose_by_layer(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    cache_size: int = 256,
    sinks: int = 4,
    groups: int = 6,
    **options: Any,
) -> xr.Dataset:
    """The same in one group of neighbouring layers at a time, all other layers dense.

    >>> record = sinkscope.decompose_by_layer(model, ids, cache_size=16, sinks=2, groups=2)
    >>> record.sizes["policy"]
    7

    Args:
        model, ids, cache_size, sinks, options: as for `decompose`; texts no longer than the model was trained on.
        groups: how many, of equal size as far as that goes.

    Returns:
        A record as that of `perplexity`, the dense policy first. `part` [policy] is "dense", "phantom", "values only"
        or "window", and `first_layer`, `last_layer` [policy] say where, -1 for dense.

    Raises:
        SinkscopeError: as `decompose`; more groups than layers.
    """
    numbers = find_anatomy(model).numbers
    if whole_number(groups, "groups", 1) > len(numbers):
        raise SinkscopeError(f"{groups} groups are more than the {len(numbers)} layers there are; give fewer.")
    window = _window(cache_size, sinks)
    policies: list[tuple[str, list[int], Policy]] = [("dense", [-1], Dense())]
    for layers in (group.tolist() for group in np.array_split(numbers, groups)):
        policies += [
            ("phantom", layers, SinkWindow(sinks, window, values="zeroed", layers=layers)),
            ("values only", layers, SinkWindow(sinks, window, values="added", layers=layers)),
            ("window", layers, Window(cache_size, layers=layers)),
        ]
    record = perplexity(model, ids, [policy for *_, policy in policies], **options)
    return record.assign_coords(
        part=("policy", [part for part, *_ in policies]),
        first_layer=("policy", [layers[0] for _, layers, _ in policies]),
        last_layer=("policy", [layers[-1] for _, layers, _ in policies]),
    )


def collapse_policies(cache_size: int, sinks: int, arms: bool = False) -> list[Policy]:
    """StreamingLLM, the three halves of it, with `arms` other values, and the window, all of one cache size."""
    window = _window(cache_size, sinks)
    values = ("kept", "mean", "zeroed", "added", *(("drawn", "long", "turned") if arms else ()))
    parts = [SinkWindow(sinks, window, values=each) for each in values]
    return [*parts, Window(cache_size)]


def _window(cache_size: int, sinks: int) -> int:
    if whole_number(sinks, "sinks", 1) >= whole_number(cache_size, "cache_size", 2):
        raise SinkscopeError(
            f"{sinks} sinks leave no window in a cache of {cache_size}; give fewer, or a larger cache."
        )
    return cache_size - sinks
