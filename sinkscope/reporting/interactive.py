"""The interactive figures as plotly takes them: a dict of data and layout each, nothing drawn yet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from sinkscope.analysis import mass_by_layer as layer_masses
from sinkscope.analysis import sink_mass
from sinkscope.analysis import sink_rate_curve as rates
from sinkscope.figures.activations import extremes
from sinkscope.figures.need import is_causal, lengths, over
from sinkscope.figures.norms import split
from sinkscope.figures.nulls import null_distance, null_entropy, null_mass
from sinkscope.figures.received import find_peaks, received_profile
from sinkscope.figures.sink_rate import default_lengths
from sinkscope.figures.spread import mean_by_distance, mean_entropy
from sinkscope.figures.style import number
from sinkscope.reporting import softmax_traces, streaming_traces
from sinkscope.reporting.traces import (
    COLOURS,
    MAGMA,
    Description,
    band,
    described,
    hover_text,
    line,
    rounded,
    thinned,
)


def sink_mass_heatmap(record: xr.Dataset) -> Description:
    mass = sink_mass(record, first=1).transpose("layer", "head").values
    null = null_mass(record, 1)
    trace = {
        "type": "heatmap",
        "z": rounded(mass),
        "zmin": 0,
        "zmax": 1,
        "colorscale": MAGMA,
        "hoverongaps": False,
        "hovertemplate": "layer %{y}, head %{x}<br>mass %{z:.4f}<br>" + f"uniform null {number(null)}<extra></extra>",
        "colorbar": {
            "title": {"text": "mass (probability)", "side": "right"},
            "thickness": 12,
            "outlinewidth": 0,
        },
    }
    height = int(np.clip(14 * mass.shape[0] + 110, 260, 900))
    return described([trace], "head", "layer", height=height, yaxis={"autorange": "reversed"})


def mass_by_layer(record: xr.Dataset) -> Description:
    heads = sink_mass(record, first=1).transpose("layer", "head").values
    layer, head = (grid.ravel().tolist() for grid in np.indices(heads.shape))
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": layer,
            "y": rounded(heads.ravel()),
            "customdata": head,
            "marker": {"color": "@faint", "size": 4},
            "name": "one head, first token",
            "hovertemplate": "layer %{x}, head %{customdata}<br>mass %{y:.4f}<extra></extra>",
        }
    ]
    for row, first in enumerate(sorted({1, min(4, record.sizes["sink"])})):
        mass = layer_masses(record, first=first)
        x, name = list(range(mass.sizes["layer"])), "first token" if first == 1 else f"first {first} tokens"
        traces += band(x, mass["lower"].values, mass["upper"].values, COLOURS[row])
        traces += [
            line(x, mass["mean"].values, name, row, mode="lines+markers"),
            line(
                [x[0], x[-1]],
                [null_mass(record, first)] * 2,
                f"uniform null, {name}",
                row,
                dash="dot",
                width=1,
            ),
        ]
    return described(traces, "layer", "mean attention (probability)", yaxis={"rangemode": "tozero"})


def sink_rate_curve(record: xr.Dataset) -> Description:
    curve = rates(record, lengths=default_lengths(record)).transpose("length", "epsilon", ...)
    x, traces, marks = rounded(curve["epsilon"].values), [], []
    for row, length in enumerate(curve["length"].values):
        each, null = curve.isel(length=row), float(curve["null_alpha"].values[row])
        traces += band(x, each["lower"].values, each["upper"].values, COLOURS[row % 6])
        traces.append(line(x, each["rate"].values, f"T = {int(length):,} (null α = {null:.3f})", row))
        marks.append(
            {
                "type": "line",
                "x0": null,
                "x1": null,
                "y0": 0,
                "y1": 1.02,
                "line": {"color": COLOURS[row % 6], "width": 1, "dash": "dot"},
            }
        )
    return described(
        traces,
        "threshold ε (on α, a probability)",
        "heads with α > ε (fraction)",
        shapes=marks,
        xaxis={"range": [0, 1]},
        yaxis={"range": [0, 1.02]},
    )


def received_by_position(record: xr.Dataset) -> Description:
    mean, strongest, null = received_profile(record, 0)
    peaks = find_peaks(mean, 10)
    place = thinned(mean, peaks)
    texts = record["token_text"].values[0] if "token_text" in record.coords else [""] * len(mean)
    shown = [[int(p), hover_text(texts[p]) if "token_text" in record.coords else "–"] for p in place]
    x, hover = (place + 1).tolist(), "position %{customdata[0]}: %{customdata[1]}<br>α %{y:.5f}"
    traces = [
        {
            **line(x, strongest[place], "strongest head", 5, width=1),
            "customdata": shown,
            "hovertemplate": hover,
        },
        {
            **line(x, mean[place], "mean over layers and heads", 0),
            "customdata": shown,
            "hovertemplate": hover,
        },
        line(x, null[place], "uniform null", 1, dash="dash"),
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [p + 1 for p in peaks],
            "y": rounded(mean[peaks]),
            "text": [hover_text(texts[p])[:60] for p in peaks] if "token_text" in record.coords else peaks,
            "textposition": "top center",
            "textfont": {"size": 11},
            "marker": {"color": "@ink", "size": 6},
            "cliponaxis": False,
            "name": "peaks",
            "hoverinfo": "skip",
        },
    ]
    return described(
        traces,
        "position + 1 (tokens, log scale)",
        "attention received α (log scale)",
        height=420,
        xaxis={"type": "log"},
        yaxis={"type": "log"},
    )


def norms(record: xr.Dataset) -> Description:
    traces = []
    for panel, variable in enumerate(("key_norm", "value_norm")):
        first, rest = split(record[variable], 1)
        x, kind = list(range(len(rest))), variable.split("_")[0]
        low, high = over(np.nanpercentile, rest, [5, 95], axis=1)
        axes = {"xaxis": "x2", "yaxis": "y2"} if panel else {}
        drawn = [
            *band(x, low, high, "@blue"),
            line(x, over(np.nanmean, rest, axis=1), f"{kind}s, all other tokens", 0),
            line(x, over(np.nanmean, first, axis=1), f"{kind}s, first token", 1, mode="lines+markers"),
        ]
        traces += [{**trace, **axes} for trace in drawn]
    made = described(traces, "layer", "Euclidean norm of keys", yaxis={"rangemode": "tozero"})
    made["layout"]["xaxis"]["domain"] = [0, 0.44]
    made["layout"]["xaxis2"] = {"domain": [0.56, 1], "anchor": "y2", "title": {"text": "layer"}}
    made["layout"]["yaxis2"] = {
        "anchor": "x2",
        "rangemode": "tozero",
        "title": {"text": "Euclidean norm of values"},
    }
    return made


def massive_activations(record: xr.Dataset) -> Description:
    first, rest, median = extremes(record)
    x = list(range(len(median)))
    traces = [
        line(x, first, "largest, first token", 1, dash="solid", mode="lines+markers"),
        line(x, rest, "largest, other tokens", 0, dash="dash", mode="lines+markers"),
        {**line(x, median, "median", 0, dash="solid"), "line": {"color": "@ink", "width": 1.2}},
        {
            **line(x, 1000 * median, "1,000 × median", 0),
            "line": {"color": "@quiet", "width": 1, "dash": "dot"},
        },
        {
            **line(x, [100.0] * len(x), "|a| = 100", 0),
            "line": {"color": "@quiet", "width": 1, "dash": "dashdot"},
        },
    ]
    return described(traces, "layer", "magnitude (model units, log scale)", yaxis={"type": "log"})


def entropy_by_layer(record: xr.Dataset) -> Description:
    heads = mean_entropy(record)
    layer, head = (grid.ravel().tolist() for grid in np.indices(heads.shape))
    x, null = list(range(len(heads))), null_entropy(record)
    name = "uniform null, mean ln(i + 1)" if is_causal(record) else "uniform null, ln T"
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": layer,
            "y": rounded(heads.ravel()),
            "customdata": head,
            "marker": {"color": "@faint", "size": 4},
            "name": "one head",
            "hovertemplate": "layer %{x}, head %{customdata}<br>%{y:.3f} nats<extra></extra>",
        },
        line(x, over(np.nanmean, heads, axis=1), "mean of the layer", 0, mode="lines+markers"),
        line([x[0], x[-1]], [null, null], name, 1, dash="dash"),
    ]
    return described(traces, "layer", "entropy of attention (nats)", yaxis={"rangemode": "tozero"})


def distance_profile(record: xr.Dataset) -> Description:
    layers = mean_by_distance(record)
    mean, length = over(np.nanmean, layers, axis=0), int(lengths(record).max())
    place = thinned(mean, [])
    x = (place + 1).tolist()
    traces = [
        line(x, mean[place], "mean over layers and heads", 0),
        line(x, null_distance(length)[place], "uniform null", 1, dash="dash"),
    ]
    return described(
        traces,
        "distance from query to key + 1 (tokens, log scale)",
        "mean attention (log scale)",
        xaxis={"type": "log"},
        yaxis={"type": "log"},
    )


INTERACTIVE: dict[str, Callable[[xr.Dataset], Description]] = {
    "sink_mass_heatmap": sink_mass_heatmap,
    "mass_by_layer": mass_by_layer,
    "sink_rate_curve": sink_rate_curve,
    "sink_rate_published": sink_rate_curve,
    "received_by_position": received_by_position,
    "norms": norms,
    "massive_activations": massive_activations,
    "entropy_by_layer": entropy_by_layer,
    "distance_profile": distance_profile,
    "log_perplexity": streaming_traces.log_perplexity,
    "ablation": streaming_traces.ablation,
    "decode_cost": streaming_traces.decode_cost,
    "forced_mass": softmax_traces.forced_mass,
    "collapse": softmax_traces.collapse,
    "dose_response": softmax_traces.dose_response,
    "effects": softmax_traces.effects,
    "predictability": softmax_traces.predictability,
}
