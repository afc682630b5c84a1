"""The third section of a report, what sum-to-one forces: what it measures, and its items."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.interventions import dose_table, intervention_table
from sinkscope.analysis.mass import amplification, eviction_by_layer
from sinkscope.analysis.perplexity import collapse_table, is_decomposed
from sinkscope.analysis.predictability import HEADS_SHOWN, correlated_heads, correlations, mean_mass_by_bin
from sinkscope.analysis.variables import whole
from sinkscope.errors import SinkscopeError
from sinkscope.figures.eviction import evicted, uniform_amplification
from sinkscope.figures.requirements import tokens_named
from sinkscope.figures.style import number
from sinkscope.reporting.content import Item, Measure, Numbers, Section, Table
from sinkscope.reporting.streaming import ABLATED, CACHE, LENGTH, SINKS

if TYPE_CHECKING:
    import torch

    from sinkscope.reporting.gather import Passes

TEXTS = (4, 512)  # sequences, tokens in each
CHANGED = 256  # the first tokens of each, for interventions and doses
FEWEST = 64
START = 64  # the first query that notices an intervention
DOSES = (-math.inf, -4.0, -2.0, 0.0, 2.0)
STRONG = 10.0  # times as much: nine tenths of a head's attention are parked
RECORDS = {
    "forced": "Forced mass", "collapse": "The collapse decomposed", "dose": "Dose and response",
    "interventions": "Interventions", "predictability": "Sink mass against predictability",
}  # fmt: skip
PREDICTED = ("sink_mass", "next_loss", "next_entropy")


def run(passes: Passes) -> Mapping[str, Measure]:
    """Eviction in closed form, the collapse decomposed, doses, interventions, and mass against predictability."""
    from sinkscope.experiments.decomposition import collapse_policies
    from sinkscope.experiments.interventions import dose_response
    from sinkscope.experiments.predictability import predictability
    from sinkscope.probes import EvictionEffect

    front = len(passes.front)
    count, length, start, read, kept = sizes_of(passes.model, passes.one_text.numel() - front, front)
    texts, effect = passes.sequences(length, count), EvictionEffect(tuple(range(SINKS)))
    shown: dict[str, Any] = {"start": start, "progress": passes.progress}

    @cache
    def dense() -> xr.Dataset:  # one pass for two records
        probes = [effect, *passes.probes.get("forced", ())]
        return predictability(passes.model, texts, probes=probes, **shown)

    def forced() -> xr.Dataset:
        try:
            record = dense().drop_vars([*PREDICTED, "sink"])
        except SinkscopeError:  # a model that predicts no token can still be measured
            return passes.measure("forced", texts, [effect], token_texts=False)
        record.attrs = {name: each for name, each in record.attrs.items() if name not in ("kind", "first", "start")}
        return record

    return {
        "forced": forced,
        "collapse": lambda: passes.perplexity(passes.one_text[:read], collapse_policies(kept, SINKS)),
        "dose": lambda: dose_response(passes.model, texts[:, :CHANGED], DOSES, **shown),
        "interventions": lambda: _interventions(passes, texts[:, :CHANGED], start),
        "predictability": lambda: dense().drop_vars([name for name in dense() if name not in PREDICTED]),
    }


def sizes_of(model: Any, tokens: int, front: int) -> tuple[int, int, int, int, int]:
    """What suits a model and a text: texts, their length, their start; tokens read and kept for the collapse.

    Raises SinkscopeError for a text or a model too short.
    """
    from sinkscope.models.rotary import position_limit

    count, longest = TEXTS
    limit = position_limit(model) or LENGTH
    read = min(tokens + front, ABLATED)
    length = min(longest, limit, max(tokens // count, min(tokens, 2 * FEWEST)) + front)
    if length < FEWEST:
        raise SinkscopeError(f"it needs {FEWEST} tokens, and there are {length}.")
    cache = 1 << (min(CACHE, read // 4, limit - 1).bit_length() - 1)
    start = min(START, min(length, CHANGED) // 4)
    return min(count, tokens // (length - front)), length, start, read, cache


def _interventions(passes: Passes, texts: torch.Tensor, start: int) -> xr.Dataset:
    """Those that model and texts can take; what is left out is noted. Raises SinkscopeError if all are."""
    from sinkscope.experiments.inside_model import EvictKeys
    from sinkscope.experiments.intervention import ReplaceTokens, Shift
    from sinkscope.experiments.interventions import possible, run_interventions

    given: dict[str, Any] = {"tokenizer": passes.tokenizer, "start": start, "sinks": SINKS}
    taken = [EvictKeys(which) for which in ("sinks", "recent", "delimiters")]
    chosen, refused = possible(passes.model, texts, [*taken, ReplaceTokens("line breaks"), Shift(start // 4)], **given)
    if not chosen:
        raise SinkscopeError(next(iter(refused.values())))
    record = run_interventions(passes.model, texts, chosen, progress=passes.progress, **given)
    for why in dict.fromkeys(refused.values()):
        names = "`, `".join(name for name, reason in refused.items() if reason == why)
        passes.notes.append(f"`{names}` left out of the interventions: {why}")
    return record


def say_forced(record: xr.Dataset, table: pd.DataFrame | None) -> str:
    mean, low, high = mean_amplification(record)
    heads = amplification(record).values
    heads = heads[np.isfinite(heads)]
    said = (
        f"Without the {tokens_named(evicted(record))}, all other weights would be multiplied by "
        f"{within(mean, low, high)} (geometric mean over heads and queries; uniform attention: "
        f"{number(uniform_amplification(record))}), and by {STRONG:.0f} or more in {(heads >= STRONG).sum():,} of "
        f"{heads.size:,} heads."
    )
    if table is None or not np.isfinite(table["lost_value_low"]).any():
        return said
    denominator = int((table["lost_denominator_low"] > table["lost_value_high"]).sum())
    value = int((table["lost_value_low"] > table["lost_denominator_high"]).sum())
    return (
        f"{said} Of the change of a head's output, the lost denominator is the longer part in {denominator} of "
        f"{len(table)} layers and the lost value in {value}; in the others their intervals meet."
    )


def say_collapse(record: xr.Dataset, table: pd.DataFrame) -> str:
    rows = {str(row["part"]): row for row in table.to_dict("records")}
    window = rows["window"]
    said = (
        f"Over the {int(window['tokens']):,} tokens after the first eviction from a cache of "
        f"{int(window['cache_size']):,}, the window's perplexity is {_interval(window)} times that with full sinks"
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


def say_dose(record: xr.Dataset, table: pd.DataFrame) -> str:
    count = int(record.attrs.get("count", 1))
    sinks, random = (table[table["arm"] == arm].sort_values("dose").to_dict("records") for arm in ("sinks", "random"))
    other, first = "a random token" if count == 1 else f"{count} random tokens", tokens_named(count)
    parts = []
    for of, control in ((sinks[0], random[0]), (sinks[-1], random[-1])):
        amount = "gone" if of["dose"] == -np.inf else f"at a dose of {of['dose']:+g}".replace("-", "−")
        parts.append(
            f"with the {first} {amount} perplexity is {_interval(of)} times that at dose 0, "
            f"with {other} {_interval(control)}"
        )
    low, high = (number(sinks[row]["sink_mass"]) for row in (0, -1))
    return f"{parts[0][0].upper()}{'; '.join(parts)[1:]}. The mass on the {first} goes from {low} to {high}."


def say_effects(record: xr.Dataset, table: pd.DataFrame) -> str:
    effects = table[(table["role"] == "effect") & table["over_control"].notna()]
    more, less = effects["over_control_low"] > 1, effects["over_control_high"] < 1
    parts = []
    for which, words in ((more, "higher"), (less, "lower")):
        if which.any():
            rows = effects[which].to_dict("records")
            told = ", ".join(f"{row['intervention']} {_interval(row, 'over_control')}" for row in rows)
            parts.append(f"Perplexity is {words} than under the control, by the factor given, for: {told}.")
    same = effects[~more & ~less]["intervention"]
    if len(same):
        parts.append(f"Not told apart from their controls: {', '.join(same)}.")
    return " ".join(parts)


def say_predictability(record: xr.Dataset, table: pd.DataFrame) -> str:
    (row,) = (each for each in table.to_dict("records") if each["measure"] == "entropy")
    binned = mean_mass_by_bin(record, start=int(record.attrs.get("start", 64)))
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


def _interval(row: Mapping[Hashable, Any], name: str = "ratio") -> str:
    return within(row[name], row[f"{name}_low"], row[f"{name}_high"])


def amplified(record: xr.Dataset) -> Numbers:
    mean, lower, upper = mean_amplification(record)
    quantity = f"other weights without the {tokens_named(evicted(record))}"
    note = "1/(1 − m), geometric mean over heads and queries; null: uniform causal attention"
    bounds = {"lower": lower, "upper": upper, "null": uniform_amplification(record), "note": note}
    return [{"quantity": quantity, "unit": "times as much", "value": mean, **bounds}]


def recovered(record: xr.Dataset) -> Numbers:
    """How much of the collapse each half of a sink takes back; nothing where nothing collapses."""
    if not is_decomposed(record):
        return []
    halves = {"phantom, values zeroed": "phantom sinks (values zeroed)", "values only": "the values of sinks alone"}
    quantity, window = "of the collapse, closed by ", "window: 0%, full sinks: 100%"
    return [
        {
            "quantity": quantity + halves[str(row["part"])], "unit": "share of the gap", "value": row["recovered"],
            "lower": row["recovered_low"], "upper": row["recovered_high"],
            "note": f"mean loss over {int(row['tokens']):,} tokens, cache of {int(row['cache_size']):,}; {window}",
        }
        for row in collapse_table(record).to_dict("records")
        if row["part"] in halves and np.isfinite(row["recovered"])
    ]  # fmt: skip


ITEMS = (
    Item(
        "forced_mass",
        "What sum-to-one would force on the other keys",
        record="forced",
        variables="log_amplification",
        figure=draw.forced_mass,
        sentence=say_forced,
        numbers=amplified,
        meaning="Computed from dense attention, exactly and one layer at a time: if the first keys were evicted and "
        "hold the mass m of a query, sum-to-one multiplies every other weight by 1/(1 − m). Left: that factor, its "
        "geometric mean over queries and texts, by layer and head; uniform causal attention is the null. Right: the "
        "change of a head's output as a share of it (mean norms), and the two vectors that add up to it: the lost "
        "denominator, what the others gain, and the lost value, what the evicted keys handed on. What later layers "
        "make of it is not in it.",
        causal_only=True,
        table=Table(
            eviction_by_layer,
            title="What evicting the first keys would do, layer by layer",
            variables=("output_norm",),
            meaning="In closed form, each layer alone. Amplification of all other weights: geometric mean over heads "
            "and queries. Change of a head's output, lost denominator and lost value, which add up to it as vectors: "
            "mean norm over the mean norm of the output. 95% bootstrap intervals over texts.",
        ),
    ),
    Item(
        "collapse",
        "The collapse, decomposed",
        record="collapse",
        variables="nll",
        figure=draw.collapse,
        sentence=say_collapse,
        numbers=recovered,
        meaning="Perplexity of the same tokens in caches of the same size, positions counted in the cache. Full sinks: "
        "the first tokens stay beside the window. Phantom: their keys stay in the denominator, their values are zeroed "
        "or replaced by the mean of the values that the query sees. Values only: what the sinks would hand on is "
        "added, their keys are out of the denominator of the others. Window: they are gone; nothing is re-computed. "
        "All of it in every layer at once. Whiskers are paired 95% block-bootstrap intervals of the ratio; the shares "
        "are of the gap in mean loss between window and full sinks, and below zero where a part is worse than none.",
        table=Table(
            collapse_table,
            title="The collapse of window attention, decomposed",
            meaning="Over tokens after the first eviction. Phantom sinks: keys in the denominator, values zeroed or "
            "replaced by their mean. Values only: values added, keys out of the denominator. Ratios are to full sinks, "
            "and recovered is the share of the gap in mean loss between window (0) and full sinks (1); paired 95% "
            "block-bootstrap intervals.",
        ),
    ),
    Item(
        "dose_response",
        "Dose and response",
        record="dose",
        variables=("nll", "sink_mass", "output_norm"),
        figure=draw.dose_response,
        sentence=say_dose,
        meaning="A bias on the logit of the first token in all layers and heads, from minus infinity (gone) over 0 (as "
        "the model is) upwards, and the same on a random token drawn for each text as control. Everything is measured "
        "over the queries from the start on; before it nothing is changed. Intervals of perplexity are paired, over "
        "positions; those of mass and output are over texts.",
        table=Table(
            dose_table,
            meaning="Dose: bias on the logits of the first keys (sinks) or of as many random ones, natural logarithm; "
            "-inf: gone. Ratios of perplexity (paired, over positions) and of the norm of a head's output (over texts) "
            "are to dose 0.",
        ),
    ),
    Item(
        "effects",
        "Effect against control",
        record="interventions",
        variables=("nll", "sink_mass"),
        figure=draw.effects,
        sentence=say_effects,
        meaning="What each intervention does to perplexity and to the mass on the first token, and below it what as "
        "much of something else does: as many random keys evicted, other tokens replaced, as many tokens cut out "
        "behind the sinks. The same tokens are scored in all rows. A row is about this text and these places: "
        "intervals cover neither other models nor other draws of the control.",
        table=Table(
            intervention_table,
            "interventions",
            "Interventions and their controls",
            "Each intervention above its control. Perplexity over that with nothing done (ratio) and over that of the "
            "control; paired 95% block-bootstrap intervals over positions, of the mass over texts.",
            variables=("control",),
        ),
    ),
    Item(
        "predictability",
        "Sink mass against predictability",
        record="predictability",
        variables=("sink_mass", "next_entropy"),
        figure=draw.predictability,
        sentence=say_predictability,
        meaning="If a sink is where a head parks attention when it has nothing to say, its mass should go with how "
        "well the next token is predicted. Left: mass by entropy of the model's next-token distribution, queries "
        "sorted into ten bins of equal size, beside that of uniform attention from the same queries. Right: for each "
        "head the rank correlation of the two within a text, mean over texts. It is a correlation: it does not say "
        "which of the two makes the other.",
        causal_only=True,
        table=Table(
            correlations,
            title="Sink mass against predictability, over heads",
            meaning="Spearman correlation of a query's mass on the first keys with entropy and loss of the next token: "
            "quartiles over heads, that of even attention (null), and heads whose 95% interval (block bootstrap over "
            "queries) lies below or above both zero and the null. By chance up to 5% of heads would.",
        ),
    ),
    Item(
        "predictability_heads",
        f"Sink mass against predictability, the {HEADS_SHOWN} strongest sink heads",
        record="predictability",
        variables=("sink_mass", "next_entropy"),
        table=correlated_heads,
        meaning="Spearman correlations with entropy and loss of the next token; 95% block-bootstrap intervals over "
        "queries.",
        causal_only=True,
    ),
)
SOFTMAX = Section(
    "Why sinks: what sum-to-one forces",
    ITEMS,
    run,
    records=RECORDS,
    subject="What softmax forces",
    probed=("forced",),
    causal_only=True,
)
