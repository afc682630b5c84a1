"""The section of a report on what sinks are for: kinds, two accounts of them, reach, gates and depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.purposes import KINDS, depth_table, gates_table, purpose_sensitivity, purposes
from sinkscope.analysis.reach import reach_table
from sinkscope.analysis.secondary import secondary_sinks
from sinkscope.errors import SinkscopeError
from sinkscope.figures.heads import lost_value_share
from sinkscope.figures.requirements import tokens_named
from sinkscope.figures.style import number
from sinkscope.reporting.content import Item, Numbers, Section, Table
from sinkscope.reporting.made import measured_on

if TYPE_CHECKING:
    from sinkscope.probes import Probe
    from sinkscope.reporting.passes import Passes

TOP = 20  # rows of a table
FEW = 16  # tokens that tell whether a model can be measured so
NEAR = (0.85, 1.15)  # factors of a threshold that the sentence names


def possible(passes: Passes, *probes: Probe) -> tuple[list[Probe], list[str]]:
    """Those of some probes that model and sequences can take, and notes on the others; none on gates, which most models
    do not have, and on what needs a text where there is none."""
    from sinkscope.probes import Gates, Reach
    from sinkscope.scope.measure import measure

    taken: list[Probe] = []
    notes: list[str] = []
    for probe in probes if passes.inputs is None else ():
        try:
            measure(passes.model, passes.rows[:1, :FEW], [probe], progress=False)
        except SinkscopeError as reason:
            what = "How much of a text heads need" if isinstance(probe, Reach) else "What sinks are for"
            notes += [] if isinstance(probe, Gates) else [f"{what} was not measured: {reason}"]
        else:
            taken.append(probe)
    return taken, notes


def near(tokens: int) -> tuple[int, int]:
    """Windows that leave most of a text outside: a sixteenth and a quarter of it."""
    return max(1, tokens // 16), max(2, tokens // 4)


def say_kinds(record: xr.Dataset, table: pd.DataFrame) -> str:
    counts, heads = table["kind"].value_counts(), len(table)
    sinks = table[table["kind"] != "no sink"]
    if not len(sinks):
        return (
            f"None of {heads:,} heads has a sink: in none do {table.attrs['event']:.0%} of the queries give one key "
            f"{table.attrs['mass']:.0%} of their attention or more."
        )
    each = ", ".join(f"{int(counts.get(kind, 0)):,} {kind}" for kind in KINDS[:3])
    said = f"Of {heads:,} heads {len(sinks):,} have a sink: {each}; its key is the first token in "
    said += f"{int((sinks['sink_key'] == 0).sum()):,}."
    if record.sizes["sequence"] > 1:
        said += f" {int((sinks['agreement'] == 1).sum()):,} of them are of one kind in every sequence."
    moved = purpose_sensitivity(record, NEAR)
    ends = []
    for kind in KINDS[:2]:
        found = [*(moved[moved["kind"] == kind]["heads"] * heads).round(), int(counts.get(kind, 0))]
        ends.append(f"{kind} in {' to '.join(dict.fromkeys(f'{each:,.0f}' for each in (min(found), max(found))))}")
    return f"{said} With one threshold moved by 15%, {' and '.join(ends)}."


def kinds(record: xr.Dataset) -> Numbers:
    table = purposes(record)
    note = table.attrs["computed"]
    rows: Numbers = []
    for kind in KINDS[:3]:
        share = float((table["kind"] == kind).mean())
        name = {"neither": "heads with another sink"}.get(kind, f"heads with a {kind} sink")
        rows.append({"quantity": name, "unit": "fraction of heads", "value": share, "note": note})
    return rows


def say_accounts(record: xr.Dataset, table: pd.DataFrame) -> str:
    first = tokens_named(int(np.size(record["evicted_key"])))
    told = []
    for kind in KINDS[:3]:
        own = table[table["kind"] == kind]["lost_value"].dropna()
        if len(own):
            told.append(
                f"{kind}, the lost value is the longer part in {int((own > 0.5).sum()):,} of {len(own):,} heads "
                f"(median share {number(float(own.median()))})"
            )
    if not told:
        return f"No head has a sink here, so evicting the {first} takes no sink's value, and none's place in a sum."
    return f"Where the {first} are evicted and the sink is a {'; where it is a '.join(told)}.".replace(
        "a neither", "neither"
    )


def accounts_table(record: xr.Dataset) -> pd.DataFrame:
    """The kind of each head, and the share of the lost value in what evicting the first keys would change."""
    table = purposes(record)
    shares = lost_value_share(record)
    places = zip(table["layer"], table["head"], strict=True)
    table["lost_value"] = [float(shares.sel(layer=layer, head=head)) for layer, head in places]
    return table


def say_reach(record: xr.Dataset, table: pd.DataFrame) -> str:
    streaming = table["kind"] == "streaming"
    given = table.attrs
    return (
        f"With {given['sinks']} sinks and the last {given['window']:,} tokens alone, {int(streaming.sum()):,} of "
        f"{len(table):,} heads lose at most {given['most']:.0%} of their output and could stream; "
        f"{int((~streaming).sum()):,} need more. These keys hold {number(float(table['reach'].mean()))} of all "
        f"attention (uniform attention over {measured_on(record)}: {number(given['null_reach'])})."
    )


def streaming_heads(record: xr.Dataset) -> Numbers:
    table = reach_table(record)
    note = (
        f"{table.attrs['sinks']} sinks + {table.attrs['window']}: error of the output at most {table.attrs['most']:g}"
    )
    share = float((table["kind"] == "streaming").mean())
    return [{"quantity": "heads that could stream", "unit": "fraction of heads", "value": share, "note": note}]


def say_gates(record: xr.Dataset, table: pd.DataFrame) -> str:
    shut = table["gate_low"].mean()
    said = f"Over {len(table):,} gated heads the mean gate is {number(float(table['gate'].mean()))}, and {shut:.0%} of "
    said += "gates are below 0.1."
    if table["mass"].notna().any():
        mass, left = (float(table[name].mean()) for name in ("mass", "gated_mass"))
        said += f" The first token takes {number(mass)} of the attention, and times the gate {number(left)}."
    return said


def mean_gate(record: xr.Dataset) -> Numbers:
    value = float(gates_table(record)["gate"].mean())
    return [{"quantity": "mean gate on a head's output", "unit": "ratio", "value": value}]


def say_depth(record: xr.Dataset, table: pd.DataFrame) -> str:
    layers, entropy, norms, rates = (
        table[name].to_numpy() for name in ("layer", "matrix_entropy", "first_norm", "sink_rate")
    )
    lowest, longest = int(np.nanargmin(entropy)), int(np.nanargmax(norms))
    said = (
        f"Matrix entropy is lowest behind layer {layers[lowest]} ({number(float(entropy[lowest]))}; median over layers "
        f"{number(float(np.nanmedian(entropy)))}), and the first token's state longest behind layer {layers[longest]} "
        f"({number(float(norms[longest] / np.nanmedian(norms)))} times the median)."
    )
    if (rates > 0).any():
        most = int(np.nanargmax(rates))
        said += f" Most heads hold on to the first token in layer {layers[most]} ({rates[most]:.0%} of them)."
    return said


def say_secondary(table: pd.DataFrame) -> str:
    given, found = table.attrs, len(table)
    layers, least = given["layers"], given["layers"] - given["spared"]
    if layers <= given["short"] + given["spared"] + 1:
        return (
            f"The authors' numbers of layers do not tell secondary sinks apart in a model of {layers}; "
            "`sinkscope.secondary_sinks` takes others."
        )
    low, high = (number(given[f"secondary_{end}"]) for end in ("low", "high"))
    span = f" (95% interval {low} to {high})" if np.isfinite(given["secondary_high"]) else ""
    said = (
        f"The number of secondary sinks in a sequence is {number(given['secondary'])} on average{span}: their states "
        f"are parallel to the first token's in more than {given['short']} and fewer than {least} of {layers} layers."
    )
    if found:
        primary = int((table["kind"] == "primary").sum())
        said += f" Of {found:,} tokens that are parallel somewhere {primary:,} are so in {least} layers or more."
    if np.isfinite(given["outside"]):
        said += (
            " In the layers in which the first token is no sink, the share of the other tokens that are parallel to it "
            f"is {number(given['outside'])}."
        )
    return said


def secondary(record: xr.Dataset) -> Numbers:
    table = secondary_sinks(record)
    given = table.attrs
    if given["layers"] <= given["short"] + given["spared"] + 1:
        return []
    ends = {name: given[f"secondary_{end}"] for name, end in (("lower", "low"), ("upper", "high"))}
    return [{"quantity": "secondary sinks", "unit": "tokens of a sequence", "value": given["secondary"], **ends}]


def longest_lived(record: xr.Dataset) -> pd.DataFrame:
    """The tokens that are parallel to the first one longest, but for those that are so for too short to count."""
    table = secondary_sinks(record)
    counted = table[table["kind"] != "short"].sort_values("lifetime", ascending=False, kind="stable").head(TOP)
    return counted.reset_index(drop=True)


ITEMS = (
    Item(
        "purposes",
        "What the strongest key of each head is for",
        variables=("sink_key", "sink_share", "sink_norm_ratio", "output_stable_rank"),
        sentence=say_kinds,
        numbers=kinds,
        table=purposes,
        meaning="A head has a sink where 90% of the queries give its strongest key half of their attention or more. A "
        "no-op hands on at most 0.2 of what other keys hand on (norm of W_O v over their mean); a broadcast at least "
        "0.5, in a head whose output has a stable rank of at most 1.5 (Fesser et al. 2026). Null: a key like all "
        "others has a ratio of 1, and uniform attention no sink. Agreement: sequences with this kind by themselves.",
    ),
    Item(
        "two_accounts",
        "Where two accounts of sinks meet",
        record="forced",
        variables=("sink_norm_ratio", "lost_value", "lost_denominator"),
        figure=draw.purposes,
        sentence=say_accounts,
        table=Table(accounts_table, meaning="Lost value: its share in lost value and lost denominator, of mean norms."),
        meaning="Each dot is a head, over the shorter sequences of eviction in closed form. To the right: what its "
        "strongest key hands on, over the mean of other keys. Upwards: of what evicting the first keys would change, "
        "the share of the lost value; the rest is the lost denominator. A no-op would lose its denominator, a "
        "broadcast its value.",
        causal_only=True,
    ),
    Item(
        "head_reach",
        "Which heads could stream",
        variables=("reach", "stream_error"),
        figure=draw.reach,
        sentence=say_reach,
        numbers=streaming_heads,
        table=reach_table,
        meaning="Left: attention inside the first keys and a window of the last ones, up to a quarter of a sequence, "
        "mean over heads; dotted, that of uniform attention. Right: how much of its output each head would lose if it "
        "saw no others, ‖O − O'‖ / ‖O‖; at most 0.1, a choice of ours, makes a streaming head, and more a retrieval "
        "head.",
        causal_only=True,
    ),
    Item(
        "gates",
        "What gates leave of heads",
        variables=("gate", "gate_low"),
        sentence=say_gates,
        numbers=mean_gate,
        table=gates_table,
        meaning="The gate that a head's output is multiplied by before W_O (Qiu et al. 2025): its mean, the share of "
        "gates below 0.1, and the mass on the first token, alone and times the gate of the query.",
    ),
    Item(
        "depth",
        "Hidden states and sinks over depth",
        variables=("matrix_entropy", "state_norm"),
        figure=draw.depth,
        sentence=say_depth,
        table=Table(depth_table, meaning="Means over texts with 95% t intervals, by layer."),
        meaning="Normalised matrix entropy and anisotropy of the hidden states (Queipo-de-Llano et al. 2025; 1 and "
        "1/min(T, width) where all directions are alike), the norm of the first token's state, kurtosis (3 for a "
        "normal distribution) and the share of a layer's heads that hold on to the first token.",
    ),
    Item(
        "secondary_sinks",
        "Secondary sinks",
        variables=("first_cosine", "state_norm"),
        sentence=lambda record, table: say_secondary(secondary_sinks(record)),
        numbers=secondary,
        table=longest_lived,
        meaning="Tokens whose state is parallel to the first token's (|cosine| > 0.9) between the layers behind which "
        "the norm of that rises and falls most, those with the longest lifetimes (Wong et al. 2025). Primary: at most "
        "15 layers fewer than there are, as the first token; secondary: less, but more than 4 layers. Importance: mean "
        "attention on the token in these layers; null, of uniform attention. The null of the count is the share of "
        "parallel tokens in the remaining layers.",
        causal_only=True,
    ),
)
PURPOSES = Section("What a sink is for", ITEMS)
"""Measured with the records of other sections: the text, and the shorter ones of eviction in closed form."""
