"""How sinks emerge in training: small models on the Bigram-Backcopy task, and language models from scratch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis import lab
from sinkscope.analysis.importance import EPSILON
from sinkscope.analysis.reading import reads
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.style import even_ticks, headroom, number

MASS, ROW_SUM = "BOS mass of non-triggers", "row sum of non-triggers"
VALUE_NORM, LOSS = "value norm of BOS / of others", "loss"
WHISKERS = 0.03  # of the steps, from one to the next
WIDEST_LINEAR = 3.0
"""Above this ratio of perplexities their axis is logarithmic."""


@figure
@reads
def emergence(record: xr.Dataset, layer: int = 0) -> m.Drawing:
    """What becomes of BOS over training, one line per arm: mean over seeds, with its 95% t interval as a faint band.

    Attention of non-trigger queries on BOS, with the uniform null dotted; their attention on all tokens together, which
    softmax fixes at one; the norm of BOS's value over the others'; and how far the loss is above the best possible.
    At the right stand the means and intervals of the last step side by side, with a ring for each seed.
    With fewer than three seeds there are no intervals.

    Args:
        record: of `lab.bigram_backcopy`.
        layer: which; heads are averaged.

    Raises:
        SinkscopeError: a record of something else, or a layer it does not have.
    """
    quantities = lab.emergence_quantities(record)
    if layer not in record["layer"].values:
        raise SinkscopeError(f"layer {layer} is out of range: this record has layers 0 to {record.sizes['layer'] - 1}.")
    quantities = {name: each.sel(layer=layer) if "layer" in each.dims else each for name, each in quantities.items()}
    quantities[LOSS] = quantities[LOSS] - float(record["best_loss"].sel(tokens="all"))
    looks, last = arm_looks(record), int(record["step"].max())
    labels = {
        MASS: "attention on BOS\n(probability)",
        ROW_SUM: "attention on all tokens\n(sum of weights)",
        VALUE_NORM: "norm of the value of BOS\n(times that of others)",
        LOSS: "loss above the best possible\n(nats)",
    }
    low = np.nanmin(quantities[LOSS].mean("seed").values)
    is_log, panels = bool(low > 0), []
    for name, label in labels.items():
        marks = [mark for row, arm in enumerate(looks) for mark in _arm(quantities[name].sel(arm=arm), looks[arm], row)]
        marks += _nulls(record) if name == MASS else [] if name == LOSS else [m.Reference(y=1.0, id="one")]
        y = m.Axis(label, limits=(None if name == LOSS else 0, None))
        if name == LOSS and is_log:
            y = m.Axis(label.replace(")", ", log scale)"), "log", (low / 2, None), "round")
        end = last * (1 + WHISKERS * (len(looks) + 1))
        x = m.Axis("training step" if name in (VALUE_NORM, LOSS) else "", limits=(0, end), ticks=even_ticks(0, last),
                   plain=True)  # fmt: skip
        panels.append(m.Panel(marks, x, y, title=name if name != LOSS else "loss of all tokens"))
    layers, heads, seeds = (record.sizes[dim] for dim in ("layer", "head", "seed"))
    place = f"layer {layer} of {layers}" if layers > 1 else "one layer"
    averaged = f"mean of {heads} heads" if heads > 1 else "one head"
    bands = "bands, and whiskers for the last step: " if seeds >= lab.FEWEST_SEEDS else ""
    title = f"{place}, {averaged}; mean over seeds; {bands}{lab.intervals_said(seeds)}"
    legend = m.Legend(title, columns=4, size=7, handle=3.2)
    return m.Drawing(panels, record.attrs, m.PAGE, 4.7, 2, shared="x", legend=legend, page_height=680)


def arm_looks(record: xr.Dataset) -> dict[str, m.Look]:
    """One for each arm."""
    colours, arms = (*m.COLOURS, "ink"), map(str, record["arm"].values)
    return {
        arm: m.Look.of(row, colour=colours[row % len(colours)], width=1.1, marker=m.marker_of(row))
        for row, arm in enumerate(arms)
    }


def _arm(quantity: xr.DataArray, look: m.Look, row: int) -> list[m.Mark]:
    """Mean over seeds of [seed, step] with its interval; the last ones again to the right of all, each at its own x."""
    step, arm = quantity["step"].values, str(quantity["arm"].item())
    mean, low, high = lab.t_interval(quantity.transpose("seed", "step").values)
    line = m.Look(look.colour, look.dash, look.width)
    marks: list[m.Mark] = [m.Line(step, mean, line, arm, f"mean-{arm}", low, high, band=0.07)]
    if np.isfinite(low).any():
        place, hover = step[-1] * (1 + WHISKERS * (row + 1)), f"{arm}, last step: {{y:.4~g}}"
        marks.append(m.Points(place, mean[-1], look, id=f"last-{arm}", low=low[-1], high=high[-1], hover=hover))
        seeds = quantity.isel(step=-1)
        ring, hover = replace(look, hollow=True, size=1.6, opacity=0.6), f"{arm}, one seed, last step: {{y:.4~g}}"
        marks.append(m.Points(np.full(seeds.size, place), seeds.values, ring, id=f"seeds-{arm}", hover=hover))
    return marks


def _nulls(record: xr.Dataset) -> list[m.Mark]:
    """The uniform nulls; a sink token is one more key and makes its arm's a little lower."""
    nulls = record["bos_null"].sel(tokens="non-trigger").values
    names = {nulls.max(): f"uniform null, {number(nulls.max())}"}
    return [m.Reference(y=float(each), name=names.get(each, ""), id=f"null-{each:.4f}") for each in np.unique(nulls)]


