"""A policy as one layer carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sinkscope.core.masks import IndexedMask
from sinkscope.core.rotation import Rotation


@dataclass(frozen=True)
class Eviction:
    """What one layer keeps.

    Attributes:
        sinks, window: tokens kept; `window` has a number here.
        rotation: the layer's rotary geometry; None where sinks keep their place (no positions, or original ones).
    """

    sinks: int
    window: int
    rotation: Rotation | None

    def mask(self, query: Tensor, start: int) -> IndexedMask:
        """Which of all the text's keys the queries see, the first one at position `start`."""
        rows = torch.arange(start, start + query.shape[2], device=query.device)
        columns = torch.arange(start + query.shape[2], device=query.device)

        def seen(batch: Tensor, head: Tensor, at: Tensor, key: Tensor) -> Tensor:
            return (key <= at) & ((key < self.sinks) | (key >= at - self.window)) & (batch >= 0)

        return IndexedMask(seen, torch.arange(len(query), device=query.device), rows, columns)

    def toward_sinks(self, query: Tensor, start: int) -> Tensor:
        """The queries [batch, head, query, dim] as the sinks see them, the first one at position `start`."""
        if self.rotation is None or not self.sinks:
            return query
        rotation = self.rotation.of_query(query.shape[-1])
        reach = self.sinks + self.window
        return rotation.turned_by(
            query, *_angles_back(self.rotation, start, query.shape[2], reach, query.device, query.dtype)
        )


@lru_cache(maxsize=8)  # layers that rotate alike share them
def _angles_back(
    rotation: Rotation, start: int, count: int, reach: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Angles by which queries from `start` on are turned back, so that none is farther than `reach` from the first."""
    at = torch.arange(start, start + count, device=device)
    return rotation.angles(at.clamp(max=reach) - at, dtype)
