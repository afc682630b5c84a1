"""How much of the collapse of window attention each half of a sink takes back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import resampled_means
from sinkscope.analysis.perplexity import common_losses, losses, losses_from, ppl_table
from sinkscope.errors import SinkscopeError
from sinkscope.record import first_evicted

PARTS = {
    "full sinks": "kept",
    "phantom, mean values": "mean",
    "phantom, values zeroed": "zeroed",
    "values only": "added",
    "window": None,
}
"""What is left of the sinks, and `sink_values` of such a policy; the window has no sinks."""

DECIDING = (
    "policy_kind", "cache_size", "sinks", "recomputed", "sink_values", "sink_bias", "positions", "placement",
)  # fmt: skip
"""Coordinates that say which part a policy is."""


def collapse_table(curve: xr.Dataset, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Perplexity with what is left of the sinks, one row for each part, over the tokens after the first eviction.

    part                                  "full sinks", "phantom, mean values", "phantom, values zeroed" (keys in the
                                          denominator), "values only" (keys out of it), "window" (neither)
    policy, sinks, cache_size             as the record has them
    ppl, low, high, tokens                perplexity, its 95% interval and the number of tokens
    ratio, ratio_low, ratio_high          to the perplexity with full sinks, and its paired interval
    recovered, recovered_low, .._high     share of the gap in mean loss between window and full sinks that the part
                                          closes, and its paired interval: 1 for full sinks, 0 for the window, below 0
                                          for what is worse than the window. NaN where there is no gap: where the
                                          interval of the window's ratio reaches down to 1.

    All intervals are of one block bootstrap, as in `ppl_table`. Raises SinkscopeError if the record has no losses, does
    not say what its policies do, has no policy with full sinks or no window, policies of several cache sizes, or no
    token after the first eviction.
    """
    losses(curve)  # or an error that says what is needed
    named = _chosen(curve)
    sizes = sorted({int(size) for size in curve["cache_size"].sel(policy=list(named)).values})
    if len(sizes) > 1:
        raise SinkscopeError(f"the policies have caches of {sizes[0]} and {sizes[-1]} tokens: decompose one at a time.")
    late = losses_from(curve.sel(policy=list(named)), first_evicted(sizes[0]))
    if not bool(late["nll"].notnull().any()):
        raise SinkscopeError(f"no token comes after the first eviction from a cache of {sizes[0]}: give a longer text.")
    table = ppl_table(late, next(iter(named)), None, resamples, seed)
    table.insert(0, "part", list(named.values()))
    (parts,) = common_losses(losses(late))
    drawn = resampled_means(parts, min(table.attrs["block"], _half(parts)), resamples, np.random.default_rng(seed))
    mean = np.concatenate(parts).mean(0)[None]
    for column, values in zip(
        ("recovered", "recovered_low", "recovered_high"),
        (_recovered(mean)[0], *np.quantile(_recovered(drawn), [0.025, 0.975], axis=0)),
        strict=True,
    ):
        table[column] = values if table["ratio_low"].iloc[-1] > 1 else np.nan
    return table


def is_decomposed(curve: xr.Dataset) -> bool:
    """Whether a perplexity record has full sinks, the window and something between them."""
    found = set(policy_parts(curve))
    return {"full sinks", "window"} <= found and len(found - {""}) > 2


def policy_parts(curve: xr.Dataset | xr.DataArray) -> list[str]:
    """The part that each policy is, whatever it is called; "" for one that is none.

    A part acts in all layers and heads, counts positions in the cache, adds no bias and rebuilds nothing.

    Raises:
        SinkscopeError: the record does not say what its policies do.
    """
    missing = [name for name in DECIDING if name not in curve.coords]
    if missing:
        raise SinkscopeError(
            f"the record does not say what its policies do: {missing[0]} is missing, as in records of older versions; "
            "make it again with sinkscope.perplexity or sinkscope.decompose."
        )
    columns = zip(*(np.atleast_1d(curve[name].values).tolist() for name in DECIDING), strict=True)
    part_of, parts = {values: part for part, values in PARTS.items()}, []
    for kind, size, sinks, again, values, bias, positions, placement in columns:
        is_plain = size > 0 and not again and not bias and not placement and positions == "cache"
        is_known = kind == "SinkWindow" or (kind == "Window" and not sinks)
        parts.append(part_of.get(values if sinks else None, "") if is_plain and is_known else "")
    return parts


def _chosen(curve: xr.Dataset) -> dict[str, str]:
    """Part by name of the policy, the first of each part, full sinks first and the window last."""
    names, parts = [str(name) for name in curve["policy"].values], policy_parts(curve)
    for part in ("full sinks", "window"):
        if part not in parts:
            raise SinkscopeError(f"the record has no policy that is the {part}: make one with sinkscope.decompose.")
    return {names[parts.index(part)]: part for part in PARTS if part in parts}


def _recovered(mean: np.ndarray) -> np.ndarray:
    """[resample, policy] mean losses to shares of the gap between the last policy and the first."""
    gap = mean[:, [-1]] - mean[:, [0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (mean[:, [-1]] - mean) / gap


def _half(parts: list[np.ndarray]) -> int:
    return max(1, sum(map(len, parts)) // 2)