@figure
@reads
def language_emergence(record: xr.Dataset) -> m.Drawing:
    """Perplexity against the number of sinks kept, by arm, beside the attention of each head on the first token.

    Left: over the tokens from which every cache has evicted some, with 95% intervals (see `ppl_table`) over the
    held-out texts; dense attention at the right end. All policies read the same texts, so whiskers that overlap do
    not mean that they are equal: for their differences see `lab.language_table`.
    Right: every head of every layer, with the uniform null dotted and the threshold of a sink, 0.3, dashed.
    Several seeds stand beside each other.

    Args:
        record: of `lab.language_model`.

    Raises:
        SinkscopeError: a record of something else.
    """
    table, heads, looks = lab.language_table(record), lab.head_masses(record), arm_looks(record)
    title = f"after {record.attrs['steps']:,} steps; whiskers: 95% over held-out texts"
    panels, legend = [_perplexities(table, looks), _masses(heads, looks)], m.Legend(title, columns=4, size=7)
    return m.Drawing(panels, record.attrs, m.PAGE, 2.8, 2, (1.25, 1), legend=legend, page_height=420)


def _perplexities(table: pd.DataFrame, looks: dict[str, m.Look]) -> m.Panel:
    """One group of points for each number of sinks, and one for dense attention."""
    bounded = table[table["cache_size"] > 0]
    counts = list(dict.fromkeys(bounded["sinks"]))
    columns = [(arm, seed) for arm in looks for seed in dict.fromkeys(table["seed"])]
    names = [*(f"{sinks:,}" for sinks in counts), "dense"]
    marks: list[m.Mark] = [m.Reference(x=edge + 0.5, look=m.Look("grid", width=0.5)) for edge in range(len(names) - 1)]
    for column, (arm, seed) in enumerate(columns):
        own = table[(table["arm"] == arm) & (table["seed"] == seed)]
        groups = [counts.index(row.sinks) if row.cache_size > 0 else len(counts) for row in own.itertuples()]
        place = np.array(groups) + 0.7 * ((column + 0.5) / len(columns) - 0.5)
        look = m.Look(looks[arm].colour, marker=looks[arm].marker, size=3.5)
        texts = [str(each) for each in own["policy"]]
        hover = f"{arm}, {{text}}\nperplexity {{y:.4~g}}"
        marks.append(m.Points(place, own["ppl"], look, arm, f"ppl-{arm}-{seed}", own["low"], own["high"], hover, texts))
    is_log = table["ppl"].max() > WIDEST_LINEAR * table["ppl"].min()
    cache = int(bounded["cache_size"].iloc[0])
    return m.Panel(
        marks,
        x=m.Axis(f"sinks kept in a cache of {cache:,} tokens", limits=(-0.5, len(names) - 0.5), ticks=range(len(names)),
                 names=names),
        y=m.Axis("perplexity (log scale)", "log", ticks="round") if is_log else m.Axis("perplexity"),
    )  # fmt: skip


def _masses(heads: pd.DataFrame, looks: dict[str, m.Look]) -> m.Panel:
    """One point for each head, layers side by side within an arm."""
    layers = int(heads["layer"].max()) + 1
    marks: list[m.Mark] = [m.Reference(y=EPSILON, look=m.Look("quiet", "dash", 0.8), id="threshold")]
    for place, (arm, look) in enumerate(looks.items()):
        own = heads[heads["arm"] == arm]
        null = [own["null"].iloc[0]] * 2
        marks.append(m.Line([place - 0.4, place + 0.4], null, m.Look("quiet", "dotted", 0.9), id=f"null-{arm}",
                            hover="uniform null {y:.4~g}"))  # fmt: skip
        across = place + 0.7 * ((own["layer"] + 0.5) / layers - 0.5)
        texts = [f"layer {row.layer}, head {row.head}" for row in own.itertuples()]
        hollow = m.Look(look.colour, marker=look.marker, size=3, hollow=True)
        marks.append(
            m.Points(across, own["mass"], hollow, id=f"mass-{arm}", hover="{text}\nmass {y:.4~g}", texts=texts)
        )
    top = max(1.15 * EPSILON, headroom(marks) or 0)
    return m.Panel(
        marks,
        x=m.Axis("layers from first to last within an arm", limits=(-0.5, len(looks) - 0.5), ticks=range(len(looks)),
                 names=list(looks)),
        y=m.Axis("attention on the first token\n(probability)", limits=(0, top)),
        title=f"one point per head; dashed: {EPSILON}, a sink\ndotted: uniform null",
        note=True,
    )  # fmt: skip
