"""The numbers a report begins with: each with its interval, its null and what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis import interval, sink_rate, sink_rate_curve, value_drain
from sinkscope.analysis.collapse import collapse_table, is_decomposed
from sinkscope.analysis.variables import is_causal
from sinkscope.figures.attention import null_entropy
from sinkscope.figures.eviction import evicted, uniform_amplification
from sinkscope.figures.hidden_states import extremes
from sinkscope.figures.requirements import lengths, tokens_named
from sinkscope.figures.sink_mass import null_mass
from sinkscope.figures.style import number
from sinkscope.reporting.softmax_findings import mean_amplification
from sinkscope.reporting.streaming_tables import collapse, streaming_sentence

COLUMNS = ("quantity", "unit", "value", "lower", "upper", "null", "times_null", "measured_on", "note")
EPSILON = 0.3  # Gu et al. 2024


def summary(records: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """One row per headline quantity; NaN where an interval or a null does not exist."""
    record = records["text"]
    rows: list[dict[str, Any]] = []
    if "sink_mass" in record:
        for first in sorted({1, min(4, record.sizes["sink"])}):
            rows.append(_mass(record, first))
        if is_causal(record):
            rows.append(_rate(record, "sink rate"))
            if "short" in records and "sink_mass" in records["short"]:
                rows.append(_rate(records["short"], "sink rate, published setting"))
    if "virtual_sink_mass" in record:
        rows.append(_over_sequences(record, "virtual_sink_mass", "mass on the learned sink", "probability"))
    if "entropy" in record:
        row = _over_sequences(record, "entropy", "entropy of attention", "nats")
        rows.append({**row, "null": null_entropy(record), "note": "null: uniform attention"})
    if "value_norm" in record and record.sizes["token"] > 1:
        rows.append(_drain(record))
    if "activation_max" in record and "activation_median" in record:
        rows.append(_activation(record))
    if (worse := collapse(records)) is not None:
        rows.append(_collapse(records["perplexity"], worse))
    if "forced" in records and "log_amplification" in records["forced"]:
        rows.append(_amplification(records["forced"]))
    if "collapse" in records:
        rows += _recovered(records["collapse"])
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    null = table["null"].astype(float)
    table["times_null"] = table["value"].astype(float) / null.where(null > 0)
    return table


def headline(records: Mapping[str, xr.Dataset]) -> str:
    """One plain sentence: how much, against which null, and how many heads; a second one on streaming."""
    return f"{_attention(records)} {streaming_sentence(records)}".strip()


def _attention(records: Mapping[str, xr.Dataset]) -> str:
    record = records["text"]
    table = summary(records).set_index("quantity")
    if f"mass on the {tokens_named(1)}" not in table.index:
        return f"{record.sizes.get('layer', 0)} layers measured; no sink mass in this record."
    mass: Any = table.loc[f"mass on the {tokens_named(1)}"]
    layers, heads = record.sizes["layer"], record.sizes["head"]
    within = f" [{100 * mass.lower:.1f}, {100 * mass.upper:.1f}]" if np.isfinite(mass.lower) else ""
    who = "the first token (BOS)" if record.attrs.get("bos") == "yes" else "the first token"
    text = (
        f"Across {layers} layers × {heads} heads {who} takes {100 * mass.value:.1f}%{within} of all "
        f"attention, "
        f"{number(float(mass.times_null), 2)} times the uniform null of {number(100 * float(mass.null), 2)}%"
    )
    if "sink rate" in table.index:
        rate = table.loc["sink rate"]
        text += f"; {100 * rate.value:.0f}% of heads give it α > {EPSILON} (T = {int(lengths(record).min()):,})"
    return text + "."


def per_sequence_mass(record: xr.Dataset, first: int) -> xr.DataArray:
    """Mass on the first `first` keys, mean over queries i >= first, layers and heads, [sequence]."""
    mass = record["sink_mass"].isel(sink=slice(0, first)).sum("sink", skipna=False)
    return mass.isel(query=slice(first, None)).mean(["query", "layer", "head"], dtype=np.float64)


def measured_on(record: xr.Dataset) -> str:
    """`8 × 1,024 tokens`: sequences times their (shortest to longest) length."""
    real = lengths(record)
    span = f"{real.min():,}" if real.min() == real.max() else f"{real.min():,} to {real.max():,}"
    return f"{len(real):,} × {span} tokens"


def _row(record: xr.Dataset, quantity: str, unit: str, value: float, **more: Any) -> dict[str, Any]:
    blank = {"lower": np.nan, "upper": np.nan, "null": np.nan, "note": ""}
    return {
        **blank,
        "quantity": quantity,
        "unit": unit,
        "value": value,
        "measured_on": measured_on(record),
        **more,
    }


def _mass(record: xr.Dataset, first: int) -> dict[str, Any]:
    spread = interval(per_sequence_mass(record, first), dim="sequence")
    return _row(
        record,
        f"mass on the {tokens_named(first)}",
        "probability",
        float(spread["mean"]),
        lower=float(spread["lower"]),
        upper=float(spread["upper"]),
        null=null_mass(record, first),
        note=f"mean over queries i ≥ {first}; null: uniform causal attention"
        if is_causal(record)
        else f"mean over queries i ≥ {first}; null: uniform attention",
    )


def _rate(record: xr.Dataset, quantity: str) -> dict[str, Any]:
    length = int(lengths(record).min())
    curve = sink_rate_curve(record, epsilons=[EPSILON], lengths=[length]).squeeze()
    rate = sink_rate(record, epsilon=EPSILON)
    equal = length == int(lengths(record).max())
    return _row(
        record,
        quantity,
        "fraction of heads",
        float(rate) if equal else float(curve["rate"]),
        lower=float(curve["lower"]),
        upper=float(curve["upper"]),
        null=float(rate.attrs["null_rate"]),
        note=f"α > {EPSILON} at T = {length}; α of a uniform causal head: {float(curve['null_alpha']):.4f}; "
        f"BOS: {record.attrs.get('bos', 'unknown')}",
    )


def _over_sequences(record: xr.Dataset, variable: str, quantity: str, unit: str) -> dict[str, Any]:
    values = record[variable]
    means = values.mean([dim for dim in values.dims if dim != "sequence"], dtype=np.float64)
    spread = interval(means, dim="sequence")
    return _row(
        record,
        quantity,
        unit,
        float(spread["mean"]),
        lower=float(spread["lower"]),
        upper=float(spread["upper"]),
    )


def _drain(record: xr.Dataset) -> dict[str, Any]:
    ratio = value_drain(record, first=1)["value_ratio"]
    return _row(
        record,
        "value norm, first token over the rest",
        "ratio",
        float(ratio.mean()),
        null=1.0,
        note="mean over layers and KV heads; below 1: the sink's value is drained",
    )


def _activation(record: xr.Dataset) -> dict[str, Any]:
    first, rest, median = extremes(record)
    largest = np.fmax(first, rest)
    layer = int(np.nanargmax(largest))
    place = "the first token" if not rest[layer] > first[layer] else "another token"
    return _row(
        record,
        "largest activation",
        "magnitude",
        float(largest[layer]),
        note=f"after layer {layer}, at {place}; {number(largest[layer] / median[layer])} times the layer's median",
    )


def _collapse(record: xr.Dataset, worse: Any) -> dict[str, Any]:
    return _row(
        record,
        "perplexity without sinks over that with",
        "ratio",
        float(worse.ratio),
        lower=float(worse.ratio_low),
        upper=float(worse.ratio_high),
        null=1.0,
        note=f"window over sinks + window, both a cache of {int(worse.cache_size):,} tokens, over the "
        f"{int(worse.tokens):,} tokens after the first eviction; not re-computation",
    )


def _amplification(record: xr.Dataset) -> dict[str, Any]:
    mean, lower, upper = mean_amplification(record)
    return _row(
        record,
        f"other weights without the {tokens_named(evicted(record))}",
        "times as much",
        mean,
        lower=lower,
        upper=upper,
        null=uniform_amplification(record),
        note="1/(1 − m), geometric mean over heads and queries; null: uniform causal attention",
    )


def _recovered(record: xr.Dataset) -> list[dict[str, Any]]:
    """How much of the collapse each half of a sink takes back; nothing where nothing collapses."""
    if not is_decomposed(record):
        return []
    halves = {"phantom, values zeroed": "phantom sinks (values zeroed)", "values only": "the values of sinks alone"}
    rows = []
    for row in collapse_table(record).to_dict("records"):
        if row["part"] in halves and np.isfinite(row["recovered"]):
            rows.append(
                _row(
                    record,
                    f"of the collapse, closed by {halves[str(row['part'])]}",
                    "share of the gap",
                    row["recovered"],
                    lower=row["recovered_low"],
                    upper=row["recovered_high"],
                    note=f"mean loss over {int(row['tokens']):,} tokens, cache of {int(row['cache_size']):,}; "
                    "window: 0%, full sinks: 100%",
                )
            )
    return rows
