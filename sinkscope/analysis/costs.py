"""What policies cost: timings as a table, and costs beside the losses of the same policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.errors import SinkscopeError

COST = "cost_"


def time_per_token(
    model: Any, ids: Any, cache_sizes: Any = (256, 512, 1024), policies: Any = None, **options: Any
) -> pd.DataFrame:
    """The time that one more token takes with a full cache of L tokens, and the memory the cache takes.

    Args:
        model, ids: as in `run_timing`.
        cache_sizes, policies: L in tokens, and which policies, one or several; as there when None.
        options: sinks, repeats, progress, and what to note in attrs.

    Returns:
        One row for each policy and cache size: policy, cache_size, milliseconds (median) with low and high (quartiles),
        kv_bytes, kv_bytes_kept, flops_per_token, samples.

    Raises:
        SinkscopeError: as `run_timing`.
    """
    from sinkscope.streaming.costs.decode import FAMILIES, run_timing  # not above: reading a record needs no torch

    return timing_table(run_timing(model, ids, cache_sizes, FAMILIES if policies is None else policies, **options))


def timing_table(record: xr.Dataset) -> pd.DataFrame:
    """The table of a record that `run_timing` made. Raises SinkscopeError for another record."""
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
    table = pd.DataFrame({name: _plain(record[f"{prefix}{name}"].values) for name in columns})
    table.attrs = {str(name): value for name, value in record.attrs.items() if name != attribute}
    return table


def _plain(values: np.ndarray) -> np.ndarray | list[str]:
    return values if values.dtype.kind in "iufb" else [str(value) for value in values]
