"""Records of the softmax laboratory with known contents: no model needed."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tests.support.loss_records import as_perplexity_keeps_them
from tests.support.synthetic import synthetic_maps, synthetic_record

SOURCE = {"model": "evil/<b>model</b>", "sinkscope": "0", "date": "2020-02-02", "text": "a & b"}
PARTS = ("sinks 4+60", "sinks 4+60, mean values", "sinks 4+60, values zeroed", "sinks 4+60, values only", "window 64")
KINDS, VALUES = [*["SinkWindow"] * 4, "Window"], ["kept", "mean", "zeroed", "added", "kept"]
LOST = (0.0, 1.5, 0.5, 1.2, 1.0)  # nats, once the cache is full
DOSES = (-np.inf, -2.0, 0.0, 2.0)
ARMS = ("nothing", "evict sinks", "evict random", "start 4 later", "cut 4 behind the sinks", "shuffle all tokens")
CONTROLS = ("", "evict random", "", "cut 4 behind the sinks", "", "")
START = 16


def forced(sequences: int = 3, layers: int = 4, heads: int = 3, tokens: int = 40, keys: int = 4) -> xr.Dataset:
    """As `EvictionEffect` measures it: the mass is that of `synthetic_maps`, the norms are drawn at random."""
    maps, random = synthetic_maps(sequences, layers, heads, tokens), np.random.default_rng(1)
    dims, early = ("sequence", "layer", "head", "query"), np.arange(tokens) < keys
    with np.errstate(divide="ignore"):
        found = {"log_amplification": -np.log1p(-np.minimum(maps[..., :keys].sum(-1), 1 - 1e-9))}
    for name, size in {"output_norm": 2.0, "change_norm": 1.5, "lost_denominator": 1.2, "lost_value": 0.6}.items():
        found[name] = size * random.lognormal(0, 0.2, found["log_amplification"].shape)
    record = xr.Dataset(
        {name: (dims, np.where(early, np.nan, values).astype(np.float32)) for name, values in found.items()},
        coords={"layer": range(layers), "head": range(heads), **_texts(sequences, tokens), "query": range(tokens)},
    )
    named = f"EvictionEffect(keys={tuple(range(keys))!r})"
    return record.assign_attrs(**SOURCE, **_counts(sequences, tokens), causal=1, probes=named)


def collapse(sequences: int = 1, tokens: int = 400, lost: tuple[float, ...] = LOST, cache: int = 64) -> xr.Dataset:
    """As `decompose` measures it: all parts are equal until the cache is full, then lose so much."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.2, (len(lost), sequences, tokens))
    late = (np.arange(tokens) >= cache + 2) * (np.array(lost)[:, None, None] + noise)
    nll = random.gamma(4.0, 0.8, (sequences, tokens)) + late
    nll[..., 0] = np.nan
    names = [name.replace("60", str(cache - 4)).replace("64", str(cache)) for name in PARTS[: len(lost)]]
    record = xr.Dataset(
        {"nll": (("policy", "sequence", "token"), nll.astype(np.float32), {"units": "nats"})},
        coords={
            "policy": names,
            "cache_size": ("policy", [cache] * len(lost)),
            "sinks": ("policy", [0 if name.startswith("window") else 4 for name in names]),
            "recomputed": ("policy", [0] * len(lost)),
            **as_perplexity_keeps_them(KINDS[: len(lost)], VALUES[: len(lost)]),
            **_texts(sequences, tokens),
        },
    )
    return record.assign_attrs(kind="perplexity", **SOURCE, **_counts(sequences, tokens))


