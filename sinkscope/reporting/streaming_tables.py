"""The tables of the streaming section, from its records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.perplexity import losses, losses_from, ppl_table
from sinkscope.analysis.table_records import costs_of, table_of_record
from sinkscope.record import first_evicted
from sinkscope.reporting.four_policies import four_policies as joined

Records = Mapping[str, xr.Dataset]


class Family(NamedTuple):
    """Names of the policies of a perplexity record, by what they are; None where there is none."""

    dense: str | None
    window: str | None
    recompute: str | None
    sinks: str | None


def families(curve: xr.Dataset) -> Family:
    """The first policy of each kind."""
    size, sinks, again = (curve[name].values for name in ("cache_size", "sinks", "recomputed"))
    kinds = (size < 0, (size > 0) & (sinks == 0) & (again == 0), again == 1, (size > 0) & (sinks > 0))
    names = [str(name) for name in curve["policy"].values]
    return Family(*(names[int(np.argmax(kind))] if kind.any() else None for kind in kinds))


def after_eviction(curve: xr.Dataset) -> xr.Dataset:
    """The record with losses only where every bounded cache has evicted something; all of them, if none ever has."""
    late = losses_from(curve, first_evicted(int(curve["cache_size"].values.max())))
    return late if bool(late["nll"].notnull().any()) else curve


def scored_everywhere(curve: xr.Dataset) -> list[str]:
    """The policies that scored as many tokens as any: all but a sampled one."""
    counts = losses(curve).notnull().sum(["sequence", "token"]).values
    return [str(name) for name in curve["policy"].values[counts == counts.max()]]


def perplexities(records: Records) -> pd.DataFrame:
    """Perplexity after the first eviction: of the policies that scored every token, then of all where all did."""
    late = after_eviction(records["perplexity"])
    whole = scored_everywhere(late)
    parts = [ppl_table(late.sel(policy=whole)).assign(scored_at="every token")]
    if len(whole) < late.sizes["policy"]:
        parts.append(ppl_table(late).assign(scored_at="the tokens sampled"))
    tables = [part.assign(ratio_to=part.attrs["baseline"]) for part in parts]
    return pd.concat([_bare(table) for table in tables], ignore_index=True)


def four_policies(records: Records) -> pd.DataFrame:
    """Attention size, cost, KV memory and perplexity of each policy."""
    curve = records["perplexity"]
    return joined(costs_of(curve), estimates(curve))


def estimates(curve: xr.Dataset) -> pd.DataFrame:
    """Perplexity at every token after the first eviction: policy, ppl, low, high; attrs of the record.

    That of a policy scored at a sample of them is the perplexity of the one most like it, times their ratio at the
    tokens sampled (the difference estimator of the mean loss: Cochran 1977, chapter 7). The two errors are independent,
    so on the logarithmic scale their half widths add as squares do.
    """
    late = after_eviction(curve)
    names = [str(name) for name in late["policy"].values]
    whole = ppl_table(late.sel(policy=scored_everywhere(late))).set_index("policy")[["ppl", "low", "high"]]
    rows = {}
    for name in names:
        if name in whole.index:
            rows[name] = whole.loc[name].to_numpy(np.float64)
            continue
        pairs = {other: ppl_table(late.sel(policy=[name, other]), baseline=other).iloc[0] for other in whole.index}
        nearest = min(pairs, key=lambda other: _spread(pairs[other]))
        ratios = pairs[nearest][["ratio", "ratio_low", "ratio_high"]].to_numpy(np.float64)
        base = whole.loc[nearest].to_numpy(np.float64)
        value, spread = base[0] * ratios[0], np.hypot(np.log(base[1:] / base[0]), np.log(ratios[1:] / ratios[0]))
        rows[name] = np.array([value, value / np.exp(spread[0]), value * np.exp(spread[1])])
    table = pd.DataFrame([(name, *rows[name]) for name in names], columns=["policy", "ppl", "low", "high"])
    table.attrs = {str(key): value for key, value in curve.attrs.items()}
    return table


def ablated(records: Records) -> pd.DataFrame:
    """Perplexity for each number of sinks, with paired ratios."""
    return table_of_record(records["ablation"]).drop(columns=["cell", "seconds"], errors="ignore")


def decoded(records: Records) -> pd.DataFrame:
    """Time per token and bytes, measured, beside bytes and operations counted."""
    return table_of_record(records["decode"])


def collapse(records: Records) -> Any | None:
    """The window's perplexity over that of sinks + window, at every token after the first eviction: the row of
    `ppl_table`; None where one of the two was not measured.
    """
    curve = records.get("perplexity")
    found = None if curve is None else families(curve)
    if curve is None or found is None or found.window is None or found.sinks is None:
        return None
    table = ppl_table(after_eviction(curve).sel(policy=[found.window, found.sinks]), baseline=found.sinks)
    return table.iloc[0]


def streaming_sentence(records: Records) -> str:
    """What the streaming section found, in one sentence; nothing without dense, window and sinks + window."""
    curve = records.get("perplexity")
    found = None if curve is None else families(curve)
    if curve is None or found is None or None in (found.dense, found.window, found.sinks):
        return ""
    late = after_eviction(curve)
    whole = ppl_table(late.sel(policy=[found.dense, found.window, found.sinks]), resamples=1)
    dense, window, sinks = (f"{value:,.1f}" for value in whole["ppl"])
    size, kept = (int(whole[name].iloc[2]) for name in ("cache_size", "sinks"))
    text = (
        f"With a cache of {size:,} tokens, perplexity goes from {dense} (dense) to {window} in a window that drops the "
        f"first tokens, and is {sinks} where {kept} of them {'stays as a sink' if kept == 1 else 'stay as sinks'}"
    )
    if found.recompute is None:
        return text + "."
    pair = ppl_table(late.sel(policy=[found.recompute, found.sinks]), baseline=found.sinks, resamples=1).iloc[0]
    sampled = "" if found.recompute in scored_everywhere(late) else " sampled"
    scored = f"{pair.tokens:,} tokens{sampled}"
    return f"{text}; re-computing the window for each token gives {pair.ratio:.2f} times that ({scored})."


def _spread(row: Any) -> float:
    """How wide the interval of a ratio is; infinite where there is none."""
    return float(np.nan_to_num(row.ratio_high / row.ratio_low, nan=np.inf))


def _bare(table: pd.DataFrame) -> pd.DataFrame:
    """Without attrs, which differ between tables that are put one under the other."""
    table = table.copy()
    table.attrs = {}
    return table
