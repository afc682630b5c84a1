"""The collapse of window attention in a report: what each half of a sink takes back of it, in words and tables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.batches import scope_said
from sinkscope.analysis.factorial import CELLS, factorial_table
from sinkscope.analysis.perplexity import collapse_table, is_decomposed, policy_parts
from sinkscope.figures.style import ratio_said
from sinkscope.reporting.content import Item, Numbers, Table


def say_collapse(record: xr.Dataset, table: pd.DataFrame) -> str:
    rows = {str(row["part"]): row for row in table.to_dict("records")}
    window = rows["window"]
    said = (
        f"Over the {int(window['tokens']):,} tokens after the first eviction from a cache of "
        f"{int(window['cache_size']):,}, the window's perplexity is {ratio_said(window)} times that with full sinks"
    )
    if not np.isfinite(window["recovered"]):
        return f"{said}: no gap that could be divided."
    said += f" ({scope_said(table.attrs['bounds'], window)})"
    shares = {part: _share(row) for part, row in rows.items() if part not in ("full sinks", "window")}
    phantoms = {"phantom, values zeroed": "with their values zeroed", "phantom, mean values": "with mean values"}
    told = [f"{shares[part]} {words}" for part, words in phantoms.items() if part in shares]
    parts = [f"phantom sinks close {' and '.join(told)}"] if told else []
    if "values only" in shares:
        alone = "the values alone, out of the denominator,"
        parts.append(f"{alone} {'' if told else 'close '}{shares['values only']}")
    worse = "; below zero is worse than the window" if any(each.startswith("−") for each in shares.values()) else ""
    return f"{said}. Of that gap in mean loss, {', and '.join(parts)}{worse}.{say_halves(record)}"


def say_halves(record: xr.Dataset) -> str:
    """Both orders of the two halves, and their interaction; nothing where a half was not measured, or no gap is."""
    if not {*CELLS} <= {*policy_parts(record)}:
        return ""
    told = {}
    for row in factorial_table(record).to_dict("records"):
        if not np.isfinite(row["share"]):
            return ""
        ends = {"": "share", "_low": "low", "_high": "high"}
        told[str(row["effect"])] = _share({f"recovered{end}": row[name] for end, name in ends.items()})
    return (
        f" The order decides: the place in the denominator closes {told['denominator, first']} where it comes first "
        f"and {told['denominator, after the value']} where the value is there already, the value "
        f"{told['value, first']} and {told['value, after the denominator']}; their interaction is "
        f"{told['interaction']} of the gap, and over both orders (Shapley) {told['denominator, Shapley']} are the "
        f"denominator's and {told['value, Shapley']} the value's."
    )


def recovered(record: xr.Dataset) -> Numbers:
    """How much of the collapse each half of a sink takes back; nothing where nothing collapses."""
    if not is_decomposed(record):
        return []
    halves = {"phantom, values zeroed": "phantom sinks (values zeroed)", "values only": "sink values alone"}
    quantity, window = "share of the collapse recovered by ", "window: 0%, full sinks: 100%"
    return [
        {
            "quantity": quantity + halves[str(row["part"])], "unit": "share of the gap", "value": row["recovered"],
            "lower": row["recovered_low"], "upper": row["recovered_high"],
            "note": f"mean loss over {int(row['tokens']):,} tokens, cache of {int(row['cache_size']):,}; {window}",
        }
        for row in collapse_table(record).to_dict("records")
        if row["part"] in halves and np.isfinite(row["recovered"])
    ]  # fmt: skip


def _share(row: Mapping[Hashable, Any]) -> str:
    value, low, high = (100 * row[name] for name in ("recovered", "recovered_low", "recovered_high"))
    bounds = f" [{low:.0f}, {high:.0f}]" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{value:.0f}%{bounds}".replace("-", "−")


COLLAPSE = (
    Item(
        "collapse",
        "The collapse, decomposed",
        record="collapse",
        variables="nll",
        figure=draw.collapse,
        sentence=say_collapse,
        numbers=recovered,
        meaning="Perplexity of the same tokens in caches of the same size, positions counted in the cache. Full "
        "sinks: the first tokens stay beside the window. Phantom: their keys stay in the denominator, their values "
        "are zeroed or replaced by the mean of the values that the query sees. Values only: what the sinks would "
        "hand on is added, their keys are out of the denominator of the others. Window: they are gone; nothing is "
        "re-computed. All of it in every layer at once. Whiskers are paired 95% t intervals of the ratio over "
        "segments of the text, or batches of fewer than four; the shares are of the gap in mean loss between window "
        "and full sinks, and below zero where a part is worse than none.",
        table=Table(
            collapse_table,
            title="The collapse of window attention, decomposed",
            meaning="Over tokens after the first eviction. Phantom sinks: keys in the denominator, values zeroed or "
            "replaced by their mean. Values only: values added, keys out of the denominator. Ratios are to full sinks, "
            "and recovered is the share of the gap in mean loss between window (0) and full sinks (1); paired 95% "
            "t intervals over segments of the text, or over eight batches of fewer than four, left out where those "
            "drift; of shares Fieller's.",
        ),
    ),
    Item(
        "collapse_halves",
        "The two halves of a sink, in both orders",
        record="collapse",
        variables="nll",
        table=factorial_table,
        meaning="The same losses as a two-by-two design: with and without the place in the denominator, with and "
        "without the value. Full sinks have both, phantoms (values zeroed) the first, values only the second, the "
        "window neither. Share: of the gap in mean loss between window and full sinks. What a half closes depends on "
        "whether the other is there, so both orders stand here, each adding up to 100%; the interaction is 100% less "
        "what both close first; Shapley's share is the mean over the orders. Paired 95% intervals (Fieller), all of "
        "the same segments or batches of the text.",
    ),
)
