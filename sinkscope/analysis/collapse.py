"""How much of the collapse of window attention each half of a sink takes back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.block_bootstrap import resampled_means
from sinkscope.analysis.perplexities import common_losses, first_evicted, losses, losses_from, ppl_table
from sinkscope.errors import SinkscopeError

PARTS = {
    "full sinks": "",
    "phantom, mean values": "mean values",
    "phantom, values zeroed": "values zeroed",
    "values only": "values only",
    "window": None,
}
"""What is left of the sinks, and how the name of such a policy ends; the window has no sinks."""


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

    All intervals are of one block bootstrap, as in `ppl_table`. Raises SinkscopeError if the record has no losses, no
    policy with full sinks or no window, policies of several cache sizes, or no token after the first eviction.
    """
    losses(curve)  # or an error that says what is needed
    named = _parts(curve)
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
    try:
        return len(_parts(curve)) > 2
    except SinkscopeError:
        return False


def _parts(curve: xr.Dataset) -> dict[str, str]:
    """Part by name of the policy, full sinks first and the window last."""
    if "cache_size" not in curve.coords or "sinks" not in curve.coords:
        raise SinkscopeError("the record has no cache sizes: make one with sinkscope.decompose.")
    found: dict[str, str] = {}
    for part, end in PARTS.items():
        for name, sinks, size, again in zip(
            curve["policy"].values, curve["sinks"].values, curve["cache_size"].values, _recomputed(curve), strict=True
        ):
            words = str(name).split(", ")[1:]
            is_part = sinks == 0 and not words if end is None else sinks > 0 and words == [end][: bool(end)]
            if size > 0 and not again and is_part:
                found[str(name)] = part
                break
    for part in ("full sinks", "window"):
        if part not in found.values():
            raise SinkscopeError(f"the record has no policy that is the {part}: make one with sinkscope.decompose.")
    return found


def _recomputed(curve: xr.Dataset) -> np.ndarray:
    return curve["recomputed"].values if "recomputed" in curve.coords else np.zeros(curve.sizes["policy"])


def _recovered(mean: np.ndarray) -> np.ndarray:
    """[resample, policy] mean losses to shares of the gap between the last policy and the first."""
    gap = mean[:, [-1]] - mean[:, [0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (mean[:, [-1]] - mean) / gap


def _half(parts: list[np.ndarray]) -> int:
    return max(1, sum(map(len, parts)) // 2)
