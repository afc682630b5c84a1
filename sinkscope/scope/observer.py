"""What a scope sees of one stream of attention: its hooks on the model, and forward passes one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.attention.masks import TensorMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.images import Grid
from sinkscope.hf.models import placeholder_ids, reading_all
from sinkscope.models.cached import find_layout
from sinkscope.models.facts import Anatomy, Part, find_streams
from sinkscope.models.requirements import not_finite
from sinkscope.models.threads import Turn
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Dense, Policy
from sinkscope.probes import HiddenProbe, Probe, SpanMass
from sinkscope.scope.binding import check_none_missed, layer_evictions
from sinkscope.scope.collect import Collector, Text, checked_probes, measure_hidden, measure_layer
from sinkscope.scope.fitting import check_fits, check_normaliser
from sinkscope.scope.forward import Caches, Forward, read_forward
from sinkscope.scope.interface import CROSSING, EVICTIONS, NORMALISERS, SEEN, SPANNED
from sinkscope.scope.mixing import Mixing, find_mixing
from sinkscope.scope.streams import Told, TowerPass, arguments_of, check_given, read_tower, reads_tokens
from sinkscope.scope.watch import Lookout, keys_and_values
from sinkscope.undo import Hook, Undo, holding


class Observer:
    """One stream of attention of a model with probes, and how its layers fill the slots of attention."""

    _turn: Turn
    goes_on = False  # whether the keys of earlier tokens are all there, and as this policy would have left them

    def __init__(
        self,
        model: nn.Module,
        stream: str,
        anatomy: Anatomy,
        probes: Iterable[Probe],
        normaliser: Normaliser | None,
        policy: Policy | None,
    ) -> None:
        self._is_beside = False  # whether it is there for the sake of another stream
        self.model, self.stream, self.anatomy = model, stream, anatomy
        self.probes = checked_probes(probes, anatomy.layers)
        for probe in self.probes:
            check_fits(probe, anatomy)
        self.normaliser = normaliser
        self.policy = Dense() if policy is None else policy
        self.evictions = layer_evictions(self.policy, model, anatomy)
        # tokens of an image may see each other both ways in a text that is causal else
        self._counts_keys = not anatomy.crosses and bool(placeholder_ids(model))
        if normaliser is not None:
            check_normaliser(normaliser, model, anatomy, self.evictions)
            if stream == next(iter(find_streams(model))):
                check_none_missed(model, repr(normaliser))
        is_changed = normaliser is not None or any(self.evictions)
        self._reads = find_layout(model).reads if is_changed and stream == next(iter(find_streams(model))) else ()
        self._turns = any(eviction.turns for each in self.evictions for eviction in each)
        self._collector = Collector(len(anatomy.parts), self.probes)
        self._grids: list[Grid] = []  # of the images that were read, in their order
        self._caches: Caches = WeakKeyDictionary()
        self._forward: Forward | TowerPass | None = None
        self._told, self._lookout = Told(), Lookout()
        self._mixing: dict[nn.Module, Mixing] = {}  # of attention modules, where a probe asks
        self._mixed: dict[nn.Module, Tensor] = {}  # what their W_O reads in the call under way
        self._numbers: dict[int, int] = {}  # of the layer that each part was in its last run of a forward pass
        self._causal: bool | None = None
        self._other_keys = 0
        self.own_mask: str | None = None  # the class of a module that attended under a mask as a tensor
        self._problem: SinkscopeError | None = None

    @property
    def causal(self) -> bool:
        """Whether no query was seen to look ahead."""
        return self._causal is not False and not self.anatomy.crosses

    def _attach(self, undo: Undo) -> None:
        base, parts, interface = self.anatomy.base, self.anatomy.parts, self.anatomy.interface
        for part, evictions in zip(parts, self.evictions, strict=True):
            if self.normaliser is not None and self.normaliser.acts_in(part.number):
                undo.callback(NORMALISERS.pop, part.attention, None)
                NORMALISERS[part.attention] = self.normaliser
            if self.anatomy.crosses:
                undo.callback(CROSSING.discard, part.attention)
                CROSSING.add(part.attention)
            undo.callback(SPANNED.pop, part.attention, None)
            if interface and not reads_tokens(base):  # what a tower does in several calls it does not hand on
                undo.callback(SEEN.pop, part.attention, None)
                SEEN[part.attention] = []
            if evictions:
                undo.callback(EVICTIONS.pop, part.attention, None)
                EVICTIONS[part.attention] = evictions
        self._told.watch(self.model, base, undo)
        undo.hang(base, Hook(self._before_forward), before=True, with_kwargs=True)
        undo.hang(base, Hook(self._after_forward))
        undo.callback(self._lookout.stop)  # an interrupt inside a module skips the hook behind it
        for index, part in enumerate(parts):
            if self.policy.remembers and self.evictions[index]:
                undo.hang(part.attention, Hook(self._check_runs_once, index, part), before=True)
            if (mixing := self._mixing.get(part.attention)) is not None and mixing.is_gated:
                undo.hang(mixing.module, Hook(self._before_mixing, part.attention), before=True)
            if interface:
                undo.hang(part.attention, Hook(self._after_interface, index, part))
            else:
                undo.hang(part.attention, Hook(self._start_watching), before=True)
                after = Hook(self._after_watching, index, part)
                undo.hang(part.attention, after, with_kwargs=True, always_call=True)
        if any(isinstance(probe, HiddenProbe) for probe in self.probes):
            for layer, (indices, number) in self.anatomy.around.items():
                undo.hang(layer, Hook(self._after_layer, indices, number), with_kwargs=True)

    def _find_mixing(self) -> None:
        """Try what each layer does with its heads' outputs, where a probe asks, with the scope's attention in place."""
        if asking := [probe for probe in self.probes if probe.needs]:
            self._mixing = find_mixing(self.anatomy, asking)

    def _before_mixing(self, attention: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._is_mine():
            self._mixed[attention] = args[0].detach()

    def _take_turn(self, module: nn.Module, args: Any) -> None:
        self._turn.take()

    def _is_mine(self) -> bool:
        """Whether a forward pass is under way, and in this thread; SinkscopeError where it is in another."""
        return self._forward is not None and self._turn.is_held()

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._turn.take()
        if kwargs.get("output_attentions") and self.anatomy.interface:
            raise SinkscopeError(
                "output_attentions=True needs T x T maps, which do not exist while a scope is attached; "
                "leave it out and use sinkscope.attention_maps or the probe Maps()."
            )
        self._collector.discard()
        self._numbers = {}
        if reads_tokens(module):
            given = self._told.completed(arguments_of(module, args, kwargs))
            check_given(self.model, module, given, self.policy.name if self._turns else None)
            self._forward = read_forward(module, given, self._caches, self.anatomy.crosses)
        else:
            self._forward = read_tower(module, args, kwargs)
            for part in self.anatomy.parts:
                SEEN.get(part.attention, []).clear()
        for eviction in chain.from_iterable(self.evictions):
            eviction.begin(self._forward.cache, self._forward.past)
        self._set_spans()
        return args, reading_all(kwargs)

    def _set_spans(self) -> None:
        """Have attention sum over the spans that a probe asks for, in a forward pass over whole texts."""
        asking, given, columns = [probe for probe in self.probes if type(probe) is SpanMass], self._forward, None
        if asking and isinstance(given, Forward) and not (given.past or given.crosses) and self.anatomy.interface:
            columns = given.of_keys(asking[0].columns, self._collector)
        for part in self.anatomy.parts:
            SPANNED.pop(part.attention, None)
            if columns is not None:
                SPANNED[part.attention] = columns

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_mine() and self._forward is not None:
            self._collector.check()
            cache = self._forward.commit(self._caches, output)
            for eviction in chain.from_iterable(self.evictions):
                eviction.end(cache)
            holding(self._turn.lock, self._collector.commit, self._forward.texts)
            self._grids += self._told.grids
            self._told.grids = []
        self._end_forward()

    def _end_forward(self) -> None:
        self._collector.discard()
        self._mixed.clear()
        self._forward = None

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """What cannot be measured in a stream beside the main one is said when its record is asked for."""
        try:
            yield
        except SinkscopeError as problem:
            if not self._is_beside:
                raise
            self._problem, self._forward = problem, None

    def _start_watching(self, module: nn.Module, args: Any) -> None:
        if self._is_mine() and self._forward is not None:
            self._lookout.start(self._forward.scores)

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
            shown = [each for each in (output if isinstance(output, tuple) else ()) if isinstance(each, Layer)]
            is_filled = bool(self.evictions[index]) or module in NORMALISERS
            if not shown and is_filled and any(self._reads[index : index + 1]):
                raise SinkscopeError(
                    f"{part.name} ran, and attended by a function of its own, in which no policy and no normaliser of "
                    "sinkscope acts; leave them out, or give its forward pass back the attention of transformers."
                )
            for layer in shown:
                mixing, mixed = self._mixing.get(module), self._mixed.pop(module, None)
                self._observe(index, part, layer if mixing is None else mixing.beside(layer, mixed))

    def _after_watching(
        self, index: int, part: Part, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        watch = self._lookout.stop()
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
        is_mine = self._is_mine()
        number = max([part.number, *(last + 1 for last in self._numbers.values())])
        for layer in layers:
            if not bool((layer.lse < torch.inf).all()):  # NaN too; a row that sees nothing has the lowest float
                raise not_finite(f"the attention scores of layer {number} ({part.name})", self.model)
        if self._forward is None or not is_mine or not layers:
            return
        for layer in layers:
            self._forward.check(layer, part.name)
            self._other_keys = max(self._other_keys, layer.others)
            if isinstance(layer, FusedLayer) and isinstance(layer.mask, TensorMask):
                self.own_mask = type(part.attention).__name__
        if self.probes and self.evictions[index] and layers[0].start and not self.goes_on:
            raise SinkscopeError("probes follow a policy over one forward pass from the first token; give no cache.")
        first, self._numbers[index] = not self._numbers, number
        with torch.autocast(layers[0].lse.device.type, enabled=False):
            for texts, real in self._forward.split(*layers):
                if first and self.causal:
                    self._causal = not real.looks_ahead()
                if self._counts_keys and not self.causal and isinstance(real, FusedLayer):
                    self._count_keys(texts, real)
                real = replace(real, sequences=self._collector.numbers(texts, self._forward.texts))
                self._collector.add(number, texts, measure_layer(self.probes, number, real))

    def _count_keys(self, texts: list[Text], layer: FusedLayer) -> None:
        counts = layer.keys_seen().amax(1).expand(len(texts), -1).cpu().numpy()
        for text, count in zip(texts, counts, strict=True):  # layers with a window see fewer
            text.seen[layer.start] = np.maximum(count, text.seen.get(layer.start, 0))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _after_layer(
        self, indices: list[int], own: int | None, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        """Let the hidden-state probes look at what a layer hands on, [batch, token, dim], and at what it read.

        It has the number of the last of some parts inside it that ran, or else its own.
        """
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        ran = [self._numbers[index] for index in indices if index in self._numbers]
        number = max(ran, default=own)
        if self._forward is None or not self._is_mine() or number is None or not isinstance(hidden, Tensor):
            return
        if isinstance(self._forward, Forward):
            is_one_each = hidden.shape[:2] == (len(self._forward.texts), self._forward.tokens)
            if hidden.dim() != 3 or not (ran or is_one_each):
                return
            hidden = self._forward.batch_first(hidden, number, sure=self.anatomy.interface)
        read = args[0] if args else kwargs.get("hidden_states")
        before: Iterator[Tensor | None] = repeat(None)
        if isinstance(read, Tensor) and read.shape == hidden.shape and read.data_ptr() != hidden.data_ptr():
            before = (states for _, states in self._forward.split_hidden(read))
        for (texts, real), states in zip(self._forward.split_hidden(hidden), before, strict=False):
            # the sum is quick, and may overflow
            if not bool(real.sum().isfinite()) and not bool(real.isfinite().all()):
                raise not_finite(f"the hidden states after layer {number}", self.model)
            for probe in self.probes:
                if isinstance(probe, HiddenProbe) and probe.wants(number):
                    if probe.one_pass and any(text.tokens or text.start for text in texts):
                        raise SinkscopeError(
                            f"{type(probe).__name__} sets each token beside the first of its text, which this forward "
                            "pass, one that goes on with a text, has not; read the whole text in one, as in model(ids)."
                        )
                    self._collector.add(number, texts, measure_hidden(probe, states, real), attends=False)
