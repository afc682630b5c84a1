"""Attention outside transformers' attention interface, watched while it computes its softmax."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from sinkscope.attention.layer import FusedLayer, Layer, ScoredLayer
from sinkscope.attention.masks import CausalMask, FullMask, Mask, TensorMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import cache_among, held_states
from sinkscope.scope.interface import check_dropout, observed_layer
from sinkscope.scope.lazy_mask import Sight

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class Scores(NamedTuple):
    """What the scores of a layer's attention look like: [batch, head, query, key], or the first two as one."""

    batch: int
    queries: int | None  # None where only the layers know it
    past: int | None  # keys before the first query; None where the keys are of another text


class AttentionWatch(TorchFunctionMode):
    """Sees one attention module compute its score matrix or call the fused attention.

    A softmax over scores of another shape is not the layer's attention: over blocks, or over tokens of its own.
    """

    def __init__(self, expected: Scores | None) -> None:
        super().__init__()
        self.expected = expected
        self.layers: list[Layer] = []
        self.others: list[tuple[int, ...]] = []
        self.thread, self.was_on = threading.get_ident(), False

    def start(self) -> None:
        """Look from now on, in this thread."""
        self.__enter__()
        self.was_on = True

    def stop(self) -> None:
        """Look no more; may be done twice, or without a start.

        An interrupt inside an attention module leaves the modes of torch as they are there: modes of the user's that
        were around it then took this one off in their place.
        """
        modes = _get_current_function_mode_stack()
        if self in modes:
            others = [_pop_mode() for _ in modes[modes.index(self) :]][:-1]
            for mode in reversed(others):
                _push_mode(mode)
        elif self.was_on and modes:
            _pop_mode()
        self.was_on = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._look(lambda shape: _fused(*args, **kwargs), (*args[0].shape[:3], args[1].shape[2]))
        elif func in SOFTMAX and args and isinstance(args[0], Tensor) and args[0].dim() in (3, 4):
            scores = args[0].detach()
            self._look(lambda shape: _scored(scores.reshape(shape)), tuple(scores.shape))
        return func(*args, **kwargs)

    def _look(self, layer: Callable[[tuple[int, ...]], Layer], shape: tuple[int, ...]) -> None:
        expected = self.expected
        if expected is None:
            return
        batch, queries, past = expected
        if len(shape) == 3 and shape[0] % batch == 0:
            shape = (batch, shape[0] // batch, *shape[1:])
        fits = len(shape) == 4 and shape[0] == batch and shape[2] == (queries or shape[2])
        if fits and (past is None or shape[3] == past + shape[2]):
            self.layers.append(layer(shape))
        else:
            self.others.append(shape)

    def seen(self, name: str) -> Layer | None:
        """The layer's attention; None where there was no softmax.

        Raises:
            SinkscopeError: every softmax was over something else, or several could be the layer's attention.
        """
        if len(self.layers) == 1 or not (self.layers or self.others):
            return self.layers[0] if self.layers else None
        assert self.expected is not None
        batch, queries, past = self.expected
        tokens = f"{queries} tokens" if queries else "tokens"
        found = f"{len(self.layers)} softmaxes of" if self.layers else f"a softmax over {self.others[0]} for"
        raise SinkscopeError(
            f"{name} computes {found} {batch} texts of {tokens}{f' after {past} others' if past else ''}, so which "
            "attention each token gives to each other cannot be told (attention in blocks or windows, or to tokens of "
            "the model's own); measure its maps elsewhere and use sinkscope.from_maps."
        )


class Lookout:
    """The watch over the one attention module that runs now, if any."""

    def __init__(self) -> None:
        self._watch: AttentionWatch | None = None

    def start(self, expected: Scores | None) -> None:
        self.stop()
        self._watch = AttentionWatch(expected)
        self._watch.start()

    def stop(self) -> AttentionWatch | None:
        """End the watch, and give it; none that another thread keeps, whose modes nobody else can reach."""
        watch = self._watch
        if watch is None or watch.thread != threading.get_ident():
            return None
        watch.stop()
        self._watch = None
        return watch


def keys_and_values(index: int, arguments: Iterable[Any]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The keys and values of one layer from the cache among some arguments; None where it does not show both."""
    cache = cache_among(arguments)
    states = {} if cache is None else held_states(cache, index)
    return (states["keys"].detach(), states["values"].detach()) if len(states) == 2 else (None, None)


def _scored(scores: Tensor) -> ScoredLayer:
    lse = scores.float().logsumexp(-1).clamp(min=torch.finfo(torch.float32).min)  # a row may see nothing
    return ScoredLayer(lse=lse, scores=scores, key=None, value=None, start=scores.shape[3] - scores.shape[2])


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FusedLayer:
    """What the probes need of a call of `scaled_dot_product_attention`, whose arguments these are."""
    check_dropout(dropout_p)
    past = key.shape[2] - query.shape[2]
    mask: Mask = FullMask()
    if attn_mask is not None:
        mask = TensorMask(attn_mask[(None,) * (4 - attn_mask.dim())].expand(-1, -1, query.shape[2], key.shape[2]))
    elif is_causal:
        mask = CausalMask(0)
    return observed_layer(query, key, value, Sight(mask, past, 0), scale)[1]