def dose(sequences: int = 3, tokens: int = 60, layers: int = 2, heads: int = 2, count: int = 1) -> xr.Dataset:
    """As `dose_response` measures it: the farther from 0 the more is lost, with sinks ten times as much."""
    random = np.random.default_rng(2)
    away = np.where(np.isfinite(DOSES), np.abs(DOSES), 5.0)
    worse = np.array([0.1, 0.01])[:, None] * away
    nll = random.gamma(4.0, 0.8, (sequences, tokens)) + worse[..., None, None]
    nll = nll + random.normal(0, 0.05, nll.shape) * (worse > 0)[..., None, None]
    nll[..., : START + 1] = np.nan
    each = (len(worse), len(DOSES), sequences, layers, heads)
    mass = np.stack([1 / (1 + np.exp(-np.array(DOSES))), np.full(len(DOSES), 0.5)])[..., None, None, None]
    dims = ("arm", "dose", "sequence", "layer", "head")
    record = xr.Dataset(
        {
            "nll": (("arm", "dose", "sequence", "token"), nll.astype(np.float32), {"units": "nats"}),
            "sink_mass": (dims, (mass + random.uniform(0, 0.02, each) * (mass > 0)).astype(np.float32)),
            "output_norm": (dims, (2 + 0.1 * away[:, None, None, None] + random.uniform(0, 0.1, each)).astype("f4")),
        },
        coords={
            "arm": ["sinks", "random"], "dose": list(DOSES), "layer": range(layers), "head": range(heads),
            **_texts(sequences, tokens),
        },
    )  # fmt: skip
    about = {"kind": "dose response", "start": START, "first": count, "count": count}
    return record.assign_attrs(**about, **SOURCE, **_counts(sequences, tokens))


def interventions(sequences: int = 3, tokens: int = 60, layers: int = 2, heads: int = 2) -> xr.Dataset:
    """As `run_interventions` measures it: evicting sinks costs 1.2 nats, its control hardly anything."""
    random = np.random.default_rng(3)
    worse = np.array([0.0, 1.2, 0.02, 0.1, 0.1, 3.0])[:, None, None]
    nll = random.gamma(4.0, 0.8, (sequences, tokens)) + worse
    nll = nll + random.normal(0, 0.1, nll.shape) * (worse > 0)
    nll[..., : START + 1] = np.nan
    shape = (len(ARMS), sequences, layers, heads)
    mass = np.array([0.5, 0.0, 0.5, 0.45, 0.5, 0.4])[:, None, None, None] + random.uniform(0, 0.02, shape)
    record = xr.Dataset(
        {
            "nll": (("policy", "sequence", "token"), nll.astype(np.float32), {"units": "nats"}),
            "sink_mass": (("policy", "sequence", "layer", "head"), mass.astype(np.float32)),
        },
        coords={
            "policy": list(ARMS), "control": ("policy", list(CONTROLS)), "layer": range(layers), "head": range(heads),
            "same_tokens": ("policy", [name != "shuffle all tokens" for name in ARMS]), **_texts(sequences, tokens),
        },
    )  # fmt: skip
    about = {"kind": "interventions", "start": START, "sinks": 4, "first": 1}
    return record.assign_attrs(**about, **SOURCE, **_counts(sequences, tokens))


def predictability(sequences: int = 3, layers: int = 4, heads: int = 3, tokens: int = 96) -> xr.Dataset:
    """As `sinkscope.predictability` measures it: entropy is noise, but follows the mass of head 0 in the last layer."""
    record = synthetic_record(sequences, layers, heads, tokens)[["sink_mass"]].isel(sink=[0])
    random = np.random.default_rng(4)
    entropy = random.gamma(2.0, 1.0, (sequences, tokens))
    mass = record["sink_mass"].values.copy()
    mass[:, -1, 0, :, 0] = 0.9 - 0.1 * entropy / entropy.max()
    loss = entropy + random.normal(0, 0.5, entropy.shape)
    loss[:, -1] = np.nan
    both = {"next_entropy": entropy, "next_loss": loss}
    record = record.assign(sink_mass=(record["sink_mass"].dims, mass))
    record = record.assign({name: (("sequence", "query"), values.astype(np.float32)) for name, values in both.items()})
    about = {"kind": "predictability", "start": START, "first": 1}
    return record.assign_attrs(**about, **SOURCE, **_counts(sequences, tokens))


def _texts(sequences: int, tokens: int) -> dict[str, object]:
    return {"sequence": range(sequences), "token": range(tokens), "length": ("sequence", [tokens] * sequences)}


def _counts(sequences: int, tokens: int) -> dict[str, int]:
    return {"sequences": sequences, "tokens": sequences * tokens}
