"""Maps of texts of different lengths, and the strategy that draws their sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.support.synthetic import synthetic_maps


def ragged_maps(
    lengths: list[int], layers: int = 2, heads: int = 2, seed: int = 0, causal: bool = True
) -> list[np.ndarray]:
    """One [layer, head, query, key] array per sequence."""
    return [synthetic_maps(1, layers, heads, t, seed + n, causal)[0] for n, t in enumerate(lengths)]


def uniform_maps(length: int, causal: bool = True) -> np.ndarray:
    """[layer, head, query, key]: 2 layers of 3 heads that look at every key alike."""
    seen = np.tril(np.ones((length, length))) if causal else np.ones((length, length))
    return np.broadcast_to(seen / seen.sum(-1, keepdims=True), (2, 3, length, length))


def planted_maps(length: int, position: int) -> np.ndarray:
    """[layer, head, query, key]: 2 layers of 3 heads that give all attention to one key once they see it."""
    maps = np.zeros((2, 3, length, length))
    for i in range(length):
        maps[..., i, position if i >= position else i] = 1.0
    return maps


several_lengths = st.lists(st.integers(2, 14), min_size=1, max_size=3)
