"""Many models in one table, from records of their reports, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import norm, spearmanr

from sinkscope.analysis.ablation import ablation_table
from sinkscope.analysis.compare import DIFFER, collapsed, strength
from sinkscope.analysis.discovery import massive_activations
from sinkscope.analysis.importance import EPSILON, sink_rate, sink_rate_curve
from sinkscope.analysis.intervals import TEXT, interval
from sinkscope.analysis.mass import mass_of_texts
from sinkscope.analysis.perplexity import ppl_table
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import is_causal, sequence_lengths, whole
from sinkscope.arguments import one_of, whole_number
from sinkscope.errors import SinkscopeError, first_line

WITHIN = 0.01
"""As many sinks are needed as bring perplexity this near to that with the most."""

STRONGEST = 0.9  # rank correlation that has an interval
FEWEST_MODELS = 10
"""With fewer models a rank correlation has no interval that holds it (Bonett and Wright 2000)."""

STRENGTHS = ("sink_mass", "sink_rate", "published_rate")

PUBLISHED = pd.DataFrame(
    [
        ("Falcon-7B", 17.90, 12.12, 2048),
        ("MPT-7B", 460.29, 14.99, 2048),
        ("Pythia-12B", 21.62, 12.09, 2048),
        ("Llama-2-7B", 3359.95, 9.59, 4096),
    ],
    columns=["model", "window", "sinks", "cache_size"],
)
"""Perplexity without sinks and with four: Xiao et al. 2023, Table 2."""


def atlas_table(records: Mapping[str, Mapping[str, xr.Dataset]]) -> pd.DataFrame:
    """The headline numbers of several models, one row for each; what was not measured is NaN.

    model, text, tokens_as       its name, its text, and the first model in the table that reads the same tokens
    sink_mass, sink_rate, ..     as of `sinkscope.compare`, over the tokens that the texts of all have
    published_rate, .._low, .._high  sink rate over many short texts, as published by Gu et al. 2024, where the report
                                 has one; published_T and published_texts say which
    collapse, .._low, .._high    as of `sinkscope.compare`; cache_size and sinks are those of its policies
    sinks_needed                 the fewest sinks with which perplexity is within 1% of that with the most; sinks_tried
                                 says how many that is
    largest_activation, times_median  in the hidden states of any layer, and over its layer's median
    massive_tokens               tokens of a text with a massive activation (Sun et al. 2024), mean over texts
    differs                      in what else than the model a row differs from the first, as of `compare`
    missing                      what could not be told, and why

    Args:
        records: by model, its records by name: "text", and if there are "perplexity", "short" and "ablation".

    Raises:
        SinkscopeError: no models, or one without sink mass.
    """
    if not records:
        raise SinkscopeError("there is nothing to put into an atlas: give models, or folders of saved reports.")
    main = {model: own["text"] for model, own in records.items()}
    for model, record in main.items():
        _check_mass(record, f"the report of {model}")
        if not is_causal(record):
            raise SinkscopeError(f"{model} is an encoder, whose sink rate is not that of a decoder: leave it out.")
    length = min(int(sequence_lengths(record).min()) for record in main.values())
    curves = [own["perplexity"] for own in records.values() if "perplexity" in own]
    read = min((int(curve.sizes["token"]) for curve in curves), default=0)
    rows = []
    for model, own in records.items():
        reasons: list[str] = []
        row: dict[str, Any] = {"model": model, "text": str(main[model].attrs.get("text", "unknown"))}
        same = (other for other in main if same_tokens(main[other], main[model]))
        row |= {"tokens_as": next(same)} | strength(main[model], length)
        for part, make in (("short", _published), ("ablation", _needed), ("perplexity", _collapse)):
            try:
                row |= make(own[part], read) if part in own else {}
            except SinkscopeError as reason:
                reasons.append(str(reason))
            if part not in own:
                reasons.append(f"there is no record `{part}`")
        try:
            row |= _massive(main[model])
        except SinkscopeError as reason:
            reasons.append(first_line(reason))
        rows.append(row | {"missing": "; ".join(reasons)})
    table = pd.DataFrame(rows)
    for name in ("published_rate", "collapse", "sinks_needed", "largest_activation", "massive_tokens"):
        if name not in table:
            table[name] = np.nan
    first = rows[0]
    table["differs"] = [
        ", ".join(name for name in DIFFER if name in row and name in first and row[name] != first[name]) for row in rows
    ]
    table.attrs = {
        "model": f"{len(rows)} models" if len(rows) > 1 else rows[0]["model"],
        "text": first["text"] if len(set(table["text"])) == 1 else f"{len(set(table['text']))} texts",
        "sinkscope": ", ".join(sorted({str(each.attrs.get("sinkscope", "")) for each in main.values()})),
        "date": max(str(each.attrs.get("date", "")) for each in main.values()),
        "kind": "atlas",
        "epsilon": EPSILON,
    }
    return table


def _check_mass(record: xr.Dataset, which: str) -> None:
    if "sink_mass" not in record:
        raise SinkscopeError(f"{which} has no sink mass; make it again.")
    if "sink" not in record["sink_mass"].dims:  # a column of the table of an atlas
        raise SinkscopeError(f"{which} is an atlas, of several models; give the reports that it was made of.")


def same_tokens(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two models read the same tokens, as far as both texts go: a text in the same vocabulary."""
    if one is other:
        return True
    if "token_id" not in one.coords or "token_id" not in other.coords:
        return False
    ids = [each["token_id"].transpose("sequence", "token").values for each in (one, other)]
    rows, columns = (min(sizes) for sizes in zip(*(each.shape for each in ids), strict=True))
    return bool((ids[0][:rows, :columns] == ids[1][:rows, :columns]).all())


