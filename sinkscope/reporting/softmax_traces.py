"""The interactive figures of the softmax section, as plotly takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis import amplification, dose_table, eviction_by_layer, intervention_table, predictability_table
from sinkscope.analysis.decomposition import collapse_table
from sinkscope.analysis.mass import NORMS
from sinkscope.analysis.predictability import mean_mass_by_bin
from sinkscope.figures.dose_response import places as dose_places
from sinkscope.figures.effects import places
from sinkscope.figures.forced_mass import DARKEST, PARTS, uniform_amplification
from sinkscope.figures.nulls import null_mass_from
from sinkscope.figures.predictability import MEASURE, sides, strongest_heads
from sinkscope.figures.style import number
from sinkscope.reporting.streaming_traces import SYMBOLS, logarithmic, whiskers
from sinkscope.reporting.traces import BLUES, COLOURS, Description, band, described, line, rounded

SIDES = {"below": ("@blue", "below both"), "neither": ("@faint", "neither"), "above": ("@vermilion", "above both")}


def forced_mass(record: xr.Dataset) -> Description:
    heads = amplification(record).transpose("layer", "head").values
    marks = [mark for mark in (1, 2, 5, 10, 20, 50, 100) if mark <= DARKEST]
    trace = {
        "type": "heatmap",
        "z": rounded(np.log10(np.minimum(heads, DARKEST))),
        "zmin": 0,
        "zmax": float(np.log10(DARKEST)),
        "colorscale": BLUES,
        "customdata": rounded(heads),
        "hoverongaps": False,
        "hovertemplate": "layer %{y}, head %{x}<br>amplification %{customdata:.4~g}<br>uniform null "
        + f"{number(uniform_amplification(record))}<extra></extra>",
        "colorbar": {
            "title": {"text": "amplification", "side": "right"},
            "thickness": 12,
            "outlinewidth": 0,
            "tickvals": [float(np.log10(mark)) for mark in marks],
            "ticktext": [f"{mark}" for mark in marks[:-1]] + [f"{marks[-1]} +"],
        },
        "showlegend": False,
    }
    height = int(np.clip(14 * len(heads) + 130, 300, 900))
    made = described([trace], "head", "layer", height=height, yaxis={"autorange": "reversed"})
    if not all(name in record for name in NORMS):
        return made
    trace["colorbar"] |= {"x": 0.40, "xpad": 4}
    table = eviction_by_layer(record)
    x = [int(layer) for layer in table["layer"]]
    for row, (name, (label, *_)) in enumerate(PARTS.items()):
        colour = ("@ink", "@blue", "@vermilion")[row]
        drawn = line(x, table[name], label, row, mode="lines+markers")
        drawn |= {"line": drawn["line"] | {"color": colour}, "marker": {"size": 5, "color": colour}}
        low, high = (table[f"{name}_{bound}"].to_numpy(np.float64) for bound in ("low", "high"))
        made["data"] += [{**each, "xaxis": "x2", "yaxis": "y2"} for each in (*band(x, low, high, colour), drawn)]
    made["layout"]["xaxis"]["domain"] = [0, 0.38]
    made["layout"]["xaxis2"] = {"domain": [0.6, 1], "anchor": "y2", "title": {"text": "layer"}}
    made["layout"]["yaxis2"] = {
        "anchor": "x2", "rangemode": "tozero", "title": {"text": "norm (times the head's output)"}
    }  # fmt: skip
    return made


def collapse(record: xr.Dataset) -> Description:
    table = collapse_table(record)
    traces = []
    for row, each in enumerate(table.to_dict("records")):
        share = f"<br>closes {100 * each['recovered']:.1f}% of the gap" if np.isfinite(each["recovered"]) else ""
        trace = line([float(each["ratio"])], [float(row)], str(each["part"]), row, mode="markers")
        middle, low, high = (np.array([each[name]]) for name in ("ratio", "ratio_low", "ratio_high"))
        traces.append(
            trace | {
                "marker": {"size": 9, "color": COLOURS[row % 6], "symbol": SYMBOLS[row % 6]},
                "error_x": whiskers(middle, low, high, row),
                "hovertemplate": f"{each['part']}<br>perplexity {each['ppl']:.4g}, %{{x:.3f}} times that with full "
                f"sinks{share}<extra></extra>",
                "showlegend": False,
            }
        )  # fmt: skip
    return described(
        traces,
        "perplexity over that with full sinks (log scale)",
        "what is left of the sinks",
        height=300,
        xaxis=logarithmic(table[["ratio", "ratio_low", "ratio_high"]].to_numpy(np.float64)),
        yaxis=_named(list(range(len(table))), list(table["part"])),
        shapes=[_level(1.0, "x")],
    )


def dose_response(record: xr.Dataset) -> Description:
    table = dose_table(record)
    doses = np.unique(table["dose"].to_numpy(np.float64))
    words = ["−∞" if dose == -np.inf else f"{dose:+g}".replace("-", "−") if dose else "0" for dose in doses]
    panels = (
        ("ratio", "ratio", "perplexity, times that at dose 0", 1.0),
        ("sink_mass", "mass", "mass (probability)", null_mass_from(table.attrs)),
        ("output", "output", "head output, times that at dose 0", 1.0),
    )
    traces: list[Description] = []
    shapes, axes = [], {}
    ticks = {"tickvals": rounded(dose_places(doses)), "ticktext": words}
    for panel, (column, bounds, label, level) in enumerate(panels):
        mark = "" if panel == 0 else str(panel + 1)
        for row, (arm, own) in enumerate(table.groupby("arm", sort=False)):
            own = own.sort_values("dose")
            name = "bias on the sinks" if arm == "sinks" else f"bias on {arm} tokens"
            traces += _doses(own, column, bounds, name, row, mark)
        axes[f"xaxis{mark}"] = {
            **ticks, "domain": [0.36 * panel, 0.36 * panel + 0.26], "anchor": f"y{mark}",
            "title": {"text": "dose (bias on the logit, nats)"},
        }  # fmt: skip
        axes[f"yaxis{mark}"] = {"anchor": f"x{mark}", "title": {"text": label}}
        if column == "ratio":
            axes[f"yaxis{mark}"] |= logarithmic(table[["ratio", "ratio_low", "ratio_high"]].to_numpy(np.float64))
        else:
            axes[f"yaxis{mark}"] |= {"rangemode": "tozero"}
        if level is not None and np.isfinite(level):
            shapes.append({**_level(level, "y"), "xref": f"x{mark} domain", "yref": f"y{mark}"})
    first, second = axes.pop("xaxis"), axes.pop("yaxis")
    made = described(traces, "dose (bias on the logit, nats)", panels[0][2], height=380, xaxis=first, yaxis=second)
    made["layout"] |= {**axes, "shapes": shapes}
    return made


def effects(record: xr.Dataset) -> Description:
    table = intervention_table(record)
    rows = table[table["role"] != "baseline"]
    y = np.array(places(rows["role"].tolist()))
    traces = []
    for panel, (column, bounds) in enumerate((("ratio", "ratio"), ("sink_mass", "mass"))):
        where = {"xaxis": "x2", "showlegend": False} if panel else {}
        for row, (role, name) in enumerate((("effect", "intervention"), ("control", "its control"))):
            own = (rows["role"] == role).to_numpy()
            if not own.any():
                continue
            middle, low, high = (
                rows[each].to_numpy(np.float64)[own] for each in (column, f"{bounds}_low", f"{bounds}_high")
            )
            trace = line(rounded(middle), y[own], name, row, mode="markers") | where
            trace |= {
                "marker": {"size": 8, "color": COLOURS[row], "symbol": SYMBOLS[row]},
                "text": list(rows["intervention"][own]),
            }
            trace |= {
                "error_x": whiskers(middle, low, high, row),
                "hovertemplate": "%{text}: %{x:.4~g}<extra></extra>",
                "cliponaxis": False,
            }
            traces.append(trace)
    ratio = rows[["ratio", "ratio_low", "ratio_high"]].to_numpy(np.float64)
    made = described(
        traces,
        "perplexity over that with nothing done (log scale)",
        "intervention",
        height=int(40 + 34 * len(rows) + 60),
        xaxis={**logarithmic(ratio), "domain": [0, 0.5]},
        yaxis={**_named(rounded(y), list(rows["intervention"])), "title": {"text": "intervention", "standoff": 14}},
    )
    made["layout"]["xaxis2"] = {"domain": [0.56, 1], "title": {"text": "mass (probability)"}, "rangemode": "tozero"}
    base = table[table["role"] == "baseline"]["sink_mass"]
    levels = [(1.0, "x"), *((float(value), "x2") for value in base), (null_mass_from(table.attrs), "x2")]
    made["layout"]["shapes"] = [{**_level(at, "x"), "xref": axis} for at, axis in levels if np.isfinite(at)]
    return made


def predictability(record: xr.Dataset) -> Description:
    start = int(record.attrs.get("start", 64))
    binned = mean_mass_by_bin(record, start=start)
    x = rounded(binned["middle"].values)
    traces = [
        *band(x, binned["lower"].values, binned["upper"].values, "@blue"),
        line(x, binned["mean"].values, "mean of all heads", 0, mode="lines+markers"),
        line(x, binned["null"].values, "uniform null", 1, dash="dash"),
    ]
    for row, (layer, head) in enumerate(strongest_heads(binned)):
        drawn = line(x, binned["sink_mass"].sel(layer=layer, head=head).values, f"layer {layer}, head {head}", row + 1)
        traces.append(drawn | {"line": drawn["line"] | {"color": "@quiet", "width": 1.2}})
    table = predictability_table(record, start=start)
    table = table[table["measure"] == MEASURE]
    kinds, edges = sides(table), np.linspace(-1, 1, 41)
    for kind, (colour, words) in SIDES.items():
        group = table["correlation"][kinds == kind]
        counts, _ = np.histogram(np.clip(group, -1, 1), edges)
        traces.append(
            {
                "type": "bar", "x": rounded((edges[:-1] + edges[1:]) / 2), "y": counts.tolist(), "width": 0.05,
                "name": f"{words}: {len(group):,} heads", "marker": {"color": colour}, "xaxis": "x2", "yaxis": "y2",
                "hovertemplate": "correlation near %{x:.2f}: %{y} heads<extra></extra>",
            }
        )  # fmt: skip
    made = described(
        traces, "entropy of the next token (nats)", "mass (probability)", height=420, yaxis={"rangemode": "tozero"},
        xaxis={"domain": [0, 0.44]}, barmode="stack",
    )  # fmt: skip
    found = table["correlation"].abs().max()
    reach = float(np.nan_to_num(min(1.0, np.ceil(10 * found) / 10), nan=1.0))
    made["layout"]["xaxis2"] = {
        "domain": [0.56, 1], "anchor": "y2", "title": {"text": "Spearman correlation of sink mass and entropy"},
        "range": [-reach, reach],
    }  # fmt: skip
    made["layout"]["yaxis2"] = {"anchor": "x2", "title": {"text": "heads"}}
    null = float(table["null"].iloc[0])
    made["layout"]["shapes"] = [
        {**_level(at, "x"), "xref": "x2", "yref": "y2 domain"} for at in (0.0, null) if np.isfinite(at)
    ]
    return made


def _doses(own: pd.DataFrame, column: str, bounds: str, name: str, row: int, mark: str) -> list[Description]:
    """One arm in one panel: a line and its band, and minus infinity apart."""
    doses, middle = own["dose"].to_numpy(np.float64), own[column].to_numpy(np.float64)
    low, high = (own[f"{bounds}_{bound}"].to_numpy(np.float64) for bound in ("low", "high"))
    x, finite = dose_places(doses), np.isfinite(doses)
    hover = {"hovertemplate": name + ", dose %{text}: %{y:.4~g}<extra></extra>", "cliponaxis": False}
    where: dict[str, Any] = {"xaxis": f"x{mark}", "yaxis": f"y{mark}"} if mark else {}
    made = band(rounded(x[finite]), low[finite], high[finite], COLOURS[row])
    drawn = line(rounded(x[finite]), middle[finite], name, row, mode="lines+markers")
    made.append(drawn | hover | {"text": [f"{dose:+g}" for dose in doses[finite]], "showlegend": not mark})
    if not finite.all():
        gone = line(rounded(x[~finite]), middle[~finite], name, row, mode="markers") | hover | {"showlegend": False}
        made.append(gone | {"text": ["−∞"], "error_y": whiskers(middle[~finite], low[~finite], high[~finite], row)})
    return [{**each, **where} for each in made]


def _named(places: list[Any], names: list[str]) -> Description:
    """An axis of rows from the top down, each with its name."""
    return {"tickvals": places, "ticktext": names, "autorange": "reversed", "showgrid": False}


def _level(at: float, axis: str) -> Description:
    """A dotted line across, where `axis` is at this value."""
    ends = {"x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper"}
    if axis == "y":
        ends = {"y0": at, "y1": at, "x0": 0, "x1": 1, "xref": "paper"}
    return {"type": "line", **ends, "line": {"color": "@quiet", "width": 1, "dash": "dot"}}
