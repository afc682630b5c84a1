"""What stays of a text that was read, under a policy that acts from a later query on: that part is not read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.attention.eviction import mask_under
from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.hf.models import input_embeddings
from sinkscope.models.facts import token_attributes
from sinkscope.models.rotary import position_ceiling
from sinkscope.models.surroundings import hooks_on_every_module, replaced
from sinkscope.policies import Dense
from sinkscope.scope.binding import reads_in_blocks
from sinkscope.scope.collect import FOLLOWING
from sinkscope.streaming.reading_cache import SLOTS, ReadingCache, RollingCache

LEAST = 16  # tokens that are worth it
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ROUNDING = 256  # by how many of its dtype's steps a state may differ that is computed in another block


class Passed(NamedTuple):
    """One forward pass: its attention, what the probes made, and logits [row, vocabulary] of the last token or any.

    `hidden` are the states [1, token, width] that the head makes logits of; None where it cannot be run apart.
    """

    layers: list[Layer]
    record: xr.Dataset
    last: Tensor
    logits: Callable[[slice], Tensor]
    hidden: Tensor | None


@dataclass(frozen=True)
class Prefix:
    """A text as a model read it, of which the first tokens need not be read again.

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
    ) -> Prefix | None:
        """What a forward pass left; None where a part of it does not tell how the rest is to be read."""
        is_told = hidden.dtype.itemsize >= 4 and _tells_of_changes(model) and position_ceiling(model) is None
        if not is_told or not isinstance(cache, RollingCache) or not reads_in_blocks(model):
            return None
        fused = [layer for layer in layers if isinstance(layer, FusedLayer)]
        if len(fused) < len(layers) or any(each.others or each.reach != len(ids) for each in fused):
            return None
        if any(each.virtual_logit is not None and each.virtual_logit.dim() == 3 for each in fused):
            return None  # learned sinks of each token
        if any(layer.window is not None and layer.window <= len(ids) for layer in cache.rolling):
            return None  # windows of the model's own, in which later tokens take the place of earlier ones
        held = [tuple(layer.last[slot] for slot in SLOTS) for layer in cache.rolling]
        return cls(fused, held, hidden, record, _embedded(model, ids), written(model))

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
        is_same = self.weights == written(model) and torch.equal(self.embedded, _embedded(model, ids))
        return is_same and _tells_of_changes(model)

    def agrees(self, hidden: Tensor, first: int) -> bool:
        """Whether states [1, token, width] begin, at a token that was read once more, with what it was before.

        Every layer has a part in it, so that weights are found out that were changed behind torch's back.
        """
        return _agree(self.hidden[:, first], hidden[:, 0])

    def ahead(self, late: Layer, place: int, first: int) -> Layer | None:
        """The attention of one layer of the whole text; None where a token is not what it was there, as in `agrees`."""
        early = self.layers[place]
        if not isinstance(late, FusedLayer) or not _agree(early.query[:, :, first], late.query[:, :, 0]):
            return None
        return _joined(early, late, first) if _agree(early.key[:, :, first], late.key[:, :, first]) else None

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


def _agree(known: Tensor, now: Tensor) -> bool:
    return bool((now - known).abs().max() <= ROUNDING * torch.finfo(now.dtype).eps * known.abs().max())


def _joined(early: FusedLayer, late: Layer, first: int) -> Layer:
    assert isinstance(late, FusedLayer)
    query, lse = (torch.cat([getattr(early, name)[:, :, :first], getattr(late, name)], 2) for name in ("query", "lse"))
    shift = late.shift
    if shift is not None:
        shift = torch.cat([shift.new_zeros(*shift.shape[:2], first), shift], 2)
    mask = mask_under(late.evictions, query, 0) if late.evictions else early.mask
    return replace(late, query=query, lse=lse, shift=shift, mask=mask, start=0, key_start=0)


def written(model: nn.Module) -> list[tuple[int, int]]:
    """Where each weight lies, and how often it was written to; weights that do not count that tell nothing."""
    return [(each.data_ptr(), each._version) for each in _weights(model) if _counts(each)]


class Watch:
    """Finds out weights that were changed behind torch's back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: tuple[list[tuple[int, int]], list[Tensor]] | None = None

    def changed(self) -> bool:
        """Whether weights are others than when this was asked last, and torch counts no change."""
        before, self._seen = self._seen, (written(self._model), glance(self._model))
        return before is not None and before[0] == self._seen[0] and not all(map(torch.equal, before[1], self._seen[1]))


@torch.no_grad()
def glance(model: nn.Module) -> list[Tensor]:
    """A number for each row of each weight, which are others where weights are.

    Products of float32 rows with random numbers, which tell as much as float32 does; of other dtypes sums of bits.
    """
    weights = [each.detach() for each in _weights(model) if _counts(each) and not each.is_meta and each.numel()]
    rows = [each.reshape(-1, each.shape[-1] if each.dim() else 1) for each in weights if each.layout == torch.strided]
    widest = max((each.shape[1] for each in rows), default=0)
    factors = torch.randn(widest, generator=torch.Generator().manual_seed(0))
    on = {device: factors.to(device) for device in {each.device for each in rows}}
    found = []
    for each in rows:
        if each.dtype == torch.float32:
            found.append((each @ on[each.device][: each.shape[1]]).view(torch.int32))  # NaN is NaN as bits
        else:
            bits = torch.view_as_real(each).flatten(1) if each.is_complex() else each
            found.append(bits.contiguous().view(BITS[bits.element_size()]).sum(-1, dtype=torch.int64))
    return found


def _weights(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _counts(weight: Tensor) -> bool:
    return type(weight) in (nn.Parameter, Tensor) and not weight.is_inference()


def _tells_of_changes(model: nn.Module) -> bool:
    """Whether other weights are found out, and code that goes by the place of a token among those that it is given.

    Weights count how often they were written to, and one token has a part in all of them: but for those of experts.
    """
    kinds = {type(each) for each in model.modules()}
    has_experts = any(word in kind.__name__.lower() for kind in kinds for word in ("expert", "moe"))
    is_usual = not hooks_on_every_module() and not replaced(kinds)
    return not has_experts and is_usual and all(map(_counts, _weights(model)))


def _embedded(model: nn.Module, ids: Tensor) -> Tensor:
    embeddings = input_embeddings(model)
    return ids if embeddings is None else embeddings(ids)
