"""What forgetting costs: loss along a text, perplexity against the number of sinks, time and memory of a token."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.ablation import ablation_table
from sinkscope.analysis.batches import Units
from sinkscope.analysis.costs import timing_table
from sinkscope.analysis.intervals import same_rows
from sinkscope.analysis.perplexity import losses
from sinkscope.analysis.reading import reads
from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import need, need_columns
from sinkscope.figures.style import even_ticks, headroom

BINS = 64
FEWEST_TOKENS = 64
MOST_LINEAR = 1.5
"""Above this ratio of two policies' typical losses the axis is logarithmic."""
WIDEST_BARS = 4.0
"""Above this ratio of perplexities the axis is logarithmic, where a bar's length means nothing: points then."""
KINDS = ("first", "line breaks", "random")
POSITIONS = ("cache", "original")
PANELS_IN_A_ROW = 3
MEBIBYTE = 2**20
FAINTEST = 1e-5
SMOOTH = 16  # tokens in a running mean
SINKS = 4  # first keys that stand widened beside a map
STRIP = 0.045  # of its width, for each of them
FEW = 32  # keys, with which a map shows its first ones by itself


@figure
@reads
def log_perplexity(curve: xr.Dataset, width: int | None = None) -> m.Drawing:
    """Mean loss in nats against position, for every policy of a perplexity record, with pointwise 95% intervals.

    A bin holds the tokens of all sequences at its positions; its interval is Student's t over the sequences where there
    are four or more, and otherwise over eight batches of the bin, and then of this text alone. Policies that read the
    same passage rise and fall together, so overlapping bands do not mean that they are equal: for their differences see
    `ppl_table`.
    A policy scored at less than half as many tokens as another (re-computation) is drawn as points, each for as many
    bins as hold 64 of its tokens. A plain mean of so few says more about which tokens they are than about the policy.
    So a point stands on the policy most like it, moved by the mean difference at the sampled tokens (the difference
    estimator: Cochran 1977, chapter 7); its bar is the interval of that difference.
    Dotted lines: a cache is full, and eviction begins. The axis is logarithmic if the typical loss of one policy is 1.5
    times another's, so that the others stay apart.

    >>> figures.log_perplexity(record).savefig("log_perplexity.pdf")

    Args:
        curve: of `sinkscope.perplexity`.
        width: positions in a bin; by default the power of two nearest to a 64th of the text, with 64 tokens or more.

    Raises:
        SinkscopeError: `curve` holds no losses, or `width` is below 1.
    """
    nll = losses(curve)
    width = bin_width(nll) if width is None else whole_number(width, "width", 1)
    counts = nll.notnull().sum(["sequence", "token"]).values
    sampled = 2 * counts < counts.max()
    marks: list[m.Mark] = []
    for row, name in enumerate(map(str, nll["policy"].values)):
        hover = f"{name}\ntoken {{x:,.0f}}: {{y:.3f}} nats"
        if sampled[row]:
            bins = max(1, ceil(FEWEST_TOKENS * nll.sizes["token"] / (max(counts[row], 1) * width)))
            centre, mean, low, high = estimated(nll.values[row], nll.values[~sampled], width, bins)
            look = m.Look.of(row, marker=m.marker_of(row), size=4, hollow=True)
            marks.append(m.Points(centre, mean, look, f"{name} (sampled)", f"mean-{name}", low, high, hover))
        else:
            centre, mean, low, high = binned(nll.values[row], width)
            look = m.Look.of(row, width=1.1)
            marks.append(m.Line(centre, mean, look, name, f"mean-{name}", low, high, hover, band=0.12))
    tokens = nll.sizes["token"]
    sizes = np.unique(nll["cache_size"].values if "cache_size" in nll.coords else [])
    marks += [m.Reference(x=float(size), id=f"full-{size}") for size in sizes if 0 < size < tokens]
    levels = nll[~sampled].mean(["sequence", "token"]).values
    is_log = bool(levels.min() > 0 and levels.max() > MOST_LINEAR * levels.min())
    note = "; points: nearest line plus the difference at sampled tokens" if sampled.any() else ""
    x = m.Axis("position in the text (tokens)", limits=(0, tokens), plain=True)
    label = "log-perplexity (nats per token)"
    y = m.Axis(label, "log", ticks="round") if is_log else m.Axis(label)
    title = f"mean over {width:,} positions, with pointwise 95% intervals; dotted: a cache is full{note}"
    legend = m.Legend(title, columns=3, size=7, handle=3.2)
    return m.Drawing([m.Panel(marks, x, y)], curve.attrs, m.PAGE, 3.0, legend=legend, page_height=420)


