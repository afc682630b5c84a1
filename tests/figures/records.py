"""A record or table with known contents for every figure."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

import sinkscope
from sinkscope import figures
from sinkscope.figures.matplotlib_renderer import PaperFigure
from tests.support import experiments
from tests.support.loss_records import collapsing
from tests.support.synthetic import secondary_record, synthetic_maps, synthetic_record
from tests.support.training_records import emergence_record, language_record
from tests.support.zoo import build

ATTRIBUTES = {"model": "some/model", "text": "a text", "date": "2020-02-02", "sinkscope": "0.1.0"}


def ablation_table(zero: float = 40.0, caches: tuple[int, ...] = (512,)) -> pd.DataFrame:
    rows = []
    combinations = itertools.product(caches, ("cache", "original"), ("first", "line breaks", "random"), (0, 1, 4))
    for cache, positions, kind, sinks in combinations:
        if sinks or (positions, kind) == ("cache", "first"):
            ppl = zero if sinks == 0 else 20 + len(kind) / 5 + 2 * (positions == "original") + 1 / sinks - cache / 1000
            rows.append((sinks, cache, positions, kind, ppl, 0.95 * ppl, 1.06 * ppl))
    table = pd.DataFrame(rows, columns=["sinks", "cache_size", "positions", "kind", "ppl", "low", "high"])
    table.attrs = ATTRIBUTES
    return table


def decode_table() -> pd.DataFrame:
    rows = [("dense", -1, 88.0, 80.0, 95.0, 3_000_000_000)]
    for size in (256, 512, 1024, 2048):
        rows += [
            ("recompute", size, size**2 / 5000, size**2 / 5500, size**2 / 4500, size * 46080),
            ("sinks + window", size, 22 + size / 200, 21 + size / 200, 24 + size / 200, size * 46080),
        ]
    table = pd.DataFrame(rows, columns=["policy", "cache_size", "milliseconds", "low", "high", "kv_bytes"])
    table.attrs = ATTRIBUTES
    return table


def comparison_table(models: int = 3) -> pd.DataFrame:
    """As `compare` makes it."""
    rows = [
        {
            "model": f"model-{row}", "sink_rate": 0.1 + 0.2 * row, "rate_low": 0.05 + 0.2 * row,
            "rate_high": 0.15 + 0.2 * row, "rate_null": 0.0, "sink_mass": 0.1 + 0.1 * row, "mass_low": 0.08 + 0.1 * row,
            "mass_high": 0.13 + 0.1 * row, "mass_null": 0.01, "T": 1024, "collapse": 1.0 + row**3,
            "collapse_low": 0.9 + row**3, "collapse_high": 1.2 + row**3, "cache_size": 256,
            "differs": "text" if row == 1 else "",
        }
        for row in range(models)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs = {"epsilon": 0.3, **experiments.SOURCE}
    return table


def language():
    masses = {"softmax": 0.5, "softmax1": 0.2, "sink token": 0.7}
    return language_record(masses, {"softmax": 3.0, "softmax1": 5.0, "sink token": 1.1}, seeds=2)


TOKENS = 40


def view(first: int = 0, tokens: int = TOKENS, policies: tuple[str, ...] = ("dense", "window 12")) -> xr.Dataset:
    """As the explorer saves it: a map of the tokens from `first` on, and losses of the whole text."""
    maps = synthetic_maps(sequences=1, layers=1, heads=1, tokens=tokens - first)[0, 0, 0]
    maps = np.where(np.tri(tokens - first, dtype=bool), maps, np.nan)
    losses = np.random.default_rng(0).random((len(policies), 1, tokens)).astype(np.float32) + 1
    losses[:, :, 0] = np.nan
    places = np.arange(first, tokens)
    return xr.Dataset(
        {
            "attention_map": (
                ("sequence", "layer", "head", "map_query", "map_key"), maps[None, None, None], {"setting": policies[-1]}
            ),
            "nll": (("policy", "sequence", "token"), losses),
        },
        coords={
            "sequence": [0], "layer": [7], "head": [3], "map_query": places, "map_key": places,
            "policy": list(policies), "length": ("sequence", [tokens]), "token": np.arange(tokens),
        },
        attrs={"model": "tiny", "kind": "explored"},
    )  # fmt: skip


def captured() -> xr.Dataset:
    return synthetic_record(sequences=2, layers=2, heads=2, tokens=24)


def likenesses() -> xr.Dataset:
    """Cosines with the first token: one of four others is parallel to it in the second layer."""
    cosines = np.array([[[1.0, 0.1, 0.2, 0.3, 0.4], [1.0, -0.95, 0.2, 0.3, 0.4]]])
    coords = {"sequence": [0], "layer": [0, 1], "token": np.arange(5)}
    return xr.Dataset({"first_cosine": (("sequence", "layer", "token"), cosines)}, coords, {"model": "tiny"})


def pictured() -> xr.Dataset:
    """Tokens 4 to 9 are an image of two rows and three columns, whose picture is known."""
    record = captured()
    places = np.full((3, *record["received"].isel(layer=0, head=0).shape), -1)
    places[:, :, 4:10] = np.array([[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2] * 2])[:, None]
    names = ("image", "image_row", "image_column")
    coords = {name: (("sequence", "token"), each) for name, each in zip(names, places, strict=True)}
    picture = np.random.default_rng(0).random((len(record["sequence"]), 1, 8, 8))
    record = record.assign(picture=(("sequence", "image_number", "picture_y", "picture_x"), picture))
    return record.assign_coords(**coords, is_image=(("sequence", "token"), places[0] >= 0))


def spanned() -> xr.Dataset:
    """Masses between three spans of two texts, with a part of each text in none."""
    record = captured()
    names, labels = ["system", "user", "$x$"], ["system"] * 4 + ["user"] * 10 + ["$x$"] * 6 + [""] * 4
    shape = (*record["received"].isel(key=0).shape, 3, 3)
    mass = np.tril(np.random.default_rng(0).random(shape)) / 3
    dims = (*record["received"].isel(key=0).dims, "query_span", "key_span")
    record = record.assign(span_mass=(dims, mass)).assign_coords(query_span=names, key_span=names)
    return record.assign_coords(span=(("sequence", "token"), np.array([labels] * 2, dtype=object)))


CAPTURED = (
    "distance_profile", "entropy_by_layer", "mass_by_layer", "mass_by_length", "massive_activations", "mean_maps",
    "norms",     "received_by_position", "sink_mass_heatmap", "sink_rate_curve",
)  # fmt: skip
EXPERIMENTS: dict[str, Callable[[], Any]] = {
    "collapse": experiments.collapse,
    "comparison": comparison_table,
    "dose_response": experiments.dose,
    "effects": experiments.interventions,
    "forced_mass": experiments.forced,
    "predictability": experiments.predictability,
}


def read_twice() -> xr.Dataset:
    """A record of recall by distance: losses grow with the distance, and the first reading costs 4 nats."""
    dims, shape = ("policy", "distance", "passage", "place"), (2, 3, 4, 5)
    again = np.linspace(0.5, 3.0, 3)[:, None, None] + np.random.default_rng(0).normal(0, 0.1, shape)
    return xr.Dataset(
        {"nll": (dims, again), "first_nll": (dims, np.full(shape, 4.0))},
        {"policy": ["dense", "window 8"], "distance": [8, 16, 32]},
        ATTRIBUTES | {"kind": "recall"},
    )


def of_purposes() -> xr.Dataset:
    """What heads and layers of a tiny model are for."""
    probes = [sinkscope.SinkPurpose(), sinkscope.Reach((0, 2), (4, 16)), sinkscope.Compression(),
              sinkscope.EvictionEffect((0,)), sinkscope.SinkMass(1)]  # fmt: skip
    ids = torch.randint(3, 120, (4, 40), generator=torch.Generator().manual_seed(5))
    return sinkscope.measure(build("llama"), ids, probes, progress=False)


def mixed() -> xr.Dataset:
    """Whole maps of a tiny model."""
    ids = torch.randint(3, 120, (4, 40), generator=torch.Generator().manual_seed(5))
    return sinkscope.measure(build("llama"), ids, [sinkscope.Maps(resolution=None)], progress=False)


def tagged() -> xr.Dataset:
    """Tags of the sinks of a tiny model."""
    ids = torch.randint(3, 120, (4, 40), generator=torch.Generator().manual_seed(5))
    return sinkscope.sink_tags(build("llama"), ids, epsilon=0.05, progress=False)


def perturbed() -> xr.Dataset:
    """A changed token of a tiny model."""
    ids = torch.randint(3, 120, (4, 40), generator=torch.Generator().manual_seed(5))
    return sinkscope.perturbation_spread(build("llama"), ids)


def split() -> xr.Dataset:
    """Losses of heads that stream."""
    ids = torch.randint(3, 120, (1, 80), generator=torch.Generator().manual_seed(5))
    gates = sinkscope.head_gates(of_purposes())
    return sinkscope.head_split(build("llama"), ids, gates, (0, 0.5, 1), sinks=2, window=8, progress=False)


def answered() -> xr.Dataset:
    """A record of needles: accuracy falls with the distance under one of two policies."""
    dims, chance = ("policy", "length", "depth", "trial", "question"), np.random.default_rng(0).random((2, 2, 3, 12, 1))
    share = np.array([[[0.9, 0.9, 0.9]] * 2, [[0.1, 0.2, 0.9]] * 2])[..., None, None]
    correct = (chance < share).astype(np.float32)
    return xr.Dataset(
        {"correct": (dims, correct), "said": (dims, correct), "nll": (dims, 1 - correct)},
        {
            "policy": ["dense", "window 8"], "length": [64, 128], "depth": [0.0, 0.5, 1.0],
            "distance": (("length", "depth"), np.array([[60, 35, 10], [120, 65, 12]])),
        },
        ATTRIBUTES | {"kind": "task", "task": "needle", "chance": 0.125},
    )  # fmt: skip


STREAMED: dict[str, Callable[[], Any]] = {
    "ablation": ablation_table,
    "decode_cost": decode_table,
    "log_perplexity": lambda: collapsing(sampled=200),
    "recall": read_twice,
    "accuracy": answered,
}
TRAINED: dict[str, Callable[[], Any]] = {"emergence": emergence_record, "language_emergence": language}
RECORDS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(CAPTURED, captured), **EXPERIMENTS, **STREAMED, **TRAINED, "explored": view,
    "first_cosine": likenesses, "image_grid": pictured, "span_mass": spanned,
    **dict.fromkeys(("purposes", "depth", "reach"), of_purposes), "head_split": split,
    "secondary_sinks": secondary_record, "sink_tags": tagged, "perturbation_spread": perturbed, "rollout": mixed,
}  # fmt: skip


def drawn(name: str) -> PaperFigure:
    """The figure of this name, of its record."""
    return getattr(figures, name)(RECORDS[name]())
