"""Records of the laboratory with numbers of our choosing, and a small text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

TEXT = "the cat sat on the mat, and the rat ate the oats that the cat had not eaten. " * 3
SMALL = dict(width=16, length=12, batch=8, evaluated=8, every=2, text=TEXT, progress=False)
"""What `bigram_backcopy` takes milliseconds for."""

ATTRIBUTES = {
    "model": "a small model",
    "text": "a text",
    "date": "2020-02-02",
    "sinkscope": "0.1.0",
    "dtype": "float32",
}
TOKENS = ["all", "trigger", "non-trigger"]


KINDS = {"softmax1": "Softmax1", "clipped softmax": "ClippedSoftmax", "sigmoid": "Sigmoid", "relu": "ReLU",
         "softpick": "Softpick"}  # fmt: skip


def coordinates(arms: Iterable[str]) -> dict[str, object]:
    """As a `Comparison` has them of the arms of these names."""
    return {
        "arm": list(arms),
        "normaliser_kind": ("arm", [KINDS.get(arm, "Softmax") for arm in arms]),
        "has_sink_logit": ("arm", [int(arm == "learned sink") for arm in arms]),
        "has_sink_token": ("arm", [int(arm == "sink token") for arm in arms]),
        "has_gate": ("arm", [int(arm == "gated") for arm in arms]),
    }


def emergence_record(
    arms: tuple[str, ...] = ("softmax", "sigmoid"), seeds: int = 3, layers: int = 1, heads: int = 1, steps: int = 5
) -> xr.Dataset:
    """Random numbers in the shape that `bigram_backcopy` gives."""
    random = np.random.default_rng(len(arms) + 10 * seeds + 100 * layers)
    sizes = {"arm": len(arms), "seed": seeds, "step": steps, "layer": layers, "head": heads, "tokens": 3}

    def drawn(*dims: str) -> tuple[tuple[str, ...], np.ndarray]:
        dims = ("arm", "seed", "step", *dims)
        return dims, random.uniform(0.1, 0.9, [sizes[dim] for dim in dims])

    return xr.Dataset(
        {
            "loss": (drawn("tokens")[0], 2.0 + drawn("tokens")[1]),
            **{name: drawn("layer", "head", "tokens") for name in ("bos_mass", "previous_mass", "row_sum", "gate")},
            **{name: drawn("layer", "head") for name in ("bos_value_norm", "value_norm")},
            **{name: drawn("layer") for name in ("bos_hidden_norm", "hidden_norm")},
            "best_loss": ("tokens", [1.8, 0.0, 2.0]),
            "bos_null": (("arm", "tokens"), np.full((len(arms), 3), 0.06)),
            "seconds": (("arm", "seed"), np.ones((len(arms), seeds))),
        },
        coords={
            **coordinates(arms),
            "seed": np.arange(seeds),
            "step": 100 * np.arange(steps),
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "tokens": TOKENS,
            "length": 64,
        },
        attrs=ATTRIBUTES | {"kind": "emergence"},
    )


def language_record(
    masses: dict[str, float], ratios: dict[str, float], seeds: int = 1, noise: float = 0.02, sequences: int = 24
) -> xr.Dataset:
    """Language models with one head of so much attention on the first token, among three of a tenth of it, and with a
    perplexity under window attention so many times that with sinks."""
    random, cache, tokens = np.random.default_rng(0), 8, 32
    policies, sinks = ["dense", "window 8", "sinks 1+7", "sinks 4+4"], [0, 0, 1, 4]
    arms = list(masses)
    base = 2 + random.normal(0, 0.5, (sequences, tokens))
    nll = base + random.normal(0, noise, (len(arms), seeds, len(policies), sequences, tokens))
    mass = np.empty((len(arms), seeds, sequences, 2, 2))
    for row, arm in enumerate(arms):
        nll[row, :, 1] += np.log(ratios[arm])
        mass[row] = masses[arm] * np.array([[0.1, 0.1], [1.0, 0.1]])
    mass += random.normal(0, 0.001, mass.shape)
    nll[..., 0] = np.nan
    heads = ("arm", "seed", "sequence", "layer", "head")
    return xr.Dataset(
        {
            "train_loss": (("arm", "seed", "step"), random.uniform(1, 2, (len(arms), seeds, 2))),
            "sink_mass": (heads, mass),
            "virtual_mass": (heads, np.full(mass.shape, np.nan)),
            "nll": (("arm", "seed", "policy", "sequence", "token"), nll.astype(np.float32)),
            "sink_null": ("arm", np.full(len(arms), 0.1)),
        },
        coords={
            **coordinates(arms),
            "seed": np.arange(seeds),
            "step": [50, 100],
            "policy": policies,
            "sequence": np.arange(sequences),
            "token": np.arange(tokens),
            "layer": [0, 1],
            "head": [0, 1],
            "sinks": ("policy", sinks),
            "cache_size": ("policy", [-1, cache, cache, cache]),
            "length": ("sequence", np.full(sequences, tokens)),
        },
        attrs=ATTRIBUTES | {"kind": "language", "cache_size": cache, "steps": 100},
    )
