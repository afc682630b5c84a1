"""Perplexity records with known losses: no model needed."""

from __future__ import annotations

import numpy as np
import xarray as xr

KINDS = {"dense": "Dense", "window 64": "Window", "recompute 64": "Recompute", "sinks 4+60": "SinkWindow"}
POLICIES = {"dense": (-1, 0, 0), "window 64": (64, 0, 0), "recompute 64": (64, 0, 1), "sinks 4+60": (64, 4, 0)}


def loss_record(nll: np.ndarray, names: list[str] | None = None) -> xr.Dataset:
    """A record of `nll` [policy, sequence, token], of the first policies of `POLICIES` or those named."""
    names = list(POLICIES)[: len(nll)] if names is None else names
    size, sinks, again = (np.array(each) for each in zip(*(POLICIES[name] for name in names), strict=True))
    return xr.Dataset(
        {"nll": (("policy", "sequence", "token"), np.asarray(nll, np.float32))},
        coords={
            "policy": names,
            "cache_size": ("policy", size),
            "sinks": ("policy", sinks),
            "recomputed": ("policy", again),
            **as_perplexity_keeps_them([KINDS[name] for name in names]),
            "seconds": ("policy", np.ones(len(names))),
            "scored": ("policy", np.isfinite(nll).sum((1, 2))),
            "length": ("sequence", [nll.shape[2]] * nll.shape[1]),
        },
        attrs={"kind": "perplexity", "model": "some/model", "text": "a text", "tokens": nll.shape[1] * nll.shape[2]},
    )


def as_perplexity_keeps_them(kinds: list[str], values: list[str] | None = None) -> dict[str, object]:
    """The other coordinates of policies of these kinds, as `Policy.coordinates` has them."""
    return {
        "policy_kind": ("policy", kinds),
        "sink_values": ("policy", ["kept"] * len(kinds) if values is None else values),
        "sink_bias": ("policy", [0.0] * len(kinds)),
        "positions": ("policy", ["cache"] * len(kinds)),
        "placement": ("policy", [""] * len(kinds)),
    }


def autoregressive(shape: tuple[int, ...], correlation: float, seed: int) -> np.ndarray:
    """Series of variance 1 along the last axis, each value `correlation` times the one before plus noise."""
    noise = np.random.default_rng(seed).normal(size=shape)
    series = np.empty(shape)
    series[..., 0] = noise[..., 0]
    for step in range(1, shape[-1]):
        series[..., step] = correlation * series[..., step - 1] + (1 - correlation**2) ** 0.5 * noise[..., step]
    return series


def collapsing(sequences: int = 2, tokens: int = 640, sampled: int | None = None, seed: int = 0) -> xr.Dataset:
    """All four policies: equal until 64 tokens are read, then the window loses 2.3 nats and the rest little."""
    random = np.random.default_rng(seed)
    base = random.gamma(1.0, 2.6, size=(sequences, tokens))
    full = np.arange(tokens) >= 64
    worse = np.array([0.0, 2.3, 0.05, 0.06])[:, None, None] + random.normal(0, 0.2, (4, sequences, tokens))
    nll = np.maximum(base + worse * full, 1e-3)
    nll[..., 0] = np.nan
    if sampled is not None:
        hidden = np.ones(tokens, bool)
        hidden[random.choice(np.arange(1, tokens), sampled, replace=False)] = False
        nll[2][:, hidden] = np.nan
    return loss_record(nll)
