"""Tables as records and back, so that all a report shows is kept in one kind of file.

A table of a sweep becomes a record with a dimension "cell", one variable for each column. Costs, one row per policy,
join the perplexity record as variables named cost_*.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.errors import SinkscopeError

DIM = "cell"
COST = "cost_"


def record_of_table(table: pd.DataFrame) -> xr.Dataset:
    """A table as a record [cell]; attrs are those of the table, and `columns`, their order."""
    columns = {str(name): (DIM, table[name].to_numpy()) for name in table.columns}
    return xr.Dataset(columns, attrs={**_attributes(table), "columns": ", ".join(columns)})


def table_of_record(record: xr.Dataset) -> pd.DataFrame:
    """The table that `record_of_table` made a record of. Raises SinkscopeError for another record."""
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


def _attributes(table: pd.DataFrame) -> dict[str, object]:
    return {str(name): value for name, value in table.attrs.items()}
