"""What a model is shown of a cache: positions and a mask with which the tokens kept look like its whole text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.hf.caches import Cache, without_cache
from sinkscope.streaming.cache.store import Store


@dataclass(frozen=True)
class View:
    """The tokens kept, as the forward pass of one model takes them.

    Attributes:
        store: what is kept.
        names: arguments of the forward pass, in order; `cache_name` is that of the cache.
        overrides_windows: whether a mask takes the place of the model's own, whose native windows would hide the sinks.
        has_interface: whether attention goes through transformers' interface.
    """

    store: Store
    names: tuple[str, ...]
    cache_name: str
    overrides_windows: bool
    has_interface: bool

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a forward pass by name, but the cache."""
        return without_cache(dict(zip(self.names, args, strict=False)) | kwargs)

    def arguments(self, cache: Cache, count: int) -> dict[str, Any]:
        """Those with which the model reads `count` new tokens behind what is kept."""
        store = self.store
        view: dict[str, Any] = {self.cache_name: cache, "attention_mask": None, "use_cache": True}
        if "position_ids" in self.names:
            view["position_ids"] = store.positions(count)
        visible = store.visible(count)
        if self.overrides_windows:
            view["attention_mask"] = _causal_bias(store, count, visible)
        elif visible is not None:
            view["attention_mask"] = visible.long()
        elif not self.has_interface:  # they count the tokens before by the mask, or else by how many were ever read
            device = store.kinds[0].device
            view["attention_mask"] = torch.ones(store.batch or 1, store.width(count), dtype=torch.long, device=device)
        return {name: value for name, value in view.items() if name in self.names}


def _causal_bias(store: Store, count: int, visible: Tensor | None) -> Tensor:
    """A mask [batch, 1, token, key] to add to the scores; `visible` [batch, key] is False for padding."""
    kind, width = store.kinds[0], store.width(count)
    lowest = torch.finfo(kind.dtype).min
    bias = torch.full((count, width), lowest, dtype=kind.dtype, device=kind.device).triu(width - count + 1)[None, None]
    return bias if visible is None else bias.masked_fill(~visible[:, None, None, :], lowest)
