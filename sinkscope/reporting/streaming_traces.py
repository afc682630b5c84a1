"""The interactive figures of the streaming section, as plotly takes them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.perplexity import losses
from sinkscope.analysis.table_records import table_of_record
from sinkscope.figures.ablation import WIDEST_BARS
from sinkscope.figures.decode import MEBIBYTE
from sinkscope.figures.perplexity import bin_width, lines
from sinkscope.reporting.traces import COLOURS, Description, band, described, line, rounded

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


def log_perplexity(curve: xr.Dataset) -> Description:
    nll = losses(curve)
    traces = []
    for row, each in enumerate(lines(nll, bin_width(nll))):
        x, hover = rounded(each.centre, 6), f"{each.name}<br>token %{{x:,.0f}}: %{{y:.3f}} nats<extra></extra>"
        if each.is_sampled:
            points = {**line(x, each.mean, f"{each.name} (sampled)", row, mode="markers"), "hovertemplate": hover}
            points |= {"error_y": whiskers(each.mean, each.low, each.high, row)}
            traces.append(points | {"marker": {"size": 7, "color": COLOURS[row % 6], "symbol": SYMBOLS[row % 6]}})
        else:
            traces += band(x, each.low, each.high, COLOURS[row % 6])
            traces.append({**line(x, each.mean, each.name, row), "hovertemplate": hover})
    sizes = np.unique(nll["cache_size"].values) if "cache_size" in nll.coords else np.array([])
    marks = [
        {"type": "line", "x0": int(size), "x1": int(size), "y0": 0, "y1": 1, "yref": "paper",
         "line": {"color": "@quiet", "width": 1, "dash": "dot"}}
        for size in sizes if 0 < size < nll.sizes["token"]
    ]  # fmt: skip
    return described(
        traces, "position in the text (tokens)", "log-perplexity (nats per token)", height=420, shapes=marks
    )


def ablation(record: xr.Dataset) -> Description:
    table = table_of_record(record)
    counts = [f"{count:,}" for count in sorted(table["sinks"].unique())]
    names = ["cache_size", "kind", "positions"]
    traces = []
    for row, ((size, kind, positions), own) in enumerate(table.groupby(names, sort=False)):
        own = own.sort_values("sinks")
        name = f"cache of {size:,}: {kind}, {positions} positions"
        trace = line([f"{count:,}" for count in own["sinks"]], own["ppl"], name, row, mode="markers")
        trace["error_y"] = whiskers(own["ppl"].to_numpy(), own["low"].to_numpy(), own["high"].to_numpy(), row)
        trace["marker"] = {"size": 8, "color": COLOURS[row % 6], "symbol": SYMBOLS[row % 6]}
        traces.append(trace | {"hovertemplate": "%{x} sinks<br>perplexity %{y:.4~g}<extra></extra>"})
    values = table["ppl"].to_numpy(np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    wide = bool(len(values)) and values.max() > WIDEST_BARS * values.min()
    height = logarithmic(values) if wide else {"rangemode": "tozero"}
    return described(
        traces,
        "sinks kept (tokens)",
        f"perplexity{' (log scale)' if wide else ''}",
        xaxis={"type": "category", "categoryorder": "array", "categoryarray": counts},
        yaxis=height,
        showlegend=True,
    )


def decode_cost(record: xr.Dataset) -> Description:
    table = table_of_record(record)
    sizes = sorted(size for size in table["cache_size"].unique() if size > 0)
    traces = []
    for panel, (column, unit) in enumerate((("milliseconds", 1.0), ("kv_bytes", float(MEBIBYTE)))):
        axes = {"xaxis": "x2", "yaxis": "y2", "showlegend": False} if panel else {}
        for row, (name, every) in enumerate(table.groupby("policy", sort=False)):
            traces += [{**trace, **axes} for trace in _costs(str(name), every, column, unit, row, sizes)]
    ticks = {"type": "log", "tickmode": "array", "tickvals": [int(size) for size in sizes]}
    ticks |= {"ticktext": [f"{size:,}" for size in sizes]}
    time, memory = logarithmic(table["milliseconds"].to_numpy()), logarithmic(table["kv_bytes"].to_numpy() / MEBIBYTE)
    label = "cache size (tokens)"
    made = described(traces, label, "time per token (ms, log scale)", xaxis=ticks, yaxis=time)
    layout = made["layout"]
    layout["xaxis"]["domain"] = [0, 0.44]
    layout["xaxis2"] = {**ticks, "domain": [0.56, 1], "anchor": "y2", "title": {"text": label}}
    layout["yaxis2"] = {**memory, "anchor": "x2", "title": {"text": "key-value memory (MiB, log scale)"}}
    return made


def logarithmic(values: np.ndarray) -> Description:
    """A logarithmic axis around `values`, marked at 1, 2, 5, 10, 20 .. in plain numbers."""
    found = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log10(found.min()), np.log10(found.max())) if len(found) else (0.0, 0.0)
    powers = range(int(np.floor(low)) - 1, int(np.ceil(high)) + 2)
    marks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return {"type": "log", "tickmode": "array", "tickvals": marks, "ticktext": [f"{mark:,.6g}" for mark in marks]}


def whiskers(middle: np.ndarray, low: np.ndarray, high: np.ndarray, row: int) -> Description:
    """Bars from `low` to `high`, as plotly counts them: from the middle."""
    up, down = rounded(np.asarray(high) - middle), rounded(np.asarray(middle) - low)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": COLOURS[row % 6], "width": 3,
            "thickness": 1.2}  # fmt: skip


def _costs(name: str, own: pd.DataFrame, column: str, unit: float, row: int, sizes: list[int]) -> list[Description]:
    """One policy in one panel: its line, or a level across for one without a cache size."""
    own = own.sort_values("cache_size")
    bounded = own["cache_size"].to_numpy() > 0
    value = own[column].to_numpy(np.float64) / unit
    made = [line([sizes[0], sizes[-1]], [level] * 2, f"{name} (whole text)", row) for level in value[~bounded] if sizes]
    if bounded.any():
        hover = f"{name}, cache of %{{x:,}}<br>%{{y:.4~g}} {'ms' if unit == 1 else 'MiB'}<extra></extra>"
        there = [int(size) for size in own["cache_size"][bounded]]
        trace = line(there, value[bounded], name, row, mode="lines+markers")
        trace["marker"] = {"size": 7, "color": COLOURS[row % 6], "symbol": SYMBOLS[row % 6]}
        if unit == 1:
            low, high = (own[each].to_numpy(np.float64)[bounded] for each in ("low", "high"))
            trace["error_y"] = whiskers(value[bounded], low, high, row)
        made.append(trace | {"hovertemplate": hover})
    return made
