"""The third section of a report, what sum-to-one forces: what it measures, and its items."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.interventions import MARGIN, dose_table, draws_said, intervention_table, margin_of
from sinkscope.analysis.mass import amplification, eviction_by_layer
from sinkscope.analysis.predictability import HEADS_SHOWN, correlated_heads, correlations, mean_mass_by_bin
from sinkscope.analysis.variables import whole
from sinkscope.errors import SinkscopeError
from sinkscope.figures.eviction import evicted, uniform_amplification
from sinkscope.figures.requirements import other_tokens, tokens_named
from sinkscope.figures.style import number, ratio_said, within
from sinkscope.reporting.collapse import COLLAPSE
from sinkscope.reporting.content import Item, Measure, Numbers, Section, Table
from sinkscope.reporting.purposes import possible
from sinkscope.reporting.streaming import parts_of

if TYPE_CHECKING:
    import torch

    from sinkscope.experiments.intervention import Intervention
    from sinkscope.reporting.passes import Passes

TEXTS = (8, 256)  # sequences from all over each text, tokens in each
CHANGED = 128  # the first tokens of each, for interventions and doses
FEWEST = 64
START = 40  # the first query that notices an intervention
DRAWS = 3  # of each random control in each text, where `intervene` has 20: with eight texts 24 in all
STRONG = 10.0  # times as much: nine tenths of a head's attention are parked
RECORDS = {
    "forced": "Forced mass", "collapse": "The collapse decomposed", "dose": "Dose and response",
    "interventions": "Interventions", "predictability": "Sink mass against predictability",
}  # fmt: skip
OVER = "paired, over texts, or over batches where there are fewer than four"
PREDICTED = ("sink_mass", "next_loss", "next_entropy")


def run(passes: Passes) -> Mapping[str, Measure]:
    """Eviction in closed form, the collapse decomposed, doses, interventions, and mass against predictability."""
    from sinkscope.experiments.decomposition import collapse_policies
    from sinkscope.experiments.doses import dose_response
    from sinkscope.experiments.predictability import predictability
    from sinkscope.probes import EvictionEffect, SinkPurpose

    passes.check_one_text()
    plan = passes.plan
    count, length, start = sizes_of(passes.model, passes.fewest, len(passes.front))
    texts, effect = passes.segments(length, count), EvictionEffect(tuple(range(plan.sinks)))
    purposes, _ = possible(passes, SinkPurpose())
    shown: dict[str, Any] = {"start": start, "progress": passes.progress}
    drawn: dict[str, Any] = {"sinks": plan.sinks, "seed": plan.seed}

    @cache
    def dense() -> xr.Dataset:  # one pass for two records
        probes = [effect, *purposes, *passes.probes.get("forced", ())]
        return predictability(passes.model, texts, probes=probes, **shown)

    def forced() -> xr.Dataset:
        try:
            record = dense().drop_vars([*PREDICTED, "sink"])
        except SinkscopeError:  # a model that predicts no token can still be measured
            return passes.measure("forced", texts, [effect, *purposes], token_texts=False)
        record.attrs = {name: each for name, each in record.attrs.items() if name not in ("kind", "first", "start")}
        return record

    def collapse() -> xr.Dataset:
        read, cache = parts_of(passes)
        return passes.perplexity(read, collapse_policies(cache, plan.sinks))

    return {
        "forced": forced,
        "collapse": collapse,
        "dose": lambda: dose_response(
            passes.model, texts[:, :CHANGED], plan.doses, arms=("sinks", "next"), **drawn, **shown
        ),
        "interventions": lambda: _interventions(passes, texts[:, :CHANGED], start),
        "predictability": lambda: dense().drop_vars([name for name in dense() if name not in PREDICTED]),
    }


def sizes_of(model: Any, tokens: int, front: int) -> tuple[int, int, int]:
    """What suits a model and a text: how many texts, the tokens of each, and the first query that is scored.

    Raises SinkscopeError for a text or a model too short.
    """
    from sinkscope.models.rotary import position_limit

    count, longest = TEXTS
    limit = position_limit(model) or longest
    length = min(longest, limit, max(tokens // count, min(tokens, 2 * FEWEST)) + front)
    if length < FEWEST:
        raise SinkscopeError(f"it needs {FEWEST} tokens, and there are {length}.")
    return min(count, tokens // (length - front)), length, min(START, length // 4)


def _interventions(passes: Passes, texts: torch.Tensor, start: int) -> xr.Dataset:
    """Those that model and texts can take; what is left out is noted. Raises SinkscopeError if all are."""
    from sinkscope.experiments.inside_model import EvictKeys
    from sinkscope.experiments.intervention import ReplaceTokens, Shift
    from sinkscope.experiments.interventions import possible, run_interventions

    plan = passes.plan
    given: dict[str, Any] = {"tokenizer": passes.tokenizer, "start": start, "sinks": plan.sinks, "seed": plan.seed}
    arms: dict[str, Intervention] = {which: EvictKeys(which) for which in ("sinks", "attended", "recent", "delimiters")}
    arms |= {"line breaks": ReplaceTokens("line breaks"), "shift": Shift(start // 4)}
    chosen, refused = possible(passes.model, texts, [arms[word] for word in plan.interventions], **given)
    if not chosen:
        raise SinkscopeError(next(iter(refused.values())))
    record = run_interventions(passes.model, texts, chosen, draws=DRAWS, progress=passes.progress, **given)
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
        f"{heads.size:,} heads (the median head: {number(float(np.median(heads)))})."
    )
    if table is None or not np.isfinite(table["difference_low"]).any():
        return said
    share = number(float((table["difference"].abs()).median()))
    denominator = int((table["difference_low"] > 0).sum())
    value = int((table["difference_high"] < 0).sum())
    return (
        f"{said} Of the change of a head's output, the lost denominator is the longer part in {denominator} of "
        f"{len(table)} layers and the lost value in {value}; in the others the interval of their difference, paired, "
        f"holds zero. The median size of that difference over layers is {share} of the output."
    )


def say_dose(record: xr.Dataset, table: pd.DataFrame) -> str:
    count = int(record.attrs.get("count", 1))
    arm = next(arm for arm in ("next", "random") if (table["arm"] == arm).any())
    sinks, others = (table[table["arm"] == each].sort_values("dose").to_dict("records") for each in ("sinks", arm))
    other, first = other_tokens(arm, count), tokens_named(count)
    parts = []
    for of, control in ((sinks[0], others[0]), (sinks[-1], others[-1])):
        amount = "gone" if of["dose"] == -np.inf else f"at a dose of {of['dose']:+g}".replace("-", "−")
        parts.append(
            f"with the {first} {amount} perplexity is {ratio_said(of)} times that at dose 0, "
            f"with {other} {ratio_said(control)}"
        )
    low, high = (number(sinks[row]["sink_mass"]) for row in (0, -1))
    return f"{parts[0][0].upper()}{'; '.join(parts)[1:]}. The mass on the {first} goes from {low} to {high}."


def say_effects(record: xr.Dataset, table: pd.DataFrame) -> str:
    effects, margin = table[(table["role"] == "effect") & table["over_control"].notna()], margin_of(record)
    parts = []
    for verdict in ("higher", "lower"):
        rows = effects[effects["verdict"] == verdict].to_dict("records")
        if rows:
            told = ", ".join(f"{row['intervention']} {ratio_said(row, 'over_control')}" for row in rows)
            parts.append(f"Perplexity is {verdict} than under the control, by the factor given, for: {told}.")
    for verdict, words in {
        "equal": f"Equal to that under the control, to within {100 * margin:g}%, for",
        "open": f"Neither told apart from the control nor shown to equal it within {100 * margin:g}%",
        "": "Without an interval of the ratio to the control",
    }.items():
        if (which := effects["verdict"] == verdict).any():
            parts.append(f"{words}: {', '.join(effects[which]['intervention'])}.")
    evicted = table[table["per_mass"].notna()].drop_duplicates("intervention").set_index("intervention")
    shown = [name for name in ("evict sinks", "evict attended", "evict random") if name in evicted.index]
    if "evict sinks" in shown and len(shown) > 1:
        told = "; ".join(
            f"{name} {within(row['per_mass'], row['per_mass_low'], row['per_mass_high'])}, of {row['removed_mass']:.0%}"
            for name, row in evicted.loc[shown].iterrows()
        )
        parts.append(f"Loss for each unit of attention that is taken away, nats, and how much is: {told}.")
    if drawn := draws_said(table):
        parts.append(f"{drawn[0].upper()}{drawn[1:]}.")
    return " ".join(parts)


def say_predictability(record: xr.Dataset, table: pd.DataFrame) -> str:
    (row,) = (each for each in table.to_dict("records") if each["measure"] == "entropy")
    binned = mean_mass_by_bin(record, start=int(record.attrs.get("start", 64)))
    mean, lower, upper = (binned[name].values for name in ("mean", "lower", "upper"))
    ends = [within(mean[place], lower[place], upper[place]) for place in (0, -1)]
    nulls = [number(float(binned["null"].isel(bin=place))) for place in (0, -1)]
    first = tokens_named(int(record.attrs.get("first", record.sizes["sink"])))
    heads = int(row["heads"])
    said = (
        f"Mean mass on the {first} is {ends[0]} where the next token is most predictable (the lowest tenth of entropy) "
        f"and {ends[1]} where it is least (uniform null: {nulls[0]} and {nulls[1]})."
    )
    if not heads:
        return f"{said} No head has a rank correlation: its mass, or the entropy, is the same at every query."
    size = f" and a median |ρ| of {row['side_size']:.2f}" if row["below"] + row["above"] else ""
    return (
        f"{said} Of {heads:,} heads, {int(row['below']):,} give the {first} less the higher the entropy, and "
        f"{int(row['above']):,} more, with intervals beyond both zero and the null{size} (up to "
        f"{number(0.05 * heads, 2)} would by chance){_told_among_many(row)}."
    )


def _told_among_many(row: Mapping[Hashable, Any]) -> str:
    if not row["below_q"] + row["above_q"]:
        return "; none is told among so many, at 5% false discoveries (Benjamini and Hochberg)"
    return (
        f"; at 5% false discoveries among so many (Benjamini and Hochberg) {int(row['below_q']):,} and "
        f"{int(row['above_q']):,} are told, with a median |ρ| of {row['size']:.2f}"
    )


def mean_amplification(record: xr.Dataset) -> tuple[float, float, float]:
    """Geometric mean over heads and queries, and its interval over texts (NaN with one)."""
    logs = whole(record)["log_amplification"].astype("float64").mean(["layer", "head", "query"], skipna=True)
    found = interval(logs)  # of logarithms, plain t
    return tuple(float(np.exp(found[name])) for name in ("mean", "lower", "upper"))  # type: ignore[return-value]


def amplified(record: xr.Dataset) -> Numbers:
    mean, lower, upper = mean_amplification(record)
    quantity = f"other weights without the {tokens_named(evicted(record))}"
    note = "1/(1 − m), geometric mean over heads and queries; null: uniform causal attention"
    bounds = {"lower": lower, "upper": upper, "null": uniform_amplification(record), "note": note}
    return [{"quantity": quantity, "unit": "times as much", "value": mean, **bounds}]


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
            "mean norm over the mean norm of the output. Difference: lost denominator less lost value, paired. 95% t "
            "intervals over texts.",
        ),
    ),
    *COLLAPSE,
    Item(
        "dose_response",
        "Dose and response",
        record="dose",
        variables=("nll", "sink_mass", "output_norm"),
        figure=draw.dose_response,
        sentence=say_dose,
        meaning="A bias on the logit of the first token in all layers and heads, from minus infinity (gone) over 0 (as "
        "the model is) upwards; as control the same on the token right behind the sinks, which of all that are none "
        "stands nearest to it. All is measured over the queries from the start on; before it nothing is changed. "
        f"Intervals of perplexity are {OVER}; those of mass and output are over texts.",
        table=Table(
            dose_table,
            meaning="Dose: bias on the logits of the first keys (sinks) or of as many right behind the sinks "
            "(next), natural logarithm; -inf: gone. Ratios of perplexity and of the norm of a head's output are to the "
            "dose of 0, with 95% t intervals.",
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
        "much of something else does: as many random keys evicted, for recent keys as many before them, other tokens "
        "replaced, as many tokens cut out behind the sinks. Attended: the most attended keys behind the sinks, as many "
        "as carry the sinks' mass, or all before the start where they carry less. The same tokens are scored in all "
        f"rows. Random controls are drawn {DRAWS} times in each text (20 times in sinkscope.intervene), and intervals "
        "hold what differs from draw to draw. They cover no other models.",
        table=Table(
            intervention_table,
            "interventions",
            "Interventions and their controls",
            "Each intervention above its control. Perplexity over that with nothing done (ratio) and over that of the "
            f"control; 95% t intervals, of losses {OVER}. "
            f"Verdict: what the latter says, equal where all of it lies within {MARGIN:.0%}, or the plan's margin. "
            "Intervals over draws: t within texts. Removed mass: attention on the evicted keys in the text as it is; "
            "per mass: logarithm of the ratio for each unit of it (Fieller).",
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
            "quartiles over heads, that of even attention (null), and heads whose 95% interval (jackknife over "
            "batches of queries) lies below or above both zero and the null. By chance up to 5% of heads would. "
            "below_q, above_q: those with a q of at most 5% (Benjamini and Hochberg 1995); size: the median of |ρ| "
            "among them.",
        ),
    ),
    Item(
        "predictability_heads",
        f"Sink mass against predictability, the {HEADS_SHOWN} strongest sink heads",
        record="predictability",
        variables=("sink_mass", "next_entropy"),
        table=correlated_heads,
        meaning="Spearman correlations with entropy and loss of the next token; 95% jackknife intervals over "
        "batches of queries; q among all heads (Benjamini and Hochberg 1995).",
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
