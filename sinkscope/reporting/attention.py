"""The first section of a report, where attention goes: what it measures, and its items."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.discovery import discover, recurrence_table
from sinkscope.analysis.discovery import massive_activations as found_activations
from sinkscope.analysis.importance import sink_rate_curve
from sinkscope.analysis.mass import above_null, sink_mass, value_drain
from sinkscope.analysis.mass import mass_by_layer as layer_masses
from sinkscope.analysis.sensitivity import EPSILONS, sensitivity_table
from sinkscope.analysis.spans import span_table
from sinkscope.analysis.variables import is_causal
from sinkscope.errors import SinkscopeError
from sinkscope.figures.attention import null_entropy
from sinkscope.figures.sinks import default_lengths, extremes, first_cosine
from sinkscope.figures.spans import span_mass as draw_spans
from sinkscope.figures.style import number
from sinkscope.reporting.content import Item, Measure, Numbers, Section, Table
from sinkscope.reporting.first_token import (
    epsilon_of,
    first_tokens,
    headline,
    headlines_by_text,
    masses,
    over_sequences,
    rates,
)
from sinkscope.reporting.planned import numbered, other_front
from sinkscope.reporting.purposes import near, possible

if TYPE_CHECKING:
    from sinkscope.reporting.passes import Passes

SHORT = (100, 64)  # sequences, tokens in each (Gu et al. 2024)
OTHER_BOS = 3  # every third of the short sequences is measured with the other choice of BOS
SENTENCES = (256, 16)  # Xiao et al. 2023, Figure 2
TOP = 20


def run(passes: Passes) -> Mapping[str, xr.Dataset | Measure]:
    """The main record, and if the text is long enough many short pieces of it, and many sentences."""
    from sinkscope.probes import (
        ALL,
        Compression,
        FirstCosine,
        Gates,
        Maps,
        MeanLogits,
        Probe,
        Reach,
        SinkDimensions,
        SinkMass,
        SinkPurpose,
    )

    probes: list[Probe] = [*(probe for probe in ALL if not isinstance(probe, Maps)), FirstCosine(), Compression()]
    purposes, without = possible(passes, SinkPurpose(), Reach(windows=near(passes.rows.shape[1])), Gates())
    probes += purposes
    passes.notes += without
    if passes.inputs is not None:
        probes.append(SinkDimensions())
    text = passes.main(probes)
    if passes.inputs is not None and "is_image" in text.coords and not is_causal(text):
        passes.notes.append(
            "Tokens of images see each other both ways here, so what is defined by causal attention is left out."
        )
    steps: dict[str, xr.Dataset | Measure] = {"text": text}
    if is_causal(text) and (short := passes.pieces(*SHORT)) is not None:
        steps["short"] = lambda: passes.measure("short", short, [SinkMass()])
        if (other := other_front(short[::OTHER_BOS], passes.front, passes.tokenizer)) is not None:
            steps["other_bos"] = lambda: numbered(
                passes.measure("other_bos", other, [SinkMass(first=1)], token_texts=False), OTHER_BOS
            )
    if (sentences := passes.pieces(*SENTENCES)) is not None:
        corner = [SinkMass(first=1), MeanLogits(tokens=SENTENCES[1])]
        steps["sentences"] = lambda: passes.measure("sentences", sentences, corner)
    return steps


def mass_by_layer(record: xr.Dataset) -> pd.DataFrame:
    parts = []
    for first in first_tokens(record):
        mass = layer_masses(record, first=first)
        frame = mass.to_dataframe().reset_index()[["layer", "mean", "lower", "upper"]].assign(null=mass.attrs["null"])
        frame.insert(0, "first", first)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def top_heads(record: xr.Dataset) -> pd.DataFrame:
    mass = sink_mass(record, first=1).transpose("layer", "head")
    frame = mass.to_series().rename("mass").reset_index()[["layer", "head", "mass"]].dropna()
    frame = frame.sort_values(["mass", "layer", "head"], ascending=[False, True, True]).head(TOP)
    null = mass.attrs["null"]
    return frame.assign(null=null, above_null=above_null(frame["mass"], null)).reset_index(drop=True)


def sink_rates(record: xr.Dataset, short: xr.Dataset | None) -> pd.DataFrame:
    """The sink rate of the first token at several thresholds and lengths, with intervals and the null's alpha."""
    parts = []
    for name, each in (("text", record), ("short", short)):
        if each is None or "sink_mass" not in each or not is_causal(each):
            continue
        epsilons = sorted({*EPSILONS, epsilon_of(each)})
        curve = sink_rate_curve(each, epsilons=epsilons, lengths=default_lengths(each))
        frame = curve.to_dataframe().reset_index().assign(record=name, sequences=each.sizes["sequence"])
        parts.append(frame[["record", "sequences", "length", "epsilon", "rate", "lower", "upper", "null_alpha", "flips",
                            "heads", "median_alpha"]])  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def recurrences(record: xr.Dataset) -> pd.DataFrame:
    """The positions that come up as sinks on most sequences; none where there are not two different ones."""
    try:
        table = recurrence_table(record)
    except SinkscopeError:
        return pd.DataFrame()
    return table[table["position"].isin(table["position"].unique()[:TOP])]