def binned(nll: np.ndarray, width: int) -> np.ndarray:
    """[4, bin] mean position, mean loss and its lower and upper bound in each bin of `width` positions.

    A bin without tokens is NaN, with few it has no bounds. `nll` is [sequence, token], NaN where not scored.
    """
    starts, text = range(0, nll.shape[1], width), same_rows(nll)
    found = np.full((4, len(starts)), np.nan)
    for column, start in enumerate(starts):
        piece = nll[:, start : start + width]
        scored = np.isfinite(piece)
        if scored.any():
            found[0, column] = start + np.nonzero(scored)[1].mean()
            found[1, column] = piece[scored].mean()
            parts = [row[each][:, None] for row, each in zip(piece, scored, strict=True)]
            own = Units([parts], text).of(lambda mean: mean)
            found[2:, column] = own.low[0], own.high[0]
    return found


def estimated(nll: np.ndarray, others: np.ndarray, width: int, bins: int) -> np.ndarray:
    """As `binned`, of a sampled policy, one value for each `bins` bins that have samples: the mean of one of `others`
    [policy, sequence, token] in the bin in the middle, plus the mean difference to it at all the samples.

    The one whose difference varies least; none, if the losses themselves vary less.
    """
    candidates = [np.zeros_like(nll), *others]
    spread = [np.nanvar(nll - other) if np.isfinite(nll - other).any() else np.inf for other in candidates]
    nearest = candidates[int(np.argmin(spread))]
    found = binned(nll - nearest, width * bins)
    found = found[:, np.isfinite(found[0])]
    place, level, _, _ = binned(nearest, width)
    middle = (found[0] // width).astype(int)
    return np.vstack([place[middle], found[1:] + level[middle]])


def bin_width(nll: xr.DataArray) -> int:
    """Positions in a bin, where none are asked for."""
    least = min(FEWEST_TOKENS / nll.sizes["sequence"], nll.sizes["token"] / 8)
    return int(2 ** max(0, round(np.log2(max(nll.sizes["token"] / BINS, least)))))


@figure
@reads
def ablation(table: xr.Dataset | pd.DataFrame) -> m.Drawing:
    """Perplexity for each number of sinks, one panel per cache size, with 95% intervals as whiskers.

    Bars from zero; where the perplexities differ by more than a factor of 4, points on a logarithmic axis. Colour is
    the kind of sink; hatched or hollow are the positions of the text.

    >>> figures.ablation(record).savefig("ablation.pdf")

    Args:
        table: of `sinkscope.ablate`, or its record: one row for each combination of sinks, cache_size, positions
            ("cache", "original") and kind ("first", "line breaks", "random"), with ppl, low, high.

    Raises:
        SinkscopeError: a column is missing, the table is empty, or a combination comes twice.
    """
    table = ablation_table(table) if isinstance(table, xr.Dataset) else table
    if "kind" in table:
        table = table[table["kind"] != ""]  # other policies beside the factors have no number of sinks to stand at
    combination = ["sinks", "cache_size", "positions", "kind"]
    need_columns(table, "ablation", *combination, "ppl", "low", "high")
    twice = table.duplicated(combination)
    if twice.any():
        row = ", ".join(f"{name}={table.loc[twice, name].iloc[0]}" for name in combination)
        raise SinkscopeError(f"ablation takes one row for each combination, and {row} comes twice: choose one.")
    caches = sorted(table["cache_size"].unique())
    values = table["ppl"].to_numpy(np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    is_log = bool(len(values)) and values.max() > WIDEST_BARS * values.min()
    rows = ceil(len(caches) / PANELS_IN_A_ROW)
    columns = ceil(len(caches) / rows)
    panels = []
    for number, cache in enumerate(caches):
        own = table[table["cache_size"] == cache]
        counts = sorted(own["sinks"].unique())
        marks = _groups(table, own, counts, is_log)
        label = ("perplexity (log scale)" if is_log else "perplexity") if number % columns == 0 else ""
        y = m.Axis(label, "log", ticks="round") if is_log else m.Axis(label, limits=(0, None))
        x = m.Axis("sinks kept (tokens)", limits=(-0.5, len(counts) - 0.5), ticks=range(len(counts)),
                   names=[f"{count:,}" for count in counts])  # fmt: skip
        panels.append(m.Panel(marks, x, y, title=f"cache of {cache:,} tokens"))
    legend = m.Legend("sinks, positions (in the cache or original); whiskers: 95%", columns=3, size=6, handle=1.6)
    return m.Drawing(
        panels, table.attrs, m.COLUMN if columns == 1 else m.PAGE, 0.9 + 1.9 * rows, columns, shared="y",
        legend=legend, page_height=100 + 280 * rows,
    )  # fmt: skip


def _groups(table: pd.DataFrame, rows: pd.DataFrame, counts: list[int], is_log: bool) -> list[m.Mark]:
    """One cache size: groups of bars or points, one group for each number of sinks."""
    kinds, positions = _ordered(table["kind"], KINDS), _ordered(table["positions"], POSITIONS)
    pairs = set(zip(table["kind"], table["positions"], strict=True))
    series = [(kind, each) for kind in kinds for each in positions if (kind, each) in pairs]
    width = 0.8 / len(series)
    order = [series.index(pair) for pair in zip(rows["kind"], rows["positions"], strict=True)]
    rows = rows.assign(order=order, group=rows["sinks"].map(counts.index)).sort_values("order", kind="stable")
    together = rows.groupby("group")["order"]
    places = rows["group"] + (together.cumcount() - (together.transform("size") - 1) / 2) * width
    marks: list[m.Mark] = []
    if is_log:
        marks += [m.Reference(x=edge + 0.5, look=m.Look("grid", width=0.5)) for edge in range(len(counts) - 1)]
    for number, (kind, each) in enumerate(series):
        part, place = rows[rows["order"] == number], places[rows["order"] == number]
        row, hollow = kinds.index(kind), each != positions[0]
        ppl, low, high = part["ppl"].where(np.isfinite(part["ppl"])), part["low"], part["high"]
        name, gid = f"{kind}, {each}", f"{kind}-{each}"
        hover, texts = f"{name}\n{{text}} sinks: perplexity {{y:.4~g}}", [f"{count:,}" for count in part["sinks"]]
        if is_log:
            look = m.Look.of(row, dash="solid", marker=m.marker_of(row), size=3.5, hollow=hollow)
            marks.append(m.Points(place, ppl, look, name, gid, low, high, hover, texts))
        else:
            look = m.Look.of(row, dash="solid", hollow=hollow)
            hatch: m.Hatch = "/" if hollow else ""
            marks.append(m.Bars(place, ppl, look, name, gid, low, high, hover, texts, width * 0.9, hatch=hatch))
    return marks


def _ordered(values: pd.Series, known: tuple[str, ...]) -> list[str]:
    found = list(dict.fromkeys(values))
    return [*(each for each in known if each in found), *(each for each in found if each not in known)]


@figure
@reads
def decode_cost(table: xr.Dataset | pd.DataFrame) -> m.Drawing:
    """Time per token (ms, with its interval) and key-value memory (MiB) against cache size, one line per policy.

    Both axes are logarithmic: a slope of one is a cost in proportion to the cache. Policies that cost the same have
    nested marks.

    >>> figures.decode_cost(record).savefig("decode_cost.pdf")

    Args:
        table: of `sinkscope.time_per_token`, or its record: one row for each policy and cache size, with milliseconds,
            low, high, kv_bytes. Rows without a cache size (below 1: dense) are drawn across, as a level.

    Raises:
        SinkscopeError: a column is missing, or the table is empty.
    """
    table = timing_table(table) if isinstance(table, xr.Dataset) else table
    need_columns(table, "decode_cost", "policy", "cache_size", "milliseconds", "low", "high", "kv_bytes")
    names = list(dict.fromkeys(table["policy"]))
    sizes = np.unique(table["cache_size"][table["cache_size"] > 0])
    shown = sizes[:: max(1, ceil(len(sizes) / 7))]
    panels = []
    for column, unit, label in (("milliseconds", "ms", "time per token\n(ms, log scale)"),
                                ("kv_bytes", "MiB", "key-value memory\n(MiB, log scale)")):  # fmt: skip
        marks: list[m.Mark] = []
        for row, name in enumerate(names):
            own = table[table["policy"] == name].sort_values("cache_size")
            value = own[column] / (MEBIBYTE if unit == "MiB" else 1)
            bounded = own["cache_size"] > 0
            size = 3 + 1.4 * (len(names) - 1 - row)
            look = m.Look.of(row, marker=m.marker_of(row), size=size, hollow=row < len(names) - 1)
            for level in value[~bounded]:
                words = "" if bounded.any() else f"{name} (whole text)"
                marks.append(m.Reference(y=float(level), look=m.Look.of(row), name=words, id=f"level-{name}"))
            if bounded.any():
                low, high = (own[end][bounded] if unit == "ms" else None for end in ("low", "high"))
                hover, x = f"{name}, cache of {{x:,}}\n{{y:.4~g}} {unit}", own["cache_size"][bounded]
                gid = f"{column}-{name}"
                marks.append(m.Line(x, value[bounded], look, str(name), gid, low, high, hover, whiskers=True))
        across = m.Axis("cache size (tokens)", "log", ticks=list(shown), names=[f"{each:,}" for each in shown])
        panels.append(m.Panel(marks, x=across, y=m.Axis(label, "log", ticks="round")))
    return m.Drawing(panels, table.attrs, m.PAGE, 2.7, columns=2, legend=m.Legend(columns=4, size=7, handle=3.2))


@figure
@reads
def explored(record: xr.Dataset) -> m.Drawing:
    """The attention map of the first head of a record, and the loss along the text under each of its policies.

    Probabilities have a logarithmic scale from 1e-5 to 1; keys that a query does not see are grey. The first four keys
    also stand at the left, widened, where a map of many keys would show them as a hairline. Losses are running means
    over the last 16 tokens that were scored.

    Where the explorer showed the map in another way (another scale, a part, keys hidden, beside a partner or as a
    difference), so does the figure.

    >>> figures.explored(record).savefig("explored.pdf")

    Args:
        record: `attention_map`, and `nll` [policy, sequence, token]; as the explorer saves it.

    Raises:
        SinkscopeError: `record` holds no map.
    """
    record = need(record, "explored", "attention_map")
    shown = [record[name] for name in ("shown_map_0", "shown_map_1") if name in record]
    panels = _as_shown(shown) if shown else [_map(record["attention_map"].isel(sequence=0, layer=0, head=0))]
    if "nll" in record:
        panels.append(_losses(record["nll"].isel(sequence=0)))
    width, ratios = (m.PAGE, (*[1.15] * (len(panels) - 1), 1)) if len(panels) > 1 else (0.52 * m.PAGE, ())
    return m.Drawing(panels, record.attrs, width, 3.5, columns=len(panels), ratios=ratios, page_height=480)


def _map(cells: xr.DataArray) -> m.Panel:
    values = cells.transpose("map_query", "map_key").values.astype(float)
    places = cells["map_query"].values
    is_pooled = "length" in cells.coords and bool((np.diff(places) > 1).any())
    first, stop = int(places[0]), int(cells["length"]) if is_pooled else int(places[-1]) + 1
    step = (stop - first) / len(values)
    bar = m.ColourBar("probability", "probability", FAINTEST, 1, log=True, open_end="low", place="below")
    middle = first - 0.5 + step / 2
    said = "probability {z:.3~g}"
    marks: list[m.Mark] = [
        m.Image(values, bar, (middle, middle), step, square=True, hover=f"query {{y}}, key {{x}}\n{said}")
    ]
    ticks = even_ticks(first, stop - 1, 6, integer=True)
    names, left, label = [f"{tick:g}" for tick in ticks], first - 0.5, "key (token seen)"
    sinks = int(np.searchsorted(places, first + SINKS)) if len(values) > FEW else 0
    if sinks:
        wide = STRIP * (stop - first)
        left -= (sinks + 0.6) * wide
        for cell in range(sinks):
            at, key = left + (cell + 0.5) * wide, int(places[cell])
            marks.append(
                m.Image(values[:, [cell]], replace(bar, place=""), (at, middle), step, aspect=wide / step, square=True,
                        hover=f"query {{y}}, key {key}\n{said}")
            )  # fmt: skip
            ticks.append(at)
            names.append(str(key))
        label += f"; left, widened: the first {int(places[sinks]) - first}"
    head = f"layer {int(cells['layer'])}, head {int(cells['head'])}"
    return m.Panel(
        marks,
        x=m.Axis(label, limits=(left, stop - 0.5), ticks=ticks, names=names),
        y=m.Axis("query (token reading)"),
        title=f"{cells.attrs.get('map_of', head)}: {cells.attrs.get('setting', 'attention')}",
    )


def _as_shown(maps: list[xr.DataArray]) -> list[m.Panel]:
    """Maps on one scale, as the explorer showed them."""
    scale, unit = str(maps[0].attrs["scale"]), str(maps[0].attrs["of"]).replace("linear", "probability")
    values = np.concatenate([cells.values.ravel() for cells in maps])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    reach = max(abs(low), abs(high)) or 1.0
    bars = {
        "log": m.ColourBar("probability", "probability", FAINTEST, 1, log=True, open_end="low", place="below"),
        "linear": m.ColourBar("probability", "probability", 0, max(high, FAINTEST), place="below"),
        "logit": m.ColourBar("logit", "logit", low, high if high > low else low + 1, place="below"),
        "difference": m.ColourBar(
            f"difference of {unit.replace('log', 'log10 probability')}", "difference", -reach, reach, place="below"
        ),
    }
    panels = []
    for cells in maps:
        queries, keys = (cells[dim].values for dim in cells.dims)
        step = float(max(keys[1] - keys[0] if len(keys) > 1 else 1, 1))
        corner = float(keys[0]) + (step - 1) / 2, float(queries[0]) + (step - 1) / 2
        hover = f"query {{y}}, key {{x}}\n{unit} {{z:.3~g}}"
        image = m.Image(cells.values.astype(float), bars[scale], corner, step, square=True, hover=hover)
        title = "\n".join(filter(None, [str(cells.attrs["setting"]), str(cells.attrs["preview"])]))
        panels.append(m.Panel([image], m.Axis("key (token seen)"), m.Axis("query (token reading)"), title))
    return panels


def _losses(losses: xr.DataArray) -> m.Panel:
    marks: list[m.Mark] = []
    for row, name in enumerate(losses["policy"].values):
        values = losses.isel(policy=row).values
        seen = np.flatnonzero(np.isfinite(values))
        if len(seen):
            means = [values[seen[max(0, at - SMOOTH + 1) : at + 1]].mean() for at in range(len(seen))]
            marks.append(m.Line(seen, means, m.Look.of(row), str(name), f"loss-{name}"))
    return m.Panel(
        marks,
        x=m.Axis("position in the text (tokens)"),
        y=m.Axis("loss (nats per token)", limits=(0, headroom(marks))),
        legend=m.Legend(f"mean of the last {SMOOTH} tokens scored"),
    )
