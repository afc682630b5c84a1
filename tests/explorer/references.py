"""Texts read by a `TextModel`, the configurations they are read under, and what those mean by definition."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from sinkscope.explorer.configuration import GONE, Configuration
from sinkscope.explorer.results import Change
from sinkscope.explorer.text_model import TextModel
from tests.core.test_evictions import windowed
from tests.support import naive_slots
from tests.support.zoo import build, inputs

TOKENS = 60
FAMILIES = ("llama", "gemma2", "gpt_oss", "deepseek_v3", "gpt_neox")


def without_since(keys, since):
    """Keys chosen one by one are seen until a query, and by their own."""
    return lambda at: [key for key in range(at + 1) if at < since or key == at or key not in keys]


SINKS = dict(kept=windowed(3, 20), in_cache=True)
CONFIGURATIONS: dict[str, tuple[Configuration, dict[str, Any]]] = {
    "dense": (Configuration(), {}),
    "window": (Configuration(policy="window", window=20), dict(kept=windowed(0, 20), in_cache=True)),
    "sinks": (Configuration(policy="sinks", sinks=3, window=20), SINKS),
    "no sinks": (Configuration(policy="sinks", sinks=0, window=20), dict(kept=windowed(0, 20), in_cache=True)),
    "sinks in the text": (
        Configuration(policy="sinks", sinks=3, window=20, positions="original"),
        dict(kept=windowed(3, 20)),
    ),
    "weaker sinks of a window": (
        Configuration(policy="sinks", sinks=3, window=20, dose=-2.0),
        dict(SINKS, anchors=range(3), since=24, bias=-2.0),
    ),
    "sinks gone from a window": (
        Configuration(policy="sinks", sinks=3, window=20, dose=GONE),
        dict(SINKS, anchors=range(3), since=24, bias=GONE),
    ),
    "stronger sinks": (Configuration(sinks=2, dose=1.0), dict(anchors=range(2), since=2, bias=1.0)),
    "sinks gone": (Configuration(sinks=2, dose=GONE), dict(anchors=range(2), since=2, bias=GONE)),
    "chosen": (
        Configuration(policy="chosen", evicted=(0, 7, 45), since=30),
        dict(kept=without_since({0, 7, 45}, 30)),
    ),
    "chosen in a layer": (
        Configuration(policy="chosen", evicted=(0,), since=30, layers=(1, 1)),
        dict(kept=without_since({0}, 30), layers=[1]),
    ),
    "softmax": (Configuration(normaliser="softmax"), {}),
    "softmax1": (Configuration(normaliser="softmax1"), dict(weights=naive_slots.softmax1)),
    "learned sink": (
        Configuration(normaliser="learned sink, logit 0"),
        dict(weights=naive_slots.learned_sink(torch.zeros(4))),
    ),
    "clipped": (Configuration(normaliser="clipped softmax"), dict(weights=naive_slots.clipped(-0.03, 1.0))),
    "sigmoid": (Configuration(normaliser="sigmoid"), dict(weights=naive_slots.sigmoid(None))),
    "ReLU": (Configuration(normaliser="ReLU"), dict(weights=naive_slots.relu)),
    "sigmoid over sinks": (
        Configuration(policy="sinks", sinks=3, window=20, normaliser="sigmoid"),
        dict(SINKS, weights=naive_slots.sigmoid(None)),
    ),
    "softmax1 in a layer": (
        Configuration(normaliser="softmax1", layers=(0, 0)),
        dict(weights=naive_slots.softmax1, layers=[0]),
    ),
}


def text(tokens: int = TOKENS) -> torch.Tensor:
    """Token ids [token]."""
    return inputs("llama", 1, tokens)["input_ids"][0]


def reader(name: str = "llama", tokens: int = TOKENS, tokenizer: Any = None) -> TextModel:
    return TextModel(build(name), text(tokens), tokenizer)


def never() -> bool:
    return False


def first(model: TextModel, configuration: Configuration, query: int | None = None) -> Any:
    """The first `Reading` under a configuration that has its losses, and no more work than that."""
    results = model.read(configuration, len(model.ids) - 1 if query is None else query, never)
    return next(each for each in results if each.is_scored)


def everything(model: TextModel, configuration: Configuration, query: int | None = None) -> dict[Change, list[Any]]:
    """All results under a configuration, in order, by their names."""
    found = defaultdict(list)
    for result in model.read(configuration, len(model.ids) - 1 if query is None else query, never):
        found[result.kind].append(result)
    return found


def defined(name: str, definition: dict[str, Any], tokens: int = TOKENS) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """By definition in float64: logits [token, vocabulary]; weights and scores [layer, head, query, key], NaN where a
    key is not seen."""
    scores: list[np.ndarray] = []
    weights = definition.get("weights", naive_slots.softmax)

    def recorded(given: torch.Tensor) -> torch.Tensor:
        scores.append(given[0, :, 0].numpy())
        return weights(given)

    model, ids = build(name), text(tokens)[None]
    layers = definition.get("layers")
    logits, maps = naive_slots.run(model, ids, **{**definition, "weights": recorded})
    weighed = torch.stack(maps, 1)[0].numpy()
    acting = range(len(maps)) if layers is None else layers
    scored = np.full_like(weighed, np.nan)
    rows = iter(scores)
    for layer in acting:
        for at in range(tokens):
            scored[layer, :, at, definition.get("kept", lambda at: list(range(at + 1)))(at)] = next(rows).T
    gone = np.isneginf(scored)
    seen = np.tri(tokens, dtype=bool) if layers is not None else np.isfinite(scored)
    if layers is not None:
        seen = np.where(np.isin(np.arange(len(maps)), layers)[:, None, None, None], np.isfinite(scored), seen)
    scored[gone] = np.nan
    return logits[0], np.where(seen, weighed, np.nan), scored
