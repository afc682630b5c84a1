"""What the page of an atlas shows: the headline numbers of several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.atlas import (
    PUBLISHED,
    strength_and_collapse,
    vocabularies,
)
from sinkscope.errors import SinkscopeError
from sinkscope.reporting.content import MAIN, Item, Records, Section

KIND = "atlas"
HEADLINE = "headline"


def stored(table: pd.DataFrame, dim: str, attributes: Mapping[Any, Any]) -> xr.Dataset:
    """A table as a record; numbers that are missing in some rows are NaN, and words empty."""
    columns = {}
    for name in table.columns:
        values = table[name]
        is_text = not pd.api.types.is_numeric_dtype(values)
        columns[f"{dim}_{name}" if name == dim else str(name)] = (
            dim, values.fillna("").astype(str).to_numpy(object) if is_text else values.to_numpy()
        )  # fmt: skip
    return xr.Dataset(columns, attrs=dict(attributes))


def _table(record: xr.Dataset) -> pd.DataFrame:
    dim = str(next(iter(record.dims)))
    table = pd.DataFrame({str(name).removeprefix(f"{dim}_"): each.values for name, each in record.data_vars.items()})
    table.attrs = dict(record.attrs)
    return table


def say_atlas(record: xr.Dataset, table: pd.DataFrame) -> str:
    """What differs, whether strength predicts collapse, and what cannot be compared."""
    said = []
    if other := [
        f"{row['model']} ({row['differs'].replace('_', ' ')})" for row in table.to_dict("records") if row["differs"]
    ]:
        said.append(f"These differ from the first in more than the model: {'; '.join(other)}.")
    try:
        found = strength_and_collapse(table)
        known = found["low"] == found["low"]
        within = f" [{found['low']:.2f}, {found['high']:.2f}], if they were independent of each other" if known else ""
        said.append(
            f"Over {found['n']:.0f} models the rank correlation of sink mass with collapse is "
            f"{found['rho']:.2f}{within}."
        )
    except SinkscopeError as reason:
        said.append(f"Whether strong sinks go with a large collapse: {reason}")
    return " ".join(filter(None, [*said, vocabularies(table)]))


def headline(records: Records) -> str:
    """How many models, and between which values."""
    table = _table(records[MAIN])
    said = f"{len(table)} model{'s' * (len(table) > 1)}: the first token takes "
    said += f"{_between(100 * table['sink_mass'], 1, '%')} of all attention (T = {int(table['T'].iloc[0]):,})"
    collapse = table["collapse"].dropna() if "collapse" in table else pd.Series(dtype=float)
    if len(collapse):
        said += f", and without sinks perplexity is {_between(collapse, 2)} times that with them"
        held = int(((table["collapse_low"] <= 1) & (table["collapse_high"] >= 1)).sum())
        said += f" (in {held} of {len(collapse)} the 95% interval holds 1)" * (held > 0)
    return f"{said}."


def _between(values: pd.Series, digits: int, unit: str = "") -> str:
    """The smallest and the largest value, or the one that all show."""
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}{unit}" for value in (values.min(), values.max())))


def _compared(record: xr.Dataset) -> Any:
    table = _table(record)
    return draw.comparison(table[np.isfinite(table["collapse"])])


def _described(record: xr.Dataset) -> Any:
    table = _table(record)
    return draw.comparison.describe(table[np.isfinite(table["collapse"])])


_compared.describe = _described  # type: ignore[attr-defined]


def _published(record: xr.Dataset) -> pd.DataFrame:
    return PUBLISHED.assign(collapse=PUBLISHED["window"] / PUBLISHED["sinks"])


ITEMS = (
    Item(
        "atlas",
        "One row for each model",
        variables="sink_mass",
        table=_table,
        sentence=say_atlas,
        meaning="Mass on the first token and sink rate over the tokens that all texts have; the published rate over "
        "many short texts (Gu et al. 2024); collapse: perplexity of the window over that of sinks + window of the same "
        "cache, after the first eviction; sinks needed: the fewest with which perplexity is within 1% of that with the "
        "most; massive tokens: tokens of a text with a massive activation (Sun et al. 2024). Tokens as: models of one "
        "name there read the same tokens. 95% intervals over texts.",
    ),
    Item(
        "comparison",
        "Strength of the sinks and collapse",
        variables=("collapse_low", "cache_size"),
        figure=_compared,
        meaning="Collapse against sink rate and mass. Hollow points differ from the first model in more than the "
        "model.",
    ),
    Item(
        HEADLINE,
        "Every headline number of every report",
        record=HEADLINE,
        variables="quantity",
        table=_table,
        meaning="As the summaries of the reports have them, each with its interval and its null.",
    ),
    Item(
        "published",
        "Published figures, measured by others",
        variables="sink_mass",
        table=_published,
        meaning="Perplexity without sinks and with four, and their ratio: Xiao et al. 2023 (StreamingLLM), Table 2. "
        "Other texts, other caches: to be set beside the rows above, not among them.",
    ),
)
ATLAS = Section(
    "Models side by side",
    ITEMS,
    None,
    records={MAIN: "The atlas", HEADLINE: "Headline numbers"},
    headline=headline,
)
"""`Report.open(folder)` of a saved atlas opens one by itself."""
