"""How sinks emerge in training: small models on the Bigram-Backcopy task, and language models from scratch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis import lab
from sinkscope.analysis.importance import EPSILON
from sinkscope.analysis.reading import reads
from sinkscope.arguments import one_of
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.style import even_ticks, headroom

MASS, COLUMNS = "BOS mass of non-triggers", 3
LABELS = {MASS: "attention on BOS\n(probability)", "loss": "loss\n(nats)"}
AT_LAST = {
    "row sum of non-triggers": "attention on all tokens\n(sum of weights)",
    "value norm of BOS / of others": "norm of the value of BOS\n(times that of others)",
    "loss": "loss above the best\n(nats, log scale)",
}
WIDEST_LINEAR = 3.0
"""Above this ratio of perplexities their axis is logarithmic."""


@figure
@reads
def emergence(record: xr.Dataset, layer: int = 0, quantity: str = MASS) -> m.Drawing:
    """What becomes of BOS over training, a panel for each arm: mean over seeds with its 95% t interval as a band, each
    seed as a thin line, and the mean of softmax in grey; dotted: the uniform null, where it is attention on BOS.

    The last panels have the last step of all arms: the attention of non-trigger queries on all tokens together, which
    softmax fixes at one; the norm of BOS's value over the others'; and how far the loss is above the best possible:
    means and intervals, with a ring for each seed. With fewer than three seeds there are no intervals.

    >>> figures.emergence(record).savefig("emergence.pdf")

    Args:
        record: of `lab.bigram_backcopy`.
        layer: which; heads are averaged.
        quantity: what is followed over training, as `lab.emergence_table` calls it.

    Raises:
        SinkscopeError: a record of something else, or a layer or quantity it does not have.
    """
    quantities = lab.emergence_quantities(record)
    one_of(quantity, "quantity", list(quantities))
    if layer not in record["layer"].values:
        raise SinkscopeError(f"layer {layer} is out of range: this record has layers 0 to {record.sizes['layer'] - 1}.")
    quantities = {name: each.sel(layer=layer) if "layer" in each.dims else each for name, each in quantities.items()}
    looks, followed = arm_looks(record), quantities[quantity].rename(quantity)
    quantities["loss"] = quantities["loss"] - float(record["best_loss"].sel(tokens="all"))
    baseline = lab.plain_arm(record)
    nulls = record["bos_null"].sel(tokens="non-trigger") if quantity == MASS else None
    panels = [
        _course(followed, arm, look, baseline, None if nulls is None else float(nulls.sel(arm=arm)))
        for arm, look in looks.items()
    ]
    panels += [_last_step(quantities[name].isel(step=-1), label, looks) for name, label in AT_LAST.items()]
    layers, heads, seeds = (record.sizes[dim] for dim in ("layer", "head", "seed"))
    place = f"layer {layer} of {layers}" if layers > 1 else "one layer"
    averaged = f"mean of {heads} heads" if heads > 1 else "one head"
    bands = "bands and whiskers: " if seeds >= lab.FEWEST_SEEDS else ""
    title = f"{place}, {averaged}; bold: mean over seeds, thin: each; {bands}{lab.intervals_said(seeds)}"
    rows = -(-len(panels) // COLUMNS)
    legend = m.Legend(title, columns=4, size=7)
    return m.Drawing(
        panels, record.attrs, m.PAGE, 0.6 + 1.55 * rows, COLUMNS, legend=legend, page_height=80 + 210 * rows
    )


def _course(quantity: xr.DataArray, arm: str, look: m.Look, baseline: str, null: float | None) -> m.Panel:
    """[arm, seed, step] of one arm over training, on axes that all arms share."""
    step = quantity["step"].values
    mean, low, high = lab.t_interval(quantity.sel(arm=arm).transpose("seed", "step").values)
    marks: list[m.Mark] = [] if null is None else [m.Reference(y=null, name="uniform null", id="null")]
    if arm != baseline:
        plain = quantity.sel(arm=baseline).mean("seed")
        marks.append(m.Line(step, plain, m.Look("quiet", "dash", 0.9), f"mean of {baseline}", f"baseline-{arm}"))
    thin = m.Look(look.colour, width=0.5, opacity=0.45)
    for seed in quantity["seed"].values:
        own = quantity.sel(arm=arm, seed=seed)
        marks.append(m.Line(step, own, thin, id=f"seed-{seed}-{arm}", hover=f"seed {seed}, step {{x}}: {{y:.4~g}}"))
    marks.append(m.Line(step, mean, m.Look(look.colour, width=1.4), id=f"mean-{arm}", low=low, high=high))
    least, most = min(0.0, float(quantity.min())), float(quantity.max())
    y = m.Axis(LABELS.get(str(quantity.name), str(quantity.name)), limits=(least, most + 0.04 * (most - least or 1.0)))
    x = m.Axis("training step", limits=(0, int(step.max()) or 1), ticks=even_ticks(0, int(step.max()), 4), plain=True)
    return m.Panel(marks, x, y, title=arm)


def _last_step(quantity: xr.DataArray, label: str, looks: dict[str, m.Look]) -> m.Panel:
    """[arm, seed]: a row for each arm, the mean with its interval, and a ring for each seed."""
    marks: list[m.Mark] = [] if quantity.name == "loss" else [m.Reference(x=1.0, id="one")]
    for row, (arm, look) in enumerate(looks.items()):
        own = quantity.sel(arm=arm).values
        mean, low, high = lab.t_interval(own)
        ring = m.Look(look.colour, marker="circle", size=1.6, hollow=True, opacity=0.6)
        hover = f"{arm}, one seed, last step: {{x:.4~g}}"
        marks.append(m.Points(own, np.full(own.size, row), ring, id=f"seeds-{arm}", hover=hover))
        hover, solid = f"{arm}, last step: {{x:.4~g}}", m.Look(look.colour, marker="diamond", size=3)
        marks.append(m.Points(mean, row, solid, id=f"last-{arm}", left=low, right=high, hover=hover))
    is_log = "log" in label and float(quantity.min()) > 0
    x = m.Axis(label, "log", ticks="round") if is_log else m.Axis(label.replace(", log scale", ""))
    rows = m.Axis(limits=(len(looks) - 0.4, -0.6), ticks=range(len(looks)), names=list(looks), has_tick_marks=False,
                  has_line=False)  # fmt: skip
    return m.Panel(marks, x, rows, title="last step")


def arm_looks(record: xr.Dataset) -> dict[str, m.Look]:
    """One for each arm; behind the seventh their colours come again."""
    colours, arms = (*m.COLOURS, "ink"), map(str, record["arm"].values)
    return {
        arm: m.Look.of(row, colour=colours[row % len(colours)], width=1.1, marker=m.marker_of(row))
        for row, arm in enumerate(arms)
    }


@figure
@reads
def language_emergence(record: xr.Dataset) -> m.Drawing:
    """Perplexity against the number of sinks kept, by arm, beside the attention of each head on the first token.

    Left: over the tokens from which every cache has evicted some, with 95% intervals (see `ppl_table`) over the
    held-out texts; dense attention at the right end. All policies read the same texts, so whiskers that overlap do
    not mean that they are equal: for their differences see `lab.language_table`.
    Right: every head of every layer, with the uniform null dotted and the threshold of a sink, 0.3, dashed.
    Several seeds stand beside each other.

    >>> figures.language_emergence(record).savefig("language_emergence.pdf")

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
