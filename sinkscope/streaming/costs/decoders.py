"""Ways to read the next token of a text with a full cache, each in one forward pass, as generation does."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.core.policies import Policy
from sinkscope.hf.caches import growing_cache, with_cache
from sinkscope.streaming.cache.sink_cache import SinkCache
from sinkscope.streaming.readers import only_last


class Decoder(ABC):
    """A text that has been read under a policy, ready for its next token.

    Args:
        model: a decoder in eval mode.
        ids: tokens read so far [1, token], as many as the cache keeps.
    """

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model, self.last = model, only_last(model)
        self.open = ExitStack()

    @abstractmethod
    def step(self, token: Tensor) -> Tensor:
        """Read `token` [1, 1]; logits [vocabulary] of the one after it."""

    @property
    @abstractmethod
    def kv_bytes(self) -> int:
        """Bytes of memory that keys and values take."""

    def close(self) -> None:
        """Leave the model as it was."""
        self.open.close()

    def _logits(self, ids: Tensor, cache: Any) -> Tensor:
        logits: Tensor = self.model(ids, **with_cache(self.model, cache), **self.last).logits
        return logits[0, -1]


class EvictingDecoder(Decoder):
    """Window, and sinks + window: a `SinkCache`, whose keys and values stay as they were computed."""

    def __init__(self, model: nn.Module, ids: Tensor, policy: Policy) -> None:
        super().__init__(model, ids)
        assert policy.kept is not None
        self.cache = self.open.enter_context(SinkCache(model, *policy.kept))
        self._logits(ids, self.cache)

    def step(self, token: Tensor) -> Tensor:
        return self._logits(token, self.cache)

    @property
    def kv_bytes(self) -> int:
        return self.cache.nbytes


class DenseDecoder(Decoder):
    """Dense: transformers' own growing cache. Every step starts from the same length, so that all cost the same."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        super().__init__(model, ids)
        self.cache = growing_cache(model)
        self._logits(ids, self.cache)

    def step(self, token: Tensor) -> Tensor:
        grown = copy.copy(self.cache)  # shares the tensors: a layer that grows makes new ones
        grown.layers = [copy.copy(layer) for layer in self.cache.layers]
        return self._logits(token, grown)

    @property
    def kv_bytes(self) -> int:
        return _bytes(self.cache)


class RecomputingDecoder(Decoder):
    """Re-computation: the last tokens run afresh for every new one, which is one of them."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        super().__init__(model, ids)
        self.ids, self._held = ids, 0

    def step(self, token: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids[:, 1:], token], 1)
        cache = growing_cache(self.model)
        logits = self._logits(self.ids, cache)
        self._held = _bytes(cache)
        return logits

    @property
    def kv_bytes(self) -> int:
        """Those of the last step, held until it was over."""
        return self._held


def decoder_of(model: nn.Module, ids: Tensor, policy: Policy) -> Decoder:
    """The text `ids` [1, token] read under a policy.

    Raises:
        SinkscopeError: a model that cannot be streamed under it.
    """
    if policy.kept is None:
        return DenseDecoder(model, ids)
    return RecomputingDecoder(model, ids) if policy.recomputed else EvictingDecoder(model, ids, policy)


def _bytes(cache: Any) -> int:
    tensors = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    return sum(states.numel() * states.element_size() for states in tensors)
