"""The last token ids that a cache has read, to tell a continuation from another text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

REMEMBERED = 32
UNKNOWN = -1  # a token given as an embedding


class RecentIds:
    """The last ids of each text of a batch."""

    def __init__(self, batch: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.ids = torch.full((batch, REMEMBERED), UNKNOWN, device=device)  # column t of the text at t % REMEMBERED

    def note(self, start: int, count: int, ids: Tensor | None) -> None:
        """Remember the ids [batch, token] of columns `start` to `start + count`; None when they are not known."""
        if count == 1:
            self.ids[:, start % REMEMBERED] = UNKNOWN if ids is None else ids[:, 0].to(self.ids.device)
            return
        last = min(count, REMEMBERED)
        columns = torch.arange(start + count - last, start + count, device=self.ids.device) % REMEMBERED
        self.ids[:, columns] = UNKNOWN if ids is None else ids[:, count - last :].to(self.ids.device)

    def agree(self, seen: int, ids: Tensor) -> bool:
        """Whether `ids` [batch, token], at least `seen` of them, hold what was remembered at its place."""
        columns = torch.arange(max(0, seen - REMEMBERED), seen, device=self.ids.device)
        mine = self.ids[:, columns % REMEMBERED]
        return bool(((mine == ids.to(self.ids.device)[:, columns]) | (mine == UNKNOWN)).all())

    def select(self, chosen: Callable[[Tensor], Tensor]) -> None:
        """Replace the texts by others of them."""
        self.ids = chosen(self.ids)
