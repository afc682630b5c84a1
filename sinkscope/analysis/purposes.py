"""What sinks are for, what gates leave of them, and what hidden states do over depth."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.discovery import massive_activations
from sinkscope.analysis.importance import EPSILON, FEW_TEXTS, importance
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.reading import reads
from sinkscope.analysis.secondary import steps
from sinkscope.analysis.variables import check_begins, first_keys, sequence_lengths, variable, whole
from sinkscope.arguments import finite_number, open_unit, several, whole_number
from sinkscope.errors import SinkscopeError

KINDS = ("no-op", "broadcast", "neither", "no sink")
MASS = 0.5  # of a query that holds on to a key (Fesser et al. 2026)
EVENT, NO_OP, BROADCAST, RANK = 0.9, 0.2, 0.5, 1.5  # Fesser et al. 2026
MEASURED = ("sink_share", "sink_norm_ratio", "output_stable_rank")
FACTORS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5)


@reads
def purposes(
    record: xr.Dataset, event: float = EVENT, no_op: float = NO_OP, broadcast: float = BROADCAST, rank: float = RANK
) -> pd.DataFrame:
    """What the strongest key of each head is for, one row for each head (Fesser et al. 2026, arXiv 2606.08105).

    kind         "no-op": a sink whose norm ratio is at most `no_op`; "broadcast": one of at least `broadcast`, in a
                 head whose output has a stable rank of at most `rank`; "neither"; "no sink": fewer than `event` of the
                 queries hold on to the key
    agreement    share of the texts that have this kind by themselves
    sink_key     the most frequent one
    sink_share, sink_norm_ratio, output_stable_rank   means over texts, by which the kind goes

    attrs: the thresholds; mass, the probe's, from which on a query holds on; null_share, of uniform causal attention to
    the first key (of a mass of 0.5: 2 / T); null_ratio, 1, of a key like all others.

    >>> list(sinkscope.purposes(record))[:4]
    ['layer', 'head', 'kind', 'agreement']

    Raises:
        SinkscopeError: a record without what `SinkPurpose` makes, thresholds out of range.
    """
    given = checked_thresholds(event, no_op, broadcast, rank)
    record = whole(record)
    numbers = {name: variable(record, name).transpose("sequence", "layer", "head") for name in MEASURED}
    means = {name: each.mean("sequence") for name, each in numbers.items()}
    kinds, each_text = (_kinds([each[name].values for name in MEASURED], given) for each in (means, numbers))
    keys = variable(record, "sink_key").transpose("sequence", "layer", "head").values
    held = float(record["sink_share_from"].item()) if "sink_share_from" in record.coords else MASS
    rows = []
    for layer, head in np.argwhere(np.isfinite(means["sink_share"].values)):
        seen = keys[:, layer, head]
        own = each_text[:, layer, head]
        row: dict[str, Any] = {
            "layer": int(record["layer"].values[layer]),
            "head": int(record["head"].values[head]),
            "kind": kinds[layer, head],
            "agreement": float((own == kinds[layer, head]).mean()),
            "sink_key": int(np.bincount(seen[seen >= 0].astype(int)).argmax()),
        }
        rows.append(row | {name: float(means[name].values[layer, head]) for name in MEASURED})
    table = pd.DataFrame(rows)
    table.attrs = {
        **record.attrs,
        **dict[Hashable, Any](given.items()),
        "mass": held,
        "null_share": float((np.floor(1 / held + 1e-9) / sequence_lengths(record)).clip(max=1).mean()),
        "null_ratio": 1.0,
        "computed": f"sinks: {event:.0%} of the queries give {held:g} or more; no-op: ratio <= {no_op:g}; broadcast: "
        f"ratio >= {broadcast:g} and stable rank <= {rank:g} (Fesser et al. 2026)",
    }
    return table


def checked_thresholds(event: Any, no_op: Any, broadcast: Any, rank: Any) -> dict[str, float]:
    """The thresholds by name; SinkscopeError for those that no head, or every head, would meet."""
    found = {
        "event": open_unit(event, "event"),
        "no_op": finite_number(no_op, "no_op", 0.0),
        "broadcast": finite_number(broadcast, "broadcast", 0.0),
        "rank": finite_number(rank, "rank", 1.0, inclusive=True),
    }
    if found["no_op"] >= found["broadcast"]:
        raise SinkscopeError(
            f"no_op={no_op!r} is not below broadcast={broadcast!r}, so a head could be both; give a lower no_op."
        )
    return found


def _kinds(numbers: list[np.ndarray], given: dict[str, float]) -> np.ndarray:
    share, ratio, stable = numbers
    spread = (ratio >= given["broadcast"]) & (stable <= given["rank"])
    conditions = [~(share >= given["event"]), ratio <= given["no_op"], spread]
    return np.select(conditions, ["no sink", "no-op", "broadcast"], "neither")


@reads
def purpose_sensitivity(record: xr.Dataset, factors: Sequence[float] = FACTORS) -> pd.DataFrame:
    """How many heads are of each kind where one threshold is another: a row for each threshold, factor and kind.

    The excess of the stable rank over 1 is multiplied, and of the event what is left to 1. Values that a threshold
    cannot have are left out. Columns: threshold, factor, value, kind, heads (a share of them).

    >>> list(sinkscope.purpose_sensitivity(record, factors=(0.85, 1.0, 1.15)))
    ['threshold', 'factor', 'value', 'kind', 'heads']

    Raises:
        SinkscopeError: as `purposes`; no factors, or some that are not above 0.
    """
    moves = [finite_number(each, "factors", 0.0) for each in several(factors, "factors")]
    if not moves:
        raise SinkscopeError("factors=() move no threshold; give numbers such as (0.5, 1, 1.5).")
    usual = {"event": EVENT, "no_op": NO_OP, "broadcast": BROADCAST, "rank": RANK}
    base = purposes(record)
    numbers = [base[name].to_numpy() for name in MEASURED]
    rows = []
    for name, value in usual.items():
        for factor in moves:
            moved = {"event": 1 - (1 - value) * factor, "rank": 1 + (value - 1) * factor}.get(name, value * factor)
            given = usual | {name: moved}
            if not 0 < given["event"] < 1 or given["no_op"] >= given["broadcast"]:
                continue
            kinds = _kinds(numbers, given)
            rows += [(name, factor, moved, kind, float((kinds == kind).mean())) for kind in KINDS]
    table = pd.DataFrame(rows, columns=["threshold", "factor", "value", "kind", "heads"])
    table.attrs = {**base.attrs, "computed": "shares of heads by kind, one threshold at a time moved"}
    return table


@reads
def gates_table(record: xr.Dataset, first: int = 1) -> pd.DataFrame:
    """What the gate leaves of each head, one row for each gated one (Qiu et al. 2025, arXiv 2505.06708).

    gate         mean over texts and queries
    gate_low     share of the gates below the probe's threshold
    mass         attention on the first `first` keys, over the queries behind them; NaN where it was not measured
    gated_mass   the same times the gate of the query: what of the sink is handed on (a proposal of ours)

    >>> list(sinkscope.gates_table(record))[:4]
    ['layer', 'head', 'gate', 'gate_low']

    Raises:
        SinkscopeError: a record without what `Gates` makes, or of fewer first keys.
    """
    record, first = whole(record), whole_number(first, "first", 1)
    gate, low = (variable(record, name) for name in ("gate", "gate_low"))
    columns = {"gate": gate.mean(["sequence", "query"]), "gate_low": low.mean(["sequence", "query"])}
    if "sink_mass" in record:
        mass = first_keys(record, first, "first").sum("sink", skipna=False)
        late = mass.where((mass["query"] >= first) & gate.notnull())
        columns |= {"mass": late.mean(["sequence", "query"]), "gated_mass": (late * gate).mean(["sequence", "query"])}
    frame = xr.Dataset(columns).reset_coords(drop=True).to_dataframe(dim_order=["layer", "head"]).reset_index()
    for name in ("mass", "gated_mass"):
        frame[name] = frame.get(name, np.nan)
    table = frame.dropna(subset=["gate"]).reset_index(drop=True)
    table.attrs = {**record.attrs, "computed": "gates on the output of heads, means over texts and queries"}
    return table


@reads
def depth_table(record: xr.Dataset, epsilon: float = EPSILON, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Hidden states and sinks over depth, one row for each layer (Queipo-de-Llano et al. 2025, arXiv 2510.06477).

    matrix_entropy, anisotropy, kurtosis, first_norm, sink_rate   means over texts, each with `_low` and `_high` of a
    95% t interval over them. first_norm is that of the first token's state; sink_rate the share of the layer's heads
    whose mean attention to the first token is above `epsilon`, NaN where that was not measured, and without bounds over
    fewer than 16 texts, as every rate here.

    attrs: null_entropy, 1, of states in all directions alike; null_kurtosis, 3, of normal ones.

    >>> list(sinkscope.depth_table(record, resamples=50))[:3]
    ['layer', 'matrix_entropy', 'matrix_entropy_low']

    Raises:
        SinkscopeError: a record without what `Compression` makes.
    """
    record = whole(record)
    check_begins(record)
    found = {
        "matrix_entropy": variable(record, "matrix_entropy"),
        "anisotropy": variable(record, "anisotropy"),
        "kurtosis": variable(record, "state_kurtosis"),
        "first_norm": variable(record, "state_norm").isel(token=0, drop=True),
    }
    if "sink_mass" in record or "received" in record:
        alpha = importance(record).sel(key=0, drop=True).reset_coords(drop=True)
        above = (alpha > open_unit(epsilon, "epsilon")).where(alpha.notnull())
        found["sink_rate"] = above.mean("head")
    table = pd.DataFrame({"layer": record["layer"].values})
    for name, values in found.items():
        most = None if name in ("kurtosis", "first_norm") else 1
        bounds = interval(
            values.astype(np.float64), "sequence", resamples=resamples, seed=seed, at_least=0, at_most=most
        )
        bounds = bounds.reindex(layer=table["layer"].values)
        for column, source in (("", "mean"), ("_low", "lower"), ("_high", "upper")):
            is_known = name != "sink_rate" or not column or bounds.attrs["n"] >= FEW_TEXTS
            table[name + column] = bounds[source].values if is_known else np.nan
    for name in ("sink_rate", "sink_rate_low", "sink_rate_high"):
        table[name] = table.get(name, np.nan)
    table.attrs = {**record.attrs, "epsilon": epsilon, "null_entropy": 1.0, "null_kurtosis": 3.0}
    return table


