"""What stays of a text that was read, under a policy that acts from a later query on: that part is not read again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.attention.eviction import mask_under
from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.hf.caches import states_of
from sinkscope.hf.models import input_embeddings
from sinkscope.models.facts import token_attributes
from sinkscope.models.rotary import position_ceiling
from sinkscope.policies import Dense
from sinkscope.scope.collect import FOLLOWING
from sinkscope.streaming.reading_cache import SLOTS, ReadingCache, RollingCache

LEAST = 16  # tokens that are worth it
ROUNDING = 256  # by how many of its dtype's steps a state may differ that is computed in another block


@dataclass(frozen=True)
class Kept:
    """A text as a model read it.

    Attributes:
        layers: its attention, whole.
        held: keys and values [1, kv_head, token, dim] of each layer of the cache.
        hidden: [1, token, width] states behind its last layer, which the head turns into logits.
        record: what the probes made.
        embedded, weights: what tells whether the weights are still those that read it.
    """

    layers: Sequence[FusedLayer]
    held: Sequence[tuple[Tensor, ...]]
    hidden: Tensor
    record: xr.Dataset
    embedded: Tensor
    weights: list[tuple[int, int]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        ids: Tensor,
        layers: Sequence[Layer],
        cache: ReadingCache | None,
        hidden: Tensor,
        record: xr.Dataset,
    ) -> Kept | None:
        """What a forward pass left; None where a part of it does not tell how the rest is to be read."""
        if hidden.dtype.itemsize < 4 or not _tells_of_changes(model):
            return None
        fused = [layer for layer in layers if isinstance(layer, FusedLayer)]
        if not isinstance(cache, RollingCache) or len(fused) < len(layers) or states_of(cache):
            return None
        held = [tuple(layer.last[slot] for slot in SLOTS) for layer in cache.rolling]
        has_own = any(each.virtual_logit is not None and each.virtual_logit.dim() == 3 for each in fused)
        whole = all(each.reach == each.rows == len(ids) and not each.others for each in fused)
        whole = whole and all(states.shape[2] == len(ids) for pair in held for states in pair)
        if has_own or not whole or position_ceiling(model) is not None:
            return None
        return cls(fused, held, hidden, record, _embedded(model, ids), _weights(model))

    def cache(self, model: nn.Module, first: int, device: torch.device) -> RollingCache:
        """A cache in which the first tokens were read; whatever a policy drops is hidden by its attention."""
        cache = RollingCache(model, Dense())
        tensors = {"base": torch.tensor(0)}
        for number, pair in enumerate(self.held):
            for slot, states in zip(SLOTS, pair, strict=True):
                tensors[f"{number}.first.{slot}"] = states[:, :, :0]
                tensors[f"{number}.last.{slot}"] = states[:, :, :first]
        cache.load_tensors(tensors, first, device)
        return cache

    def is_of(self, model: nn.Module, ids: Tensor) -> bool:
        """Whether weights and embeddings are those that the text was read with, as far as torch tells of changes."""
        return self.weights == _weights(model) and torch.equal(self.embedded, _embedded(model, ids))

    def agrees(self, hidden: Tensor, first: int) -> bool:
        """Whether states [1, token, width] begin, at a token that was read once more, with what it was before.

        Every layer has a part in it, so that weights are found out that were changed behind torch's back.
        """
        known, now = self.hidden[:, first], hidden[:, 0]
        return bool((now - known).abs().max() <= ROUNDING * torch.finfo(now.dtype).eps * known.abs().max())

    def joined(self, late: Iterable[Layer], first: int) -> list[Layer]:
        """The attention of the whole text: that of the first tokens as it was, that of `late` ones behind them."""
        return [_joined(early, after, first) for early, after in zip(self.layers, late, strict=True)]

    def completed(self, late: xr.Dataset, first: int, model: nn.Module) -> xr.Dataset:
        """The record of the whole text, of that of the later tokens."""
        whole = late.copy(deep=True)
        for name, values in whole.variables.items():
            along = set(values.dims) & set(FOLLOWING)
            if along and name not in values.dims:
                values[{dim: slice(first) for dim in along}] = self.record[name].variable[
                    {dim: slice(first) for dim in along}
                ]
        return whole.assign_attrs(token_attributes(whole, model))


def _joined(early: FusedLayer, late: Layer, first: int) -> Layer:
    assert isinstance(late, FusedLayer)
    query, lse = (torch.cat([getattr(early, name)[:, :, :first], getattr(late, name)], 2) for name in ("query", "lse"))
    shift = late.shift
    if shift is not None:
        shift = torch.cat([shift.new_zeros(*shift.shape[:2], first), shift], 2)
    mask = mask_under(late.evictions, query, 0) if late.evictions else early.mask
    return replace(late, query=query, lse=lse, shift=shift, mask=mask, start=0, key_start=0)


def _tells_of_changes(model: nn.Module) -> bool:
    """Whether changed weights are found out: they count them, and one token has a part in all (not in all experts)."""
    return not any(each.is_inference() or "expert" in name for name, each in model.named_parameters())


def _embedded(model: nn.Module, ids: Tensor) -> Tensor:
    embeddings = input_embeddings(model)
    return ids if embeddings is None else embeddings(ids)


def _weights(model: nn.Module) -> list[tuple[int, int]]:
    """Where each weight lies, and how often it was written to."""
    return [(each.data_ptr(), each._version) for part in (model.parameters(), model.buffers()) for each in part]