def learned_sink(record: xr.Dataset) -> Numbers:
    mean = over_sequences(record, record["virtual_sink_mass"])
    return [{"quantity": "mass on the learned sink", "unit": "probability", **mean}]


def entropies(record: xr.Dataset) -> Numbers:
    mean, null = over_sequences(record, record["entropy"]), null_entropy(record)
    note = "null: uniform attention"
    return [{"quantity": "entropy of attention", "unit": "nats", **mean, "null": null, "note": note}]


def drained(record: xr.Dataset) -> Numbers:
    if record.sizes["token"] < 2:
        return []
    ratio = float(value_drain(record, first=1)["value_ratio"].mean())
    note = "mean over layers and KV heads; below 1: the sink's value is drained"
    quantity = "value norm, first token over the rest"
    return [{"quantity": quantity, "unit": "ratio", "value": ratio, "null": 1.0, "note": note}]


def largest_activation(record: xr.Dataset) -> Numbers:
    first, rest, median = extremes(record)
    largest = np.fmax(first, rest)
    at = int(np.nanargmax(largest))
    place = "the first token" if not rest[at] > first[at] else "another token"
    times = number(largest[at] / median[at])
    note = f"after layer {int(record['layer'][at])}, at {place}; {times} times the layer's median"
    return [{"quantity": "largest activation", "unit": "magnitude", "value": float(largest[at]), "note": note}]