@reads
def spike_life(record: xr.Dataset, magnitude: float = 100, ratio: float = 1000) -> pd.DataFrame:
    """The life of each massive activation: one row for each text and token that has one (Sun et al. 2024).

    rise, fall       first and last layer behind which the token's largest entry is massive (see `massive_activations`)
    layers           behind how many
    dimensions       the channels it is in, by the number of layers, as "1415 2533"
    magnitude        the largest
    step_up, step_down   layers with the largest rise of the norm of the token's state over the layer before, and with
                     the largest fall; -1 without what `Compression` makes, or where it never falls

    >>> list(sinkscope.spike_life(record, magnitude=5, ratio=2))
    ['sequence', 'position', 'token_text', 'rise', 'fall', 'layers', 'dimensions', 'magnitude', 'step_up', 'step_down']

    Raises:
        SinkscopeError: as `massive_activations`.
    """
    found = massive_activations(record, magnitude, ratio)
    rows = []
    rises = steps(whole(record)) if "state_norm" in record else None
    for (sequence, position), each in found.groupby(["sequence", "position"]):
        up = down = -1
        own = None if rises is None else rises.sel(sequence=sequence).isel(token=position).dropna("layer")
        if own is not None and own.size:
            up = int(own["layer"].values[int(own.values.argmax())])
            down = int(own["layer"].values[int(own.values.argmin())]) if bool((own < 0).any()) else -1
        rows.append(
            {
                "sequence": sequence, "position": position, "token_text": each["token_text"].iloc[0],
                "rise": int(each["layer"].min()), "fall": int(each["layer"].max()), "layers": len(each),
                "dimensions": " ".join(map(str, each["dimension"].value_counts().index)),
                "magnitude": float(each["magnitude"].max()), "step_up": up, "step_down": down,
            }
        )  # fmt: skip
    columns = ("sequence", "position", "token_text", "rise", "fall", "layers", "dimensions", "magnitude", "step_up")
    table = pd.DataFrame(rows, columns=[*columns, "step_down"])
    table.attrs = found.attrs
    return table


