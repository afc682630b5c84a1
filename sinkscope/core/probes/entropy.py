"""Entropy of the attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinkscope.core.layer import Layer, Tile
from sinkscope.core.probes.base import Measurements, TileProbe, Variable


@dataclass(frozen=True)
class Entropy(TileProbe):
    """Shannon entropy of each query's attention over the keys: ``-sum_j A[i, j] log A[i, j]``, in nats.

    Makes ``entropy`` [sequence, layer, head, query]; between 0 (one key) and ``log(i + 1)`` (uniform).
    """

    makes: ClassVar = {
        "entropy": Variable(("sequence", "head", "query"), "nats", "Shannon entropy of each query's attention")
    }

    def start(self, layer: Layer) -> Tensor:
        return torch.zeros_like(layer.lse)

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        total[:, tile.heads, tile.rows] -= torch.linalg.vecdot(tile.probabilities, tile.log_probabilities)

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        return {"entropy": total}
