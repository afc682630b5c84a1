"""What the softmax section found, in sentences made of its numbers and their intervals, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis import amplification, interval
from sinkscope.analysis.interventions import OVER_CONTROL
from sinkscope.analysis.predictability import mean_mass_by_bin
from sinkscope.analysis.variables import whole
from sinkscope.figures.eviction import evicted, uniform_amplification
from sinkscope.figures.requirements import tokens_named
from sinkscope.figures.style import number

Records = Mapping[str, xr.Dataset]
Tables = Mapping[str, pd.DataFrame]
STRONG = 10.0  # times as much: nine tenths of a head's attention are parked


def forced(records: Records, tables: Tables) -> str:
    record = records["forced"]
    mean, low, high = mean_amplification(record)
    heads = amplification(record).values
    heads = heads[np.isfinite(heads)]
    said = (
        f"Without the {tokens_named(evicted(record))}, all other weights would be multiplied by "
        f"{within(mean, low, high)} (geometric mean over heads and queries; uniform attention: "
        f"{number(uniform_amplification(record))}), and by {STRONG:.0f} or more in {(heads >= STRONG).sum():,} of "
        f"{heads.size:,} heads."
    )
    if "forced_mass" not in tables:
        return said
    table = tables["forced_mass"]
    denominator = int((table["lost_denominator_low"] > table["lost_value_high"]).sum())
    value = int((table["lost_value_low"] > table["lost_denominator_high"]).sum())
    if not np.isfinite(table["lost_value_low"]).any():
        return said
    return (
        f"{said} Of the change of a head's output, the lost denominator is the longer part in {denominator} of "
        f"{len(table)} layers and the lost value in {value}; in the others their intervals meet."
    )


def collapse(records: Records, tables: Tables) -> str:
    rows = {str(row["part"]): row for row in tables["collapse"].to_dict("records")}
    window = rows["window"]
    said = (
        f"Over the {int(window['tokens']):,} tokens after the first eviction from a cache of "
        f"{int(window['cache_size']):,}, the window's perplexity is "
        f"{within(window['ratio'], window['ratio_low'], window['ratio_high'])} times that with full sinks"
    )
    if not np.isfinite(window["recovered"]):
        return f"{said}: no gap that could be divided."
    shares = {part: _share(row) for part, row in rows.items() if part not in ("full sinks", "window")}
    phantoms = {"phantom, values zeroed": "with their values zeroed", "phantom, mean values": "with mean values"}
    told = [f"{shares[part]} {words}" for part, words in phantoms.items() if part in shares]
    parts = [f"phantom sinks close {' and '.join(told)}"] if told else []
    if "values only" in shares:
        alone = "the values alone, out of the denominator,"
        parts.append(f"{alone} {'' if told else 'close '}{shares['values only']}")
    worse = "; below zero is worse than the window" if any(each.startswith("−") for each in shares.values()) else ""
    return f"{said}. Of that gap in mean loss, {', and '.join(parts)}{worse}."


def dose(records: Records, tables: Tables) -> str:
    table = tables["dose_response"]
    count = int(records["dose"].attrs.get("count", 1))
    sinks, random = (table[table["arm"] == arm].sort_values("dose").to_dict("records") for arm in ("sinks", "random"))
    other = "a random token" if count == 1 else f"{count} random tokens"
    first = tokens_named(count)
    parts = []
    for row in (0, -1):
        of, control = sinks[row], random[row]
        amount = "gone" if of["dose"] == -np.inf else f"at a dose of {of['dose']:+g}".replace("-", "−")
        parts.append(
            f"with the {first} {amount} perplexity is {_ratio(of)} times that at dose 0, with {other} {_ratio(control)}"
        )
    return f"{parts[0][0].upper()}{'; '.join(parts)[1:]}. The mass on the {first} goes from " + (
        f"{number(sinks[0]['sink_mass'])} to {number(sinks[-1]['sink_mass'])}."
    )


def interventions(records: Records, tables: Tables) -> str:
    table = tables["interventions"]
    effects = table[(table["role"] == "effect") & table["over_control"].notna()]
    more, less = effects["over_control_low"] > 1, effects["over_control_high"] < 1
    parts = []
    for which, words in ((more, "higher"), (less, "lower")):
        if which.any():
            rows = effects[which].to_dict("records")
            told = ", ".join(f"{row['intervention']} {within(*(row[name] for name in OVER_CONTROL))}" for row in rows)
            parts.append(f"Perplexity is {words} than under the control, by the factor given, for: {told}.")
    same = effects[~more & ~less]["intervention"]
    if len(same):
        parts.append(f"Not told apart from their controls: {', '.join(same)}.")
    return " ".join(parts)


def predictability(records: Records, tables: Tables) -> str:
    record, start = records["predictability"], int(records["predictability"].attrs.get("start", 64))
    (row,) = (each for each in tables["predictability"].to_dict("records") if each["measure"] == "entropy")
    binned = mean_mass_by_bin(record, start=start)
    mean, lower, upper = (binned[name].values for name in ("mean", "lower", "upper"))
    ends = [within(mean[place], lower[place], upper[place]) for place in (0, -1)]
    nulls = [number(float(binned["null"].isel(bin=place))) for place in (0, -1)]
    first = tokens_named(int(record.attrs.get("first", record.sizes["sink"])))
    heads = int(row["heads"])
    return (
        f"Mean mass on the {first} is {ends[0]} where the next token is most predictable (the lowest tenth of entropy) "
        f"and {ends[1]} where it is least (uniform null: {nulls[0]} and {nulls[1]}). Of {heads:,} heads, "
        f"{int(row['below']):,} give the {first} less the higher the entropy, and {int(row['above']):,} more, with "
        f"intervals beyond both zero and the null (up to {number(0.05 * heads, 2)} would by chance)."
    )


FINDINGS: dict[str, tuple[str, Callable[[Records, Tables], str]]] = {
    "forced_mass": ("forced", forced),
    "collapse": ("collapse", collapse),
    "dose_response": ("dose", dose),
    "effects": ("interventions", interventions),
    "predictability": ("predictability", predictability),
}
"""By plate: the record it needs, and what makes the sentence."""


def finding(name: str, records: Records, tables: Tables) -> str:
    """What the plate of this name shows, in words; nothing for a plate that shows no result of an intervention."""
    record, say = FINDINGS.get(name, ("", None))
    return say(records, tables) if say is not None and record in records else ""


def mean_amplification(record: xr.Dataset) -> tuple[float, float, float]:
    """Geometric mean over heads and queries, and its interval over texts (NaN with one)."""
    logs = whole(record)["log_amplification"].astype("float64").mean(["layer", "head", "query"], skipna=True)
    found = interval(logs)
    return tuple(float(np.exp(found[name])) for name in ("mean", "lower", "upper"))  # type: ignore[return-value]


def within(value: float, low: float, high: float) -> str:
    """`1.93 [1.80, 2.06]`; without an interval where there is none."""
    shown = [number(float(each)).replace("-", "−") for each in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if np.isfinite(low) and np.isfinite(high) else shown[0]


def _share(row: Mapping[Hashable, Any]) -> str:
    value, low, high = (100 * row[name] for name in ("recovered", "recovered_low", "recovered_high"))
    return f"{value:.0f}% [{low:.0f}, {high:.0f}]".replace("-", "−")


def _ratio(row: Mapping[Hashable, Any]) -> str:
    return within(row["ratio"], row["ratio_low"], row["ratio_high"])