def vocabularies(table: pd.DataFrame) -> str:
    """What can be compared where models read other tokens, in one sentence; nothing where all read the same."""
    groups = table.groupby("tokens_as", sort=False)["model"].apply(list).tolist()
    if len(groups) < 2:
        return ""
    said = " / ".join(", ".join(group) for group in groups)
    return (
        f"Not all of these models read the same tokens ({said}), because their texts or vocabularies differ: a "
        "perplexity per token of one cannot be compared with that of another, and T tokens are not the same words; a "
        "collapse is a ratio within one model."
    )


@reads
def strength_and_collapse(table: pd.DataFrame, by: str = "sink_mass") -> dict[str, float]:
    """Whether the sinks' strength predicts the collapse: Spearman's rank correlation over models, with its interval.

    The interval is on Fisher's scale, with a variance of (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000). It takes
    models as independent, which those of one family are not. Nearer to 1 than 0.9 it would be too narrow, and there is
    none (NaN).

    >>> sinkscope.strength_and_collapse(table)["n"]
    12

    Args:
        table: of `atlas_table`, or of `sinkscope.compare`.
        by: "sink_mass", "sink_rate" or "published_rate".

    Returns:
        rho, low, high, n.

    Raises:
        SinkscopeError: fewer than ten models of one setting with a collapse.
    """
    by = one_of(by, "by", STRENGTHS)
    both = table[(table["differs"].isin(["", "tokens", "text"])) & table["collapse"].notna() & table[by].notna()]
    if len(both) < FEWEST_MODELS:
        has = "model of one setting has" if len(both) == 1 else "models of one setting have"
        raise SinkscopeError(
            f"{len(both)} {has} both {by} and a collapse, and whether one predicts the other cannot be told of fewer "
            f"than {FEWEST_MODELS}; give more models."
        )
    rho, n = float(spearmanr(both[by], both["collapse"]).statistic), len(both)
    half = norm.ppf(0.975) * ((1 + rho**2 / 2) / (n - 3)) ** 0.5
    centre = np.arctanh(rho) if abs(rho) <= STRONGEST else np.nan
    return {"rho": rho, "low": float(np.tanh(centre - half)), "high": float(np.tanh(centre + half)), "n": n}