@reads
def spike_overlap(
    record: xr.Dataset, epsilon: float = EPSILON, magnitude: float = 100, ratio: float = 1000
) -> pd.DataFrame:
    """Whether the tokens with massive activations are those that take attention: one row for each text.

    spikes, sinks    tokens with a massive activation behind some layer, and keys with an importance above `epsilon` in
                     some head, among those that at least 16 queries see (see `discover`)
    both             how many are both
    jaccard          of the two sets; NaN where both are empty
    null             the same expected of as many tokens drawn at random, by both / either in the mean

    >>> list(sinkscope.spike_overlap(record, magnitude=5, ratio=2))
    ['sequence', 'spikes', 'sinks', 'both', 'jaccard', 'null']

    Raises:
        SinkscopeError: a record without `received`, or hidden-state extremes.
    """
    record, epsilon = whole(record), open_unit(epsilon, "epsilon")
    variable(record, "received")
    alpha, spikes = importance(record), massive_activations(record, magnitude, ratio)
    rows = []
    for row, sequence in enumerate(record["sequence"].values):
        each = alpha.isel(sequence=row)
        seen = each["queries"].values >= min(16, int(each["queries"].max()))
        sinks = set(np.flatnonzero(((each > epsilon).any(["layer", "head"])).values & seen).tolist())
        massive = set(spikes["position"][spikes["sequence"] == sequence].tolist()) & set(np.flatnonzero(seen).tolist())
        both, either, places = len(sinks & massive), len(sinks | massive), int(seen.sum())
        expected = len(sinks) * len(massive) / places
        null = expected / (len(sinks) + len(massive) - expected) if either else np.nan
        rows.append((sequence, len(massive), len(sinks), both, both / either if either else np.nan, null))
    table = pd.DataFrame(rows, columns=["sequence", "spikes", "sinks", "both", "jaccard", "null"])
    table.attrs = {**record.attrs, "epsilon": epsilon, "magnitude": magnitude, "ratio": ratio}
    return table
