"""What a report says of the first token: masses, rates, the headline, and these of several texts side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.costs import after_eviction, families
from sinkscope.analysis.importance import EPSILON, RATE_NOTE, sink_rate, sink_rate_curve
from sinkscope.analysis.intervals import TEXT, interval
from sinkscope.analysis.mass import above_null, sink_mass
from sinkscope.analysis.perplexity import ppl_table
from sinkscope.analysis.variables import is_causal, whole
from sinkscope.figures.requirements import lengths, tokens_named
from sinkscope.figures.style import number
from sinkscope.reporting.content import Numbers, Records


def first_tokens(record: xr.Dataset) -> list[int]:
    """How many first keys masses are given for: one, and four or as many as there are."""
    return sorted({1, min(4, record.sizes["sink"])})


def epsilon_of(record: xr.Dataset) -> float:
    """The importance from which on a head has a sink."""
    return float(record.attrs.get("epsilon", EPSILON))


def masses(record: xr.Dataset) -> Numbers:
    """Mass on the first tokens, mean over the queries after them, layers and heads."""
    kind = "causal " if is_causal(record) else ""
    rows = []
    for first in first_tokens(record):
        mass = record["sink_mass"].isel(sink=slice(0, first)).sum("sink", skipna=False)
        each = mass.isel(query=slice(first, None)).mean(["query", "layer", "head"], dtype=np.float64)
        note = f"mean over queries i ≥ {first}; null: uniform {kind}attention"
        rows.append(
            {"quantity": f"mass on the {tokens_named(first)}", "unit": "probability", **over_sequences(record, each),
             "null": sink_mass(record, first=first).attrs["null"], "note": note}
        )  # fmt: skip
    return rows


def rates(record: xr.Dataset, quantity: str = "sink rate") -> Numbers:
    length, epsilon = int(lengths(record).min()), epsilon_of(record)
    curve = sink_rate_curve(record, epsilons=[epsilon], lengths=[length]).squeeze()
    rate = sink_rate(record, epsilon=epsilon)
    equal = length == int(lengths(record).max())
    note = (
        f"α > {epsilon:g} at T = {length}; α of a uniform causal head: {float(curve['null_alpha']):.4f}; "
        f"BOS: {record.attrs.get('bos', 'unknown')}"
    )
    note += f"; median α over heads: {float(curve['median_alpha']):.3f}"
    if (flips := float(curve["flips"])) == flips:
        note += (
            f"; {int(flips)} of {int(curve['heads'])} heads are above on one of {int(curve['sequences'])} sequences "
            "and not on another"
        )
    note += f"; {RATE_NOTE}" if RATE_NOTE in curve.attrs.get("note", "") else ""
    return [
        {"quantity": quantity, "unit": "fraction of heads", "value": float(rate) if equal else float(curve["rate"]),
         "lower": float(curve["lower"]), "upper": float(curve["upper"]), "null": float(rate.attrs["null_rate"]),
         "note": note}
    ]  # fmt: skip


def headline(records: Records) -> str:
    """How much of the attention above the null goes to the first token, over what that holds, and how many heads."""
    record = records["text"]
    if "sink_mass" not in record:
        return f"{record.sizes.get('layer', 0)} layers measured; no sink mass in this record."
    mass = masses(record)[0]
    ends = [100 * above_null(mass[name], mass["null"]) for name in ("value", "lower", "upper")]
    within = f" [{ends[1]:.1f}, {ends[2]:.1f}]" if np.isfinite(mass["lower"]) else ""
    over = f" (95%, over {read_as(record)})" if within else ""
    who = "the first token (BOS)" if record.attrs.get("bos") == "yes" else "the first token"
    where = " of the decoder" if record.attrs.get("stream") == "decoder" else ""
    text = (
        f"Across {record.sizes['layer']} layers × {record.sizes['head']} heads{where} {who} takes {ends[0]:.1f}%"
        f"{within} of the attention above the uniform null{over}: {100 * mass['value']:.1f}% of all attention, where "
        f"uniform attention would give it {number(100 * mass['null'], 2)}%"
    )
    if is_causal(record):
        (rate,) = rates(record)
        epsilon, length = epsilon_of(record), int(lengths(record).min())
        text += f"; {100 * rate['value']:.0f}% of heads give it α > {epsilon:g} (T = {length:,})"
    return text + "."


def read_as(record: xr.Dataset) -> str:
    """What the sequences are that an interval is over, in words; those of one text count once."""
    count = len(np.unique(known[TEXT])) if TEXT in (known := whole(record)).coords else record.sizes["sequence"]
    every = count == record.sizes["sequence"]
    return str(record.attrs["read"]) if every and "read" in record.attrs else f"{count} sequences"


def headlines_by_text(record: xr.Dataset, losses: xr.Dataset | None) -> pd.DataFrame:
    """The headlines of each text, and their means over texts with t intervals over texts, of three texts or more."""
    rows, names = [], list(dict.fromkeys(record["source"].values.tolist()))
    for name in names:
        own = record.sel(sequence=record["source"] == name)
        mass = masses(own)[0]
        row = {"text": name, "sequences": own.sizes["sequence"], "mass": mass["value"], "mass_low": mass["lower"]}
        row |= {"mass_high": mass["upper"], "null": mass["null"], "above_null": above_null(mass["value"], mass["null"])}
        row |= {"rate": rates(own)[0]["value"]} if is_causal(own) else {}
        rows.append(row | _perplexities(losses, name))
    table = pd.DataFrame(rows)
    known = [name for name in ("mass", "above_null", "rate", "ppl_dense", "window_over_sinks") if name in table]
    logs = [name for name in known if name in ("ppl_dense", "window_over_sinks")]
    values = table[known].assign(**{name: np.log(table[name]) for name in logs})
    over = {"text": "mean over texts", "sequences": int(table["sequences"].sum()), "null": table["null"].iloc[0]}
    for name in known:
        spread = interval(xr.DataArray(values[name].astype(float), dims="text"), dim="text")
        ends = np.array([float(spread[each]) for each in ("mean", "lower", "upper")])
        over[name], low, high = np.exp(ends) if name in logs else ends
        if f"{name}_low" in table:
            over |= {f"{name}_low": low, f"{name}_high": high}
    return pd.concat([table, pd.DataFrame([over])], ignore_index=True)[list(table.columns)]


def _perplexities(losses: xr.Dataset | None, text: str) -> dict[str, float]:
    """Perplexity of the dense model on one text, and the window's over that with sinks, with their intervals."""
    if losses is None or "source" not in losses.coords:
        return {}
    own, found = losses.sel(sequence=losses["source"] == text), families(losses)
    made: dict[str, float] = {}
    if found.dense is not None:
        (row,) = ppl_table(own.sel(policy=[found.dense])).to_dict("records")
        made |= {"ppl_dense": row["ppl"], "ppl_dense_low": row["low"], "ppl_dense_high": row["high"]}
    if found.window is not None and found.sinks is not None:
        pair = ppl_table(after_eviction(own).sel(policy=[found.window, found.sinks]), baseline=found.sinks)
        row = pair.to_dict("records")[0]
        made |= {f"window_over_sinks{end}": row[f"ratio{end}"] for end in ("", "_low", "_high")}
    return made


def over_sequences(record: xr.Dataset, values: xr.DataArray) -> dict[str, Any]:
    """Mean, and its 95% interval over sequences."""
    means = values.mean([dim for dim in values.dims if dim != "sequence"], dtype=np.float64)
    if TEXT in (known := whole(record)).coords:
        means = means.assign_coords({TEXT: known[TEXT]})
    spread = interval(means, dim="sequence", at_least=0)
    return {"value": float(spread["mean"]), "lower": float(spread["lower"]), "upper": float(spread["upper"])}