def differences(
    one: Mapping[str, xr.Dataset], other: Mapping[str, xr.Dataset], resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """What differs between two reports, one row for each quantity.

    quantity, one, other         what it is, and its value in each
    difference, low, high        other less one, with its 95% interval paired by text; of perplexities the ratio
    scale                        "difference" or "ratio"
    paired                       whether both read the same tokens; there is no interval otherwise
    note                         why there is no difference or no interval

    Args:
        one, other: records by name, as of `Report.records`.
        resamples, seed: of `interval`.

    Raises:
        SinkscopeError: no sink mass in one of them.
    """
    resamples, seed = whole_number(resamples, "resamples", 1), whole_number(seed, "seed", 0)
    rows, records = [], [one["text"], other["text"]]
    for record, place in zip(records, ("first", "other"), strict=True):
        _check_mass(record, f"the {place} report")
    length = min(int(sequence_lengths(record).min()) for record in records)
    cut = [record.isel(query=slice(0, length)) for record in records]
    is_paired = same_tokens(*records) and records[0].sizes["sequence"] == records[1].sizes["sequence"]
    apart = "" if is_paired else "their tokens or numbers of texts are not the same, so texts cannot be paired"
    masses = [mass_of_texts(record, 1).mean(["layer", "head"]).drop_vars(TEXT, errors="ignore") for record in cut]
    values = [float(mass.mean()) for mass in masses]
    low = high = np.nan
    if is_paired:
        differences, known = masses[1] - masses[0], whole(records[0])
        if TEXT in known.coords:
            differences = differences.assign_coords({TEXT: known[TEXT]})
        spread = interval(differences, resamples=resamples, seed=seed)
        low, high = float(spread["lower"]), float(spread["upper"])
    told = {"scale": "difference", "paired": is_paired, "note": apart}
    rows.append(
        {"quantity": f"mass on the first token, T = {length}", "one": values[0], "other": values[1],
         "difference": values[1] - values[0], "low": low, "high": high, **told}
    )  # fmt: skip
    if all(map(is_causal, records)):
        rates = [float(sink_rate_curve(record, [EPSILON], [length])["rate"].squeeze()) for record in records]
        note = apart or "a share of heads, of which the heads of two models are no pairs"
        rows.append(
            {"quantity": f"sink rate (α > {EPSILON}), T = {length}", "one": rates[0], "other": rates[1],
             "difference": rates[1] - rates[0], **told | {"paired": False, "note": note}}
        )  # fmt: skip
    if "perplexity" in one and "perplexity" in other:
        rows += _perplexities(one["perplexity"], other["perplexity"], resamples, seed)
    table = pd.DataFrame(
        rows, columns=["quantity", "one", "other", "difference", "low", "high", "scale", "paired", "note"]
    )
    table.attrs = records[0].attrs | {"kind": "differences", "other": str(records[1].attrs.get("model", "unknown"))}
    return table


def _perplexities(one: xr.Dataset, other: xr.Dataset, resamples: int, seed: int) -> list[dict[str, Any]]:
    """The policies that both have, over the same tokens."""
    shared = [name for name in one["policy"].values.tolist() if name in other["policy"].values.tolist()]
    rows = []
    for name in shared:
        both = [record[["nll"]].sel(policy=[name]) for record in (one, other)]
        row: dict[str, Any] = {"quantity": f"perplexity, {name}", "scale": "ratio", "paired": same_tokens(*both)}
        if not row["paired"]:
            own = [float(np.exp(each["nll"].mean(dtype=np.float64))) for each in both]
            note = "per token of other texts or vocabularies: perplexities that cannot be compared"
            rows.append(row | {"one": own[0], "other": own[1], "note": note})
            continue
        names = [f"{place}: {name}" for place in ("one", "other")]
        texts, tokens = (min(each.sizes[dim] for each in both) for dim in ("sequence", "token"))
        both = [each.isel(sequence=slice(texts), token=slice(tokens)).transpose("policy", ...) for each in both]
        joined = both[0].isel(policy=[0, 0]).assign_coords(policy=names)
        joined["nll"] = joined["nll"].copy(data=np.concatenate([each["nll"].values for each in both]))
        found = ppl_table(joined, names[0], resamples=resamples, seed=seed)
        last = found.iloc[1]
        rows.append(
            row | {"one": float(found["ppl"].iloc[0]), "other": float(last["ppl"]), "difference": float(last["ratio"]),
                   "low": float(last["ratio_low"]), "high": float(last["ratio_high"]), "note": found.attrs["bounds"]}
        )  # fmt: skip
    return rows


def _published(record: xr.Dataset, read: int) -> dict[str, Any]:
    """The sink rate at its published setting."""
    length = int(sequence_lengths(record).min())
    curve = sink_rate_curve(record, [EPSILON], [length]).squeeze()
    return {
        "published_rate": float(sink_rate(record, EPSILON)) if length == int(sequence_lengths(record).max()) else
        float(curve["rate"]), "published_low": float(curve["lower"]), "published_high": float(curve["upper"]),
        "published_T": length, "published_texts": int(record.sizes["sequence"]),
    }  # fmt: skip


def _needed(record: xr.Dataset, read: int) -> dict[str, Any]:
    """The fewest sinks that do as well as the most."""
    table = ablation_table(record)
    own = table[(table["kind"].isin(["first", ""])) & (table["cache_size"] == table["cache_size"].max())]
    own = own[own["kind"] == "first"] if (own["kind"] == "first").any() else own
    near = own[own["ratio"] <= 1 + WITHIN]
    return {"sinks_needed": float(near["sinks"].min()) if len(near) else np.nan, "sinks_tried": int(own["sinks"].max())}


def _collapse(curve: xr.Dataset, read: int) -> dict[str, Any]:
    return collapsed(curve, read)


def _massive(record: xr.Dataset) -> dict[str, Any]:
    """The largest activation, and how many tokens of a text have a massive one."""
    largest, median = record["activation_max"], record["activation_median"]
    found = massive_activations(record)
    tokens = found.drop_duplicates(["sequence", "position"])
    return {
        "largest_activation": float(largest.max()), "times_median": float((largest / median).max()),
        "massive_tokens": len(tokens) / record.sizes["sequence"],
    }  # fmt: skip


def named_reports(records: Sequence[Mapping[str, xr.Dataset]], names: Sequence[str]) -> dict[str, Any]:
    """Records by model, those of one name numbered."""
    found: dict[str, Any] = {}
    for own, name in zip(records, names, strict=True):
        called, number = name, 1
        while called in found:
            number += 1
            called = f"{name} ({number})"
        found[called] = own
    return found
