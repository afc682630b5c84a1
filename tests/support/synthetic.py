"""Records with every variable, made from random maps with sinks planted in them: no model and no torch
needed."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinkscope.analysis.maps import from_maps

WORDS = (
    "In",
    " the",
    " beginning",
    " was",
    " light",
    ",",
    " and",
    " it",
    " fell",
    " on",
    " waters",
    ".",
    "\n",
    " Then",
)


def synthetic_texts(sequences: int, tokens: int) -> list[list[str]]:
    """Tokens that repeat a few words with delimiters between; the first is a BOS token."""
    return [["<s>", *(WORDS[(s + p) % len(WORDS)] for p in range(tokens - 1))] for s in range(sequences)]


def delimiter_position(texts: list[str]) -> int:
    """The first comma: where a delimiter sink is planted (0 if there is none)."""
    return texts.index(",") if "," in texts else 0


def synthetic_logits(
    sequences: int = 4, layers: int = 5, heads: int = 3, tokens: int = 48, seed: int = 0, causal: bool = True
) -> np.ndarray:
    """[sequence, layer, head, query, key]: noise, a recency bias, a first-token sink that grows with depth, a
    delimiter sink."""
    random = np.random.default_rng(seed)
    logits = random.normal(0.0, 1.0, (sequences, layers, heads, tokens, tokens))
    distance = np.abs(np.arange(tokens)[:, None] - np.arange(tokens)[None, :])
    logits -= 0.05 * distance
    depth = np.linspace(0.0, 1.0, layers)[None, :, None, None]
    strength = np.linspace(1.0, 0.3, heads)[None, None, :, None]
    logits[..., 0] += 6.0 * depth * strength
    for s, texts in enumerate(synthetic_texts(sequences, tokens)):
        logits[s, layers // 2 :, -1, :, delimiter_position(texts)] += 5.0
    if causal:
        logits[..., np.triu(np.ones((tokens, tokens), dtype=bool), k=1)] = -np.inf
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def synthetic_maps(
    sequences: int = 4, layers: int = 5, heads: int = 3, tokens: int = 48, seed: int = 0, causal: bool = True
) -> np.ndarray:
    """[sequence, layer, head, query, key] probabilities in float64."""
    return softmax(synthetic_logits(sequences, layers, heads, tokens, seed, causal))


def synthetic_record(
    sequences: int = 4, layers: int = 5, heads: int = 3, tokens: int = 48, seed: int = 0, causal: bool = True
) -> xr.Dataset:
    """Every variable of the record, as a model with sinks on its first token and on a comma would give
    them."""
    logits = synthetic_logits(sequences, layers, heads, tokens, seed, causal)
    texts = synthetic_texts(sequences, tokens)
    record = from_maps(
        softmax(logits),
        texts,
        first=min(4, tokens),
        model="synthetic",
        model_type="synthetic",
        bos="yes",
        text="synthetic words",
    )
    record.attrs["causal"] = int(causal)
    vocabulary = {text: number for number, text in enumerate(("<s>", *WORDS))}
    ids = np.array([[vocabulary[text] for text in row] for row in texts], dtype=np.int64)
    record = record.assign_coords(token_id=(("sequence", "token"), ids), kv_head=np.arange(heads))

    top = logits.max(-1)
    lse = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    record["log_sum_exp"] = (("sequence", "layer", "head", "query"), lse.astype(np.float32))
    corner = record.sizes["corner_query"]
    mean_logit = logits[..., :corner, :corner].mean(0)
    mean_logit[~np.isfinite(mean_logit)] = np.nan
    record["mean_logit"] = (("layer", "head", "corner_query", "corner_key"), mean_logit.astype(np.float32))

    random = np.random.default_rng(seed + 1)
    sinks = np.zeros((sequences, tokens), dtype=bool)
    sinks[:, 0] = True
    for s, row in enumerate(texts):
        sinks[s, delimiter_position(row)] = True
    norms = ("sequence", "layer", "kv_head", "token")
    value = random.lognormal(0.0, 0.2, (sequences, layers, heads, tokens)) * np.where(sinks, 0.1, 1.0)[:, None, None, :]
    key = random.lognormal(2.0, 0.1, (sequences, layers, heads, tokens)) * np.where(sinks, 0.6, 1.0)[:, None, None, :]
    record["value_norm"] = (norms, value.astype(np.float32))
    record["key_norm"] = (norms, key.astype(np.float32))

    middle = np.zeros((1, layers, 1), dtype=bool)
    middle[:, layers // 3 : max(layers - 1, 1)] = True
    largest = random.lognormal(1.0, 0.3, (sequences, layers, tokens))
    largest = np.where(middle & sinks[:, None, :], 900.0 + largest, largest)
    median = np.broadcast_to(random.lognormal(-1.2, 0.1, (sequences, layers, 1)), largest.shape)
    dimension = np.where(largest > 100, 7, random.integers(0, 64, largest.shape))
    hidden = ("sequence", "layer", "token")
    record["activation_max"] = (hidden, largest.astype(np.float32))
    record["activation_median"] = (hidden, median.astype(np.float32))
    record["activation_dimension"] = (hidden, dimension.astype(np.int32))
    return record


def secondary_record(layers=26, tokens=20, width=32) -> xr.Dataset:
    """The first token is a sink behind layers 3 to 22. Token 4 is like it all that time, token 7 against it from layer
    10 to 17, token 9 like it for three layers, and token 12 only where the first one is no sink any more."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(layers, tokens, width))
    direction = random.normal(size=width)
    hidden[3:23, 0] = 500 * direction
    hidden[3:23, 4] = 300 * direction
    hidden[10:18, 7] = -40 * direction
    hidden[5:8, 9] = direction
    hidden[23:, 12] = hidden[23:, 0]
    norms = np.linalg.norm(hidden, axis=-1)
    cosine = np.einsum("ltd,ld->lt", hidden, hidden[:, 0]) / norms / norms[:, :1]
    received = np.ones((1, layers, 2, tokens))
    received[0, 11:19, :, 7] = 6.5  # of the 13 queries that see it, in the layers that read what it was
    dims = ("sequence", "layer", "token")
    return xr.Dataset(
        {"first_cosine": (dims, cosine[None]), "state_norm": (dims, norms[None]),
         "received": (("sequence", "layer", "head", "key"), received)},
        {"sequence": [0], "layer": np.arange(layers), "token": np.arange(tokens), "head": [0, 1],
         "key": np.arange(tokens), "length": ("sequence", [tokens]), "query": np.arange(tokens)},
    )  # fmt: skip
