"""What policies cost: timings as a table, and costs beside the losses of the same policies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.perplexity import RATIO, losses, losses_from, ppl_table
from sinkscope.analysis.reading import reads
from sinkscope.errors import SinkscopeError
from sinkscope.record import first_evicted

COST = "cost_"
COST_COLUMNS = {
    "policy": "policy", "attention_size": "attention_size", "complexity": "cost", "flops_per_token": "flops_per_token",
    "memory": "kv_memory", "kv_bytes": "kv_megabytes",
}  # fmt: skip
PERPLEXITY_COLUMNS = ["policy", "ppl", "low", "high"]


def time_per_token(
    model: Any, ids: Any, cache_sizes: Any = (256, 512, 1024), policies: Any = None, **options: Any
) -> pd.DataFrame:
    """The time that one more token takes with a full cache of L tokens, and the memory the cache takes.

    >>> table = sinkscope.time_per_token(model, ids[:1], 8, ("dense", "window"), repeats=1)
    >>> table.policy.tolist()
    ['dense', 'window']

    Args:
        model, ids: as in `run_timing`.
        cache_sizes, policies: L in tokens, and which policies, one or several; as there when None.
        options: sinks, repeats, progress, and what to note in attrs.

    One row for each policy and cache size: policy, cache_size, milliseconds (median) with low and high (quartiles),
    kv_bytes, kv_bytes_kept, flops_per_token, samples. Raises SinkscopeError as `run_timing` does.
    """
    from sinkscope.experiments.timing import FAMILIES, run_timing  # not above: reading a record needs no torch

    return timing_table(run_timing(model, ids, cache_sizes, FAMILIES if policies is None else policies, **options))


@reads
def timing_table(record: xr.Dataset) -> pd.DataFrame:
    """The table of a record that `run_timing` made. Raises SinkscopeError for another record.

    >>> list(sinkscope.timing_table(record))[:3]
    ['policy', 'cache_size', 'low']
    """
    return _table(record, "columns", "")


def with_costs(curve: xr.Dataset, costs: pd.DataFrame) -> xr.Dataset:
    """A perplexity record that also holds what its policies cost, as variables cost_* [policy].

    Raises SinkscopeError if `costs` (of `sinkscope.cost_table`) is not of the same policies.
    """
    names = [str(name) for name in curve["policy"].values]
    if sorted(names) != sorted(costs["policy"]):
        raise SinkscopeError(
            f"the costs are of {', '.join(costs['policy'])} and the losses of {', '.join(names)}: give both the same."
        )
    rows = costs.set_index("policy").loc[names]
    columns = {f"{COST}{name}": ("policy", rows[name].to_numpy()) for name in rows.columns}
    return curve.assign(columns).assign_attrs(cost_columns=", ".join(map(str, rows.columns)))


def costs_of(curve: xr.Dataset) -> pd.DataFrame:
    """The costs that `with_costs` put in, one row for each policy; attrs["tokens"] is the length they are for."""
    table = _table(curve, "cost_columns", COST)
    table.insert(0, "policy", [str(name) for name in curve["policy"].values])
    if "tokens" in table:
        table.attrs["tokens"] = int(table["tokens"].iloc[0])
    return table


def _table(record: xr.Dataset, attribute: str, prefix: str) -> pd.DataFrame:
    """The variables that the attribute lists, as columns."""
    columns = str(record.attrs.get(attribute, "")).split(", ")
    missing = [name for name in columns if f"{prefix}{name}" not in record]
    if missing:
        raise SinkscopeError(f"the record holds no table: {missing[0] or attribute} is missing.")
    held = {name: record[f"{prefix}{name}"].values for name in columns}
    table = pd.DataFrame({name: each if each.dtype.kind in "iufb" else each.astype(str) for name, each in held.items()})
    table.attrs = {str(name): value for name, value in record.attrs.items() if name != attribute}
    return table


class Family(NamedTuple):
    """Names of the policies of a perplexity record, by what they are; None where there is none."""

    dense: str | None
    window: str | None
    recompute: str | None
    sinks: str | None


def families(curve: xr.Dataset) -> Family:
    """The first policy of each kind."""
    kind, sinks, bias, values, place = (
        curve[name].values for name in ("policy_kind", "sinks", "sink_bias", "sink_values", "placement")
    )
    plain = (values == "kept") & (bias == 0) & (place == "")
    bounded = plain & np.isin(kind, ["Window", "SinkWindow"])
    kinds = (kind == "Dense", bounded & (sinks == 0), plain & (kind == "Recompute"), bounded & (sinks > 0))
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


def perplexities(curve: xr.Dataset) -> pd.DataFrame:
    """Perplexity after the first eviction: of the policies that scored every token, then of all where all did."""
    late = after_eviction(curve)
    whole = scored_everywhere(late)
    parts = [ppl_table(late.sel(policy=whole)).assign(scored_at="every token")]
    if len(whole) < late.sizes["policy"]:
        parts.append(ppl_table(late).assign(scored_at="the tokens sampled"))
    for part in parts:
        part["ratio_to"] = part.attrs["baseline"]
        part.attrs = {}  # they differ between tables that are put one under the other
    return pd.concat(parts, ignore_index=True)


def estimates(curve: xr.Dataset) -> pd.DataFrame:
    """Perplexity at every token after the first eviction: policy, ppl, low, high; attrs of the record.

    That of a policy scored at a sample of them is the perplexity of the one most like it, times their ratio at the
    tokens sampled (the difference estimator of the mean loss: Cochran 1977, chapter 7). The two errors are independent,
    so on the logarithmic scale their half widths add as squares do.
    """
    late = after_eviction(curve)
    names = [str(name) for name in late["policy"].values]
    whole = ppl_table(late.sel(policy=scored_everywhere(late)))[PERPLEXITY_COLUMNS].set_index("policy")
    table = whole.reindex(names)
    for name in table.index.difference(whole.index):
        pairs = [(ppl_table(late.sel(policy=[name, other]), baseline=other).iloc[0], other) for other in whole.index]
        found, nearest = min(pairs, key=lambda each: np.nan_to_num(each[0].ratio_high / each[0].ratio_low, nan=np.inf))
        ratios = found[RATIO].to_numpy(np.float64)
        base = whole.loc[nearest].to_numpy(np.float64)
        value, spread = base[0] * ratios[0], np.hypot(np.log(base[1:] / base[0]), np.log(ratios[1:] / ratios[0]))
        table.loc[name] = value, value / np.exp(spread[0]), value * np.exp(spread[1])
    table = table.reset_index()
    table.attrs = dict(curve.attrs)
    return table


def four_policies(costs: pd.DataFrame, perplexities: pd.DataFrame | None = None) -> pd.DataFrame:
    """Attention size, cost, memory and perplexity of the ways to attend to a long text (Xiao et al. 2023, Fig. 1).

    One row per policy of `costs` (of `sinkscope.cost_table`), in that order. `perplexities` has columns policy, ppl,
    low and high; policies without a row are left blank. Raises SinkscopeError if a column is missing, or a policy is
    there twice or has a perplexity and no cost.
    """
    _check(costs, "costs", list(COST_COLUMNS))
    table = costs.assign(kv_bytes=costs["kv_bytes"] / 1e6)[list(COST_COLUMNS)].rename(columns=COST_COLUMNS)
    table.attrs = dict(costs.attrs)
    if perplexities is None:
        return table
    _check(perplexities, "perplexities", PERPLEXITY_COLUMNS)
    unknown = set(perplexities["policy"]) - set(table["policy"])
    if unknown:
        raise SinkscopeError(
            f"{', '.join(sorted(unknown))} has a perplexity but no cost; "
            f"the costs are of {', '.join(table['policy'])}: give both the same policies."
        )
    joined = table.merge(perplexities[PERPLEXITY_COLUMNS], on="policy", how="left", sort=False)
    joined.attrs = {**table.attrs, "cost_tokens": table.attrs.get("tokens"), **perplexities.attrs}
    return joined


def _check(table: pd.DataFrame, name: str, columns: list[str]) -> None:
    if missing := [column for column in columns if column not in table]:
        raise SinkscopeError(f"{name} has no column {', '.join(missing)}; it needs {', '.join(columns)}.")
    twice = table["policy"][table["policy"].duplicated()]
    if len(twice):
        raise SinkscopeError(f"{name} has the policy {twice.iloc[0]!r} twice; give one row for each.")
