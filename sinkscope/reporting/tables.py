"""The tables of a report, as data frames; made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis import discover, massive_activations, sink_mass, sink_rate_curve, value_drain
from sinkscope.analysis import mass_by_layer as layer_masses
from sinkscope.analysis.variables import is_causal
from sinkscope.figures.sink_mass import default_lengths, null_mass
from sinkscope.reporting import softmax_tables
from sinkscope.reporting.headline import summary
from sinkscope.reporting.streaming_plates import POLICIES
from sinkscope.reporting.streaming_tables import ablated, decoded, four_policies, perplexities

Records = Mapping[str, xr.Dataset]
TOP = 20


def mass_by_layer(records: Records) -> pd.DataFrame:
    """Mean mass on the first token and the first k, layer by layer, with 95% intervals and the null."""
    record, parts = records["text"], []
    for first in sorted({1, min(4, record.sizes["sink"])}):
        mass = layer_masses(record, first=first)
        columns = {name: np.asarray(mass[name], dtype=float) for name in ("mean", "lower", "upper")}
        frame = pd.DataFrame({"first": first, "layer": np.arange(record.sizes["layer"]), **columns})
        parts.append(frame.assign(null=null_mass(record, first)))
    return pd.concat(parts, ignore_index=True)


def top_heads(records: Records) -> pd.DataFrame:
    """The heads that give the first token most, strongest first."""
    record = records["text"]
    mass = sink_mass(record, first=1).transpose("layer", "head")
    frame = mass.to_series().rename("mass").reset_index()[["layer", "head", "mass"]].dropna()
    frame = frame.sort_values(["mass", "layer", "head"], ascending=[False, True, True]).head(TOP)
    null = null_mass(record, 1)
    return frame.assign(null=null, times_null=frame["mass"] / null).reset_index(drop=True)


def sink_rates(records: Records) -> pd.DataFrame:
    """The sink rate of the first token at several thresholds and lengths, with intervals and the null's
    alpha.
    """
    parts = []
    for name in ("text", "short"):
        record = records.get(name)
        if record is None or "sink_mass" not in record or not is_causal(record):
            continue
        curve = sink_rate_curve(record, epsilons=[0.1, 0.2, 0.3, 0.5, 0.8], lengths=default_lengths(record))
        frame = curve.to_dataframe().reset_index().assign(record=name, sequences=record.sizes["sequence"])
        parts.append(frame[["record", "sequences", "length", "epsilon", "rate", "lower", "upper", "null_alpha"]])
    return pd.concat(parts, ignore_index=True)


def sinks(records: Records) -> pd.DataFrame:
    """Positions that attract attention far above the null, the first one or not."""
    return discover(records["text"])


def activations(records: Records) -> pd.DataFrame:
    """Massive activations: magnitude above 100 and 1,000 times the median."""
    return massive_activations(records["text"])


def drain(records: Records) -> pd.DataFrame:
    """Mean key and value norm of the first token over that of the rest, per layer and KV head."""
    return value_drain(records["text"], first=1).to_dataframe().reset_index()


@dataclass(frozen=True)
class Content:
    """One table of the report.

    needs: what `record`, the name of its record, must hold. meaning: what the title leaves open, for the page and the
    caption.
    """

    title: str
    needs: tuple[str, ...]
    make: Callable[[Records], pd.DataFrame]
    record: str = "text"
    meaning: str = ""
    causal_only: bool = False

    @property
    def caption(self) -> str:
        return f"{self.title}. {self.meaning}" if self.meaning else self.title

    def is_in(self, records: Records) -> bool:
        record = records.get(self.record)
        if record is None or not all(variable in record for variable in self.needs):
            return False
        return is_causal(record) or not self.causal_only


CONTENTS: dict[str, Content] = {
    "summary": Content("Summary", (), summary),
    "mass_by_layer": Content("Sink mass by layer", ("sink_mass",), mass_by_layer),
    "top_heads": Content(f"The {TOP} strongest sink heads", ("sink_mass",), top_heads),
    "sink_rate": Content("Sink rate by threshold and length", ("sink_mass",), sink_rates, causal_only=True),
    "sinks": Content("Sinks found at any position", ("received",), sinks),
    "massive_activations": Content("Massive activations", ("activation_max", "activation_median"), activations),
    "value_drain": Content("Value drain", ("key_norm", "value_norm"), drain),
    "four_policies": Content(
        "Four ways to attend to a long text",
        ("nll", "cost_attention_size"),
        four_policies,
        "perplexity",
        "Attention size (keys the last token sees), operations of one token, bytes of keys and values kept after the "
        "whole text, all counted from the model's shapes, T tokens read, L kept. Perplexity over the tokens after the "
        "first eviction; of a policy scored at a sample of them, that of the policy most like it times their ratio at "
        f"the sample. {POLICIES}",
    ),
    "perplexity": Content(
        "Perplexity under each policy",
        ("nll",),
        perplexities,
        "perplexity",
        "Over tokens after the first eviction; 95% block-bootstrap intervals over positions, paired for the ratios. "
        "Window keeps keys and values as they were computed; recompute computes them anew for every token. "
        "A cache size of -1: the cache keeps everything.",
    ),
    "ablation": Content(
        "Perplexity and the number of sinks",
        ("ppl", "sinks", "cache_size"),
        ablated,
        "ablation",
        "0 sinks is the plain window, not re-computation. 95% block-bootstrap intervals over positions; ratios are "
        "paired, to the most sinks. Columns ending in evicted: over the tokens after the first eviction.",
    ),
    "decode_cost": Content(
        "Time and memory per token, measured",
        ("milliseconds", "kv_bytes"),
        decoded,
        "decode",
        "Median wall time of one more token with a full cache of that size, and its quartiles. kv bytes: memory taken; "
        "kv bytes kept and flops per token: counted from the model's shapes. Window is not re-computation (recompute), "
        "which runs the last tokens afresh for every new one.",
    ),
    "forced_mass": Content(
        "What evicting the first keys would do, layer by layer",
        ("log_amplification", "output_norm"),
        softmax_tables.forced,
        "forced",
        "In closed form, each layer alone. Amplification of all other weights: geometric mean over heads and queries. "
        "Change of a head's output, lost denominator and lost value, which add up to it as vectors: mean norm over the "
        "mean norm of the output. 95% bootstrap intervals over texts.",
        causal_only=True,
    ),
    "collapse": Content(
        "The collapse of window attention, decomposed",
        ("nll",),
        softmax_tables.collapse,
        "collapse",
        "Over tokens after the first eviction. Phantom sinks: keys in the denominator, values zeroed or replaced by "
        "their mean. Values only: values added, keys out of the denominator. Ratios are to full sinks, and recovered "
        "is the share of the gap in mean loss between window (0) and full sinks (1); paired 95% block-bootstrap "
        "intervals.",
    ),
    "dose_response": Content(
        "Dose and response",
        ("nll", "sink_mass", "output_norm", "arm"),
        softmax_tables.doses,
        "dose",
        "Dose: bias on the logits of the first keys (sinks) or of as many random ones, natural logarithm; -inf: gone. "
        "Ratios of perplexity (paired, over positions) and of the norm of a head's output (over texts) are to dose 0.",
    ),
    "interventions": Content(
        "Interventions and their controls",
        ("nll", "sink_mass", "control"),
        softmax_tables.interventions,
        "interventions",
        "Each intervention above its control. Perplexity over that with nothing done (ratio) and over that of the "
        "control; paired 95% block-bootstrap intervals over positions, of the mass over texts.",
    ),
    "predictability": Content(
        "Sink mass against predictability, over heads",
        ("sink_mass", "next_entropy"),
        softmax_tables.correlations,
        "predictability",
        "Spearman correlation of a query's mass on the first keys with entropy and loss of the next token: quartiles "
        "over heads, that of even attention (null), and heads whose 95% interval (block bootstrap over queries) lies "
        "below or above both zero and the null. By chance up to 5% of heads would.",
        causal_only=True,
    ),
    "predictability_heads": Content(
        f"Sink mass against predictability, the {softmax_tables.STRONGEST} strongest sink heads",
        ("sink_mass", "next_entropy"),
        softmax_tables.correlated_heads,
        "predictability",
        "Spearman correlations with entropy and loss of the next token; 95% block-bootstrap intervals over queries.",
        causal_only=True,
    ),
}


class Tables(Mapping[str, pd.DataFrame]):
    """The tables a set of records can give, by name; each is computed once, when it is first asked for."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._made: dict[str, pd.DataFrame] = {}
        self._names = [name for name, content in CONTENTS.items() if content.is_in(records)]

    def attributes(self, name: str) -> dict[str, Any]:
        """Where a table comes from: the attributes of its record."""
        return {str(key): value for key, value in self._records[CONTENTS[name].record].attrs.items()}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = CONTENTS[name].make(self._records)
        return self._made[name].copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Tables({', '.join(self)})"
