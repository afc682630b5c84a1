"""From the losses of the cells of an ablation to its table: the same tokens in all, with paired intervals."""

from __future__ import annotations

import pandas as pd
import xarray as xr

from sinkscope.analysis.perplexities import first_evicted, losses_from, ppl_table
from sinkscope.streaming.ablation.factors import Factors, Level


def ablation_table(
    curve: xr.Dataset, factors: Factors, keys: dict[Level, str], resamples: int, seed: int
) -> pd.DataFrame:
    """One row for each level; columns as in `ablate`.

    Args:
        curve: losses, one policy for each cell.
        factors: the levels.
        keys: the policy of the record that holds the losses of each level.
        resamples, seed: of the bootstrap.
    """
    evicted = ppl_table(losses_from(curve, first_evicted(max(factors.cache_size))), resamples=resamples, seed=seed)
    scored = losses_from(curve, max(factors.sinks) + 1)
    tables: dict[int, pd.DataFrame] = {}
    block = None
    for size in factors.cache_size:
        tables[size] = ppl_table(scored, keys[factors.baseline(size)], block, resamples, seed)
        block = tables[size].attrs["block"]  # the same for all, and so are then the resamples
    number = {key: n for n, key in enumerate(curve["policy"].values)}
    rows = []
    for level, key in keys.items():
        whole, late = tables[level.cache_size].iloc[number[key]], evicted.iloc[number[key]]
        rows.append(
            {
                "cell": number[key],
                "sinks": level.sinks,
                "cache_size": level.cache_size,
                "positions": level.positions,
                "kind": level.kind,
                **{name: whole[name] for name in ("ppl", "low", "high", "ratio", "ratio_low", "ratio_high")},
                **{f"{name}_evicted": late[name] for name in ("ppl", "low", "high")},
                "seconds": float(curve["seconds"].values[number[key]]),
            }
        )
    table = pd.DataFrame(rows)
    own = next(iter(tables.values())).attrs
    table.attrs = curve.attrs | {
        "kind": "ablation",
        "computed": own["computed"],
        "baseline": "; ".join(_shown(factors.baseline(size)) for size in factors.cache_size),
        "bootstrap_block": block,
        "resamples": resamples,
        "confidence": own["confidence"],
        "first_scored": max(factors.sinks) + 1,
        "first_evicted": first_evicted(max(factors.cache_size)),
        "tokens_used": own["tokens_used"],
        "tokens_evicted": evicted.attrs["tokens_used"],
    }
    return table


def _shown(level: Level) -> str:
    return f"{level.sinks} sinks of {level.cache_size} ({level.kind}, {level.positions} positions)"
