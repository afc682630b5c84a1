"""Banded attention in triangles: each query sees itself and a window before it, and no mask is made.

The band of a tile of queries is a triangle (the tile's own keys, causal), a square (keys that all of the tile sees) and
a second triangle at the far edge, where each further query loses one key. Read backwards, that one is causal too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.core.kernels import Kernel
from sinkscope.core.masks import BandMask, ranges
from sinkscope.core.merge import merge


def attend_band(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: BandMask, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention under a band, with a fused kernel; shapes and returns as those of `attend`."""
    rows, early = query.shape[2], max(0, mask.window - mask.past)  # before `early` nothing has left the window
    tiles = ranges(0, min(rows, early), mask.window) + ranges(min(rows, early), rows, mask.window)
    parts = [_tile(kernel, query[:, :, tile], key, value, mask, tile.start, scale) for tile in tiles]
    return torch.cat([output for output, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _tile(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: BandMask, row: int, scale: float
) -> tuple[Tensor, Tensor]:
    own, rows = row + mask.past, query.shape[2]  # column of the first query
    last = slice(own, own + rows)
    parts = [kernel(query, key[:, :, last], value[:, :, last], scale, True, None)]
    edge = slice(max(0, own - mask.window), max(0, own - mask.window + rows))
    if own >= mask.window:
        output, lse = kernel(query.flip(2), key[:, :, edge].flip(2), value[:, :, edge].flip(2), scale, True, None)
        parts.append((output.flip(2), lse.flip(2)))
        middle = slice(edge.stop, own)
    else:
        middle = slice(0, own)
    if middle.stop > middle.start:
        parts.append(kernel(query, key[:, :, middle], value[:, :, middle], scale, False, None))
    return merge(*parts)
