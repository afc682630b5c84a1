"""The scope: the one way into a model, and out again.

    with torch.no_grad(), capture(model) as scope:
        model(ids)
    scope.record

Without `no_grad` everything is right too, gradients included, but slower: the fused kernel cannot be used. What is set
and hung on the model on entering is undone on leaving, also after an exception or an interrupt.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.attention.masks import TensorMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import leave_maps_out, use_implementation
from sinkscope.hf.models import placeholder_ids, reading_all
from sinkscope.models.compiled import uncompiled
from sinkscope.models.facts import Part, find_streams
from sinkscope.models.requirements import SCOPED, check_weights, not_finite
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Dense, Policy
from sinkscope.probes import FREE, HiddenProbe, LayerProbe, Probe, TileProbe
from sinkscope.scope.binding import layer_evictions
from sinkscope.scope.collect import Collector, Text, checked_probes, measure_hidden, measure_layer
from sinkscope.scope.describe import described
from sinkscope.scope.fitting import check_fits, check_normaliser, fitting
from sinkscope.scope.forward import Caches, Forward, read_forward
from sinkscope.scope.interface import CROSSING, EVICTIONS, NAME, NORMALISERS, SEEN
from sinkscope.scope.streams import Told, TowerPass, arguments_of, check_given, read_tower, reads_tokens
from sinkscope.scope.watch import AttentionWatch, keys_and_values


def capture(model: nn.Module, probes: Iterable[Probe] | None = None) -> Scope:
    """Measure where a model's attention goes while it runs as usual.

    A model of several parts is captured around any call of the whole, `generate()` too. The record of the part that
    predicts tokens is `scope.record`. `scope.streams` has a scope for each part by name, so that
    `scope.streams["vision"].record` is that of the other: "text" and "vision" (or "audio") of a model that reads
    images, with tokens of images marked by the coordinate `is_image` of the former, and images as the sequences of the
    latter; "decoder", "cross" and "encoder" of an encoder-decoder, where "cross" has queries of the decoder and keys
    of the encoder. Each counts its own forward passes. Probes that a part lacks the layers for, and in "cross" those
    that read one text, are left out there.

    Args:
        model: a transformers model, decoder, encoder, vision or several of them in one, in eval mode.
        probes: what to measure; those that cost no second pass when None.

    Returns:
        A context manager; its `record` holds what was measured. Every row of a batch is a text of its own; forward
        passes on a filled cache continue theirs. Only a mask [batch, token] marks padding. Inside the context the
        model must stay in one thread, and must not be copied or pickled; compiled code runs eagerly.

    Raises:
        SinkscopeError: when the model has no attention, is several models of which none reads its tokens, or carries
            a scope already; during a forward pass, when its input cannot be measured (each message says why).
    """
    return Scope(model, FREE if probes is None else probes)


def attached(
    model: nn.Module,
    *,
    policy: Policy | None = None,
    normaliser: Normaliser | None = None,
    probes: Iterable[Probe] = (),
) -> Scope:
    """Run a model with the slots of its attention filled by hand.

    Args:
        model: as for `capture`.
        policy: which keys a query may see; all of them when None.
        normaliser: how scores become weights; the model's own when None.
        probes: what to measure; nothing when empty.

    Returns:
        A context manager, as `capture` does.

    Raises:
        SinkscopeError: as `capture`; also when a normaliser or a policy is given for a family outside the attention
            interface, or a policy for one that cannot be streamed.
    """
    return Scope(model, probes, normaliser, policy)


class Scope:
    """A model with probes on, for as long as the context lasts."""

    def __init__(
        self,
        model: nn.Module,
        probes: Iterable[Probe],
        normaliser: Normaliser | None = None,
        policy: Policy | None = None,
        stream: str | None = None,
    ) -> None:
        self._is_beside = False  # whether it is there for the sake of another stream
        found = find_streams(model)
        self.model, self.stream = model, next(iter(found)) if stream is None else stream
        self.anatomy = found[self.stream]
        self.probes = checked_probes(probes, self.anatomy.layers)
        for probe in self.probes:
            check_fits(probe, self.anatomy)
        self.streams = {self.stream: self}
        for name in list(found)[1:] if stream is None and self.probes else ():
            self.streams[name] = Scope(model, fitting(self.probes, found[name]), stream=name)
            self.streams[name]._is_beside = True
        self.normaliser = normaliser
        self.policy = Dense() if policy is None else policy
        self.evictions = layer_evictions(self.policy, model, self.anatomy)
        # tokens of an image may see each other both ways in a text that is causal else
        self._counts_keys = not self.anatomy.crosses and bool(placeholder_ids(model))
        if normaliser is not None:
            check_normaliser(normaliser, model, self.anatomy, self.evictions)
        self._collector = Collector(len(self.anatomy.parts), self.probes)
        self._caches: Caches = WeakKeyDictionary()
        self._forward: Forward | TowerPass | None = None
        self._told = Told()
        self._thread: int | None = None
        self._numbers: dict[int, int] = {}  # of the layer that each part was in its last run of a forward pass
        self._causal: bool | None = None
        self._other_keys = 0
        self.own_mask: str | None = None  # the class of a module that attended under a mask as a tensor
        self._watch: AttentionWatch | None = None
        self._undo = ExitStack()
        self._problem: SinkscopeError | None = None

    def __enter__(self) -> Scope:
        check_weights(self.model)
        parts = [part for scope in self.streams.values() for part in scope.anatomy.parts]
        taken = [part.name for part in parts if part.attention in SCOPED]
        if taken:
            raise SinkscopeError(
                f"this model carries a scope already (at {taken[0]}); leave that one first, or give it all the probes."
            )
        with ExitStack() as undo:
            bases = [scope.anatomy.base for scope in self.streams.values() if scope.anatomy.interface]
            undo.enter_context(uncompiled())
            for base in bases:
                leave_maps_out(base, undo)
            use_implementation(bases, NAME, undo)
            for scope in self.streams.values():
                scope._attach(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        for scope in self.streams.values():
            scope._end_forward()
        self._undo.close()

    @property
    def causal(self) -> bool:
        """Whether no query was seen to look ahead."""
        return self._causal is not False and not self.anatomy.crosses

    @property
    def record(self) -> xr.Dataset:
        """Everything measured so far; the variables are described with the probes that make them.

        Raises:
            SinkscopeError: nothing was measured yet.
        """
        self._check_saw_attention()
        return described(self._collector.record(), self, self._other_keys, self._told.grids)

    def array(self, variable: str) -> xr.DataArray:
        """One variable over only the layers and heads it was measured in, without the rest of the record."""
        self._check_saw_attention()
        return self._collector.variable(variable)

    def _check_saw_attention(self) -> None:
        if self._problem is not None:
            raise self._problem
        looking = any(isinstance(probe, (LayerProbe, TileProbe)) for probe in self.probes)
        if looking and self._collector.texts and not self._collector.layers:
            raise SinkscopeError(
                f"the attention modules of {type(self.model).__name__} ran, but no softmax or scaled dot product "
                "attention was seen in them; measure its maps elsewhere and use sinkscope.from_maps."
            )
        for probe in self.probes if self._collector.layers and not self._is_beside else ():
            probe.check(self._collector.layers)  # what was said to be there need not have run

    # --- attaching ------------------------------------------------------------------------------------------------

    def _attach(self, undo: ExitStack) -> None:
        def hang(hook: Any) -> None:
            undo.callback(hook.remove)

        base, parts, interface = self.anatomy.base, self.anatomy.parts, self.anatomy.interface
        for part, evictions in zip(parts, self.evictions, strict=True):
            SCOPED.add(part.attention)
            undo.callback(SCOPED.discard, part.attention)
            if self.normaliser is not None and self.normaliser.acts_in(part.number):
                NORMALISERS[part.attention] = self.normaliser
                undo.callback(NORMALISERS.pop, part.attention, None)
            if self.anatomy.crosses:
                CROSSING.add(part.attention)
                undo.callback(CROSSING.discard, part.attention)
            if interface and not reads_tokens(base):  # what a tower does in several calls it does not hand on
                SEEN[part.attention] = []
                undo.callback(SEEN.pop, part.attention, None)
            if evictions:
                EVICTIONS[part.attention] = evictions
                undo.callback(EVICTIONS.pop, part.attention, None)
        self._told.watch(self.model, base, undo)
        hang(base.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        hang(base.register_forward_hook(self._after_forward))
        undo.callback(self._stop_watching)  # an interrupt inside a module skips the hook behind it
        for index, part in enumerate(parts):
            if self.policy.remembers and self.evictions[index]:
                hang(part.attention.register_forward_pre_hook(partial(self._check_runs_once, index, part)))
            if interface:
                hang(part.attention.register_forward_hook(partial(self._after_interface, index, part)))
            else:
                hang(part.attention.register_forward_pre_hook(self._start_watching))
                after = partial(self._after_watching, index, part)
                hang(part.attention.register_forward_hook(after, with_kwargs=True, always_call=True))
        if any(isinstance(probe, HiddenProbe) for probe in self.probes):
            inside: dict[nn.Module, list[int]] = {}
            for index, part in enumerate(parts):
                if part.layer is not None:
                    inside.setdefault(part.layer, []).append(index)
            for layer, indices in inside.items():
                hang(layer.register_forward_hook(partial(self._after_layer, indices)))

    def _start_watching(self, module: nn.Module, args: Any) -> None:
        self._stop_watching()
        self._watch = AttentionWatch(None if self._forward is None else self._forward.scores)
        self._watch.__enter__()

    def _stop_watching(self) -> AttentionWatch | None:
        watch = self._watch
        if watch is not None:
            watch.__exit__(None, None, None)
            self._watch = None
        return watch

    # --- what the hooks call --------------------------------------------------------------------------------------

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._thread not in (None, threading.get_ident()):
            raise SinkscopeError("a model that carries a scope was called from two threads at once; use one thread.")
        if kwargs.get("output_attentions") and self.anatomy.interface:
            raise SinkscopeError(
                "output_attentions=True needs T x T maps, which do not exist while a scope is attached; "
                "leave it out and use sinkscope.attention_maps or the probe Maps()."
            )
        self._collector.discard()
        self._numbers = {}
        if reads_tokens(module):
            given = self._told.completed(arguments_of(module, args, kwargs))
            turns = any(eviction.turns for eviction in chain.from_iterable(self.evictions))
            check_given(self.model, module, given, self.policy.name if turns else None)
            self._forward = read_forward(module, given, self._caches, self.anatomy.crosses)
        else:
            self._forward = read_tower(module, args, kwargs)
            for part in self.anatomy.parts:
                SEEN.get(part.attention, []).clear()
        for eviction in chain.from_iterable(self.evictions):
            eviction.begin(self._forward.cache, self._forward.past)
        self._thread = threading.get_ident()
        return args, reading_all(kwargs)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._forward is not None:
            self._collector.check()
            cache = self._forward.commit(self._caches, output)
            for eviction in chain.from_iterable(self.evictions):
                eviction.end(cache)
            self._collector.commit(self._forward.texts)
            self._told.commit()
        self._end_forward()

    def _end_forward(self) -> None:
        self._collector.discard()
        self._forward = self._thread = None

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """What cannot be measured in a stream beside the main one is said when its record is asked for."""
        try:
            yield
        except SinkscopeError as problem:
            if not self._is_beside:
                raise
            self._problem, self._forward = problem, None

    def _check_runs_once(self, index: int, part: Part, module: nn.Module, args: Any) -> None:
        if index in self._numbers:
            raise SinkscopeError(
                f"{part.name} runs several times in one forward pass, and `{self.policy.name}` remembers what each "
                "layer attended to, so its runs would be mixed; give a policy that follows from places in the text."
            )

    def _after_interface(self, index: int, part: Part, module: nn.Module, args: Any, output: Any) -> None:
        with self._beside():
            if module in SEEN:
                layers, SEEN[module] = SEEN[module], []
                self._observe(index, part, *layers)
                return
            for layer in output if isinstance(output, tuple) else ():
                if isinstance(layer, Layer):
                    self._observe(index, part, layer)

    def _after_watching(
        self, index: int, part: Part, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        watch = self._stop_watching()
        if watch is None or output is None:
            return
        with self._beside():
            layer = watch.seen(type(module).__name__)
            if layer is not None:
                if layer.key is None and not self.anatomy.crosses:
                    key, value = keys_and_values(getattr(module, "layer_idx", index), (*args, *kwargs.values()))
                    layer = replace(layer, key=key, value=value)
                self._observe(index, part, layer)

    @torch.inference_mode(False)  # in which a probe could change what it sees unnoticed
    @torch.no_grad()
    def _observe(self, index: int, part: Part, *layers: Layer) -> None:
        """Let the probes look at one attention layer of the forward pass under way; in a tower it may be many calls.

        A module that runs again in the same pass (layers that share their weights) is a layer of its own each time.
        """
        number = max([part.number, *(last + 1 for last in self._numbers.values())])
        for layer in layers:
            if not bool((layer.lse < torch.inf).all()):  # NaN too; a row that sees nothing has the lowest float
                raise not_finite(f"the attention scores of layer {number} ({part.name})", self.model)
        if self._forward is None or not layers:
            return
        for layer in layers:
            self._forward.check(layer, part.name)
            self._other_keys = max(self._other_keys, layer.others)
            if isinstance(layer, FusedLayer) and isinstance(layer.mask, TensorMask):
                self.own_mask = type(part.attention).__name__
        if self.probes and self.evictions[index] and layers[0].start:
            raise SinkscopeError("probes follow a policy over one forward pass from the first token; give no cache.")
        first, self._numbers[index] = not self._numbers, number
        with torch.autocast(layers[0].lse.device.type, enabled=False):
            for texts, real in self._forward.split(*layers):
                if first and self.causal:
                    self._causal = not real.looks_ahead()
                if self._counts_keys and not self.causal and isinstance(real, FusedLayer):
                    self._count_keys(texts, real)
                self._collector.add(number, texts, measure_layer(self.probes, number, real))

    def _count_keys(self, texts: list[Text], layer: FusedLayer) -> None:
        counts = layer.keys_seen().amax(1).expand(len(texts), -1).cpu().numpy()
        for text, count in zip(texts, counts, strict=True):  # layers with a window see fewer
            text.seen[layer.start] = np.maximum(count, text.seen.get(layer.start, 0))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _after_layer(self, indices: list[int], module: nn.Module, args: Any, output: Any) -> None:
        """Let the hidden-state probes look at what a layer hands on, [batch, token, dim], around some of the parts."""
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        ran = [self._numbers[index] for index in indices if index in self._numbers]
        if self._forward is None or not ran or not isinstance(hidden, Tensor):
            return
        number = max(ran)
        if isinstance(self._forward, Forward):
            if hidden.dim() != 3:
                return
            hidden = self._forward.batch_first(hidden, number, sure=self.anatomy.interface)
        for texts, real in self._forward.split_hidden(hidden):
            # the sum is quick, and may overflow
            if not bool(real.sum().isfinite()) and not bool(real.isfinite().all()):
                raise not_finite(f"the hidden states after layer {number}", self.model)
            for probe in self.probes:
                if isinstance(probe, HiddenProbe) and probe.wants(number):
                    self._collector.add(number, texts, measure_hidden(probe, real))