ITEMS = (
    Item(
        "sink_mass_heatmap",
        "Where the first token is the sink",
        variables="sink_mass",
        figure=draw.sink_mass_heatmap,
        numbers=masses,
        meaning="Sink mass: the attention a query gives to the first token, averaged over the queries after it and "
        "over all sequences, for every layer and head. A head that looks at every key alike would give 1/(i + 1) at "
        "query i (0-based); the mean of that over the queries is the uniform null, about ln(T)/T and not 1/T.",
    ),
    Item(
        "texts",
        "The headlines of each text",
        variables=("sink_mass", "source"),
        table=headlines_by_text,
        beside="perplexity",
        meaning="Mass on the first token, its uniform null, the share above it, and the share of heads with an "
        "importance above ε; perplexity of the dense model, and how many times that with sinks it is in a window, over "
        "tokens after the first eviction. Intervals of a text are 95% t intervals over its sequences. The last row is "
        "the mean over texts (of perplexities geometric), with t intervals over texts: what differs from text to text "
        "is in them, and fewer than three texts have none.",
    ),
    Item(
        "mass_by_layer",
        "Sink mass by layer",
        variables="sink_mass",
        figure=draw.mass_by_layer,
        table=mass_by_layer,
        meaning="The same mass averaged over the heads of each layer, for the first token and for the first four. "
        "Bands are 95% t intervals over sequences; dotted lines are the uniform nulls.",
    ),
    Item(
        "mean_maps",
        "Mean logits and mean probabilities",
        record=("sentences", "text"),
        variables=("mean_logit", "mean_probability"),
        figure=draw.mean_maps,
        meaning="Attention among the first tokens, averaged over sequences: above as logits (scaled scores before the "
        "softmax, without bound, the unit of StreamingLLM's Figure 2), below as probabilities (rows sum to at most 1, "
        "the unit of its Figure 12). The two are different quantities: each panel names its own.",
    ),
    Item("top_heads", f"The {TOP} strongest sink heads", variables="sink_mass", table=top_heads),
    Item(
        "sink_rate_curve",
        "How many heads are sinks",
        variables="sink_mass",
        figure=draw.sink_rate_curve,
        numbers=rates,
        meaning="Importance α of the first token: its mean attention from all T queries, its own included. The sink "
        "rate (Gu et al. 2024) is the fraction of heads with α > ε, so it is a count of heads and not a mass. It falls "
        "as T grows, and a uniform causal head already has α = H(T)/T, marked for each T. A shorter T is a prefix of "
        "the same sequences.",
        causal_only=True,
    ),
    Item(
        "sink_rate_published",
        "The sink rate at its published setting",
        record="short",
        variables="sink_mass",
        figure=draw.sink_rate_curve,
        numbers=partial(rates, quantity="sink rate, published setting"),
        meaning="The same curve over many short sequences, the setting of Gu et al. 2024 (100 sequences of 64 tokens, "
        "ε = 0.3), so that the figure can be set beside published ones. What is recorded about the BOS token stands in "
        "the source line; the rate depends on it.",
        causal_only=True,
    ),
    Item(
        "sink_rate",
        "Sink rate by threshold and length",
        variables="sink_mass",
        table=sink_rates,
        beside="short",
        meaning="Flips: heads whose α is above ε on one sequence and not on another, of so many heads; the rate hides "
        "them. Median α: over heads, of their mean over sequences.",
        causal_only=True,
    ),
    Item(
        "recurrence",
        "Sinks that come up on one sequence after another",
        variables="received",
        table=Table(recurrences, title="On how many sequences each position comes up as a sink"),
        meaning="Positions that `discover` lists, on how many of the sequences that are long enough to tell, at three "
        "thresholds ε; exact 95% intervals over sequences. α: mean over layers, heads and sequences, and its standard "
        "deviation from sequence to sequence.",
        causal_only=True,
    ),
    Item(
        "mass_by_length",
        "The mass and its null as a text grows",
        variables="sink_mass",
        figure=draw.mass_by_length,
        meaning="Mass on the first token over prefixes of the same sequences. Left: the mass, its uniform null, and "
        "the share above the null, (m − m₀)/(1 − m₀), which means the same at every length. Right: the mass over the "
        "null, which grows with T though the sink does not: no headline, for that reason.",
        causal_only=True,
    ),
    Item(
        "sensitivity",
        "What the headlines hang on",
        variables="sink_mass",
        table=lambda record, short, other, *losses: sensitivity_table(
            record, short, other, epsilon_of(record), *losses
        ),
        beside=("short", "other_bos", "perplexity", "other_bos_losses"),
        meaning="The mass on the first token and the sink rate at other thresholds ε (of the importance α), lengths T "
        "and choices of BOS, all else as in the headline (its ε, T of the text); BOS is varied on every third of the "
        "short sequences. The collapse, perplexity in a window over that with sinks, up to other lengths T of its own "
        "segments, and on some of these with the other choice of BOS. Above null: (value − null)/(1 − null). "
        "Masses and rates have 95% t intervals over sequences; collapses those of losses, over the texts or batches "
        "that the section on streaming names.",
        causal_only=True,
    ),
    Item("learned_sink", variables="virtual_sink_mass", numbers=learned_sink),
    Item(
        "received_by_position",
        "Who else is a sink",
        variables="received",
        figure=draw.received_by_position,
        table=Table(lambda record: discover(record, epsilon_of(record)), "sinks", "Sinks found at any position"),
        meaning="Importance α of every position of one sequence: the mean attention it receives from the queries that "
        "can see it, averaged over layers and heads. The null, uniform causal attention, is higher for early "
        "positions. The rise at the very end is no sink: few queries see the last keys, and all of those are near.",
    ),
    Item(
        "span_mass",
        "Attention between parts of the text",
        variables=("span_mass", "span"),
        figure=draw_spans,
        table=Table(span_table, "spans", "Attention between spans of the text"),
        meaning="The mean over the queries of one span of the attention that they give to all keys of another. The "
        "null is the same figure for attention spread evenly over the keys that each query sees: the further a span "
        "stands in front, and the longer it is, the more it would get anyway.",
    ),
    Item(
        "entropy_by_layer",
        "Entropy of attention",
        variables="entropy",
        figure=draw.entropy_by_layer,
        numbers=entropies,
        meaning="Entropy in nats, averaged over queries and sequences: 0 is all attention on one key. The uniform null "
        "is the mean of ln(i + 1) over the queries of a causal model (ln T for an encoder).",
    ),
    Item(
        "distance_profile",
        "How far back attention reaches",
        variables="distance_mass",
        figure=draw.distance_profile,
        meaning="Mean attention to the key at each distance, over the queries that reach back so far. The uniform null "
        "is the mean of 1/(i + 1) over the same queries. At the largest distances only the last queries are left and "
        "only the first tokens are so far away: where the first token is a sink, the line rises there.",
        causal_only=True,
    ),
    Item(
        "norms",
        "Key and value norms",
        variables=("key_norm", "value_norm"),
        figure=draw.norms,
        numbers=drained,
        meaning="Euclidean norms of keys and values as attention sees them. Attention that goes to a token with a "
        "small value changes little: a sink's value is drained. No null: the rest of the tokens is the comparison.",
    ),
    Item(
        "massive_activations",
        "Massive activations",
        variables=("activation_max", "activation_median"),
        figure=draw.massive_activations,
        table=found_activations,
        numbers=largest_activation,
        meaning="The largest magnitude in the hidden state after each layer, and the median magnitude of the whole "
        "layer. A massive activation (Sun et al. 2024) is above 100 and at least about 1,000 times the median.",
    ),
    Item(
        "first_cosine",
        "Tokens like the first one",
        variables="first_cosine",
        figure=first_cosine,
        meaning="The share of the other tokens whose hidden state after a layer points the way of the first token's, "
        "or the opposite way. Where the first token is a sink, such tokens can be secondary ones (Wong et al. 2025); "
        "whether they take attention is to be seen in the attention they receive.",
        causal_only=True,
    ),
    Item(
        "value_drain",
        "Value drain",
        variables=("key_norm", "value_norm"),
        table=lambda record: value_drain(record, first=1).to_dataframe().reset_index(),
    ),
)
ATTENTION = Section(
    "Where attention goes",
    ITEMS,
    run,
    records={
        "text": "The text",
        "short": "The sink rate at its published setting",
        "other_bos": "The other choice of BOS",
        "sentences": "Mean maps",
    },
    headline=headline,
)
