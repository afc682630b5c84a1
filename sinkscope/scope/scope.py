"""The scope: the one way into a model, and out again.

    with torch.no_grad(), capture(model) as scope:
        model(ids)
    scope.record

Without `no_grad` everything is right too, gradients included, but slower: the fused kernel cannot be used. What is set
and hung on the model on entering is undone on leaving, also after an exception or an interrupt.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.attention.eviction import Eviction
from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.attention.masks import TensorMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import leave_maps_out, use_implementation
from sinkscope.hf.models import query_heads, reading_all
from sinkscope.models.compiled import uncompiled
from sinkscope.models.facts import Anatomy, Part, find_anatomy, model_attributes, token_attributes
from sinkscope.models.requirements import SCOPED, check_weights, not_finite
from sinkscope.normalisers import Normaliser, VirtualKey
from sinkscope.policies import Dense, Policy
from sinkscope.probes import FREE, HiddenProbe, LayerProbe, Probe, TileProbe
from sinkscope.scope.binding import layer_evictions
from sinkscope.scope.collect import Collector, checked_probes, measure_hidden, measure_layer
from sinkscope.scope.declarations import placed
from sinkscope.scope.forward import Caches, Forward, read_forward
from sinkscope.scope.interface import EVICTIONS, NAME, NORMALISERS
from sinkscope.scope.watch import AttentionWatch, keys_and_values


def capture(model: nn.Module, probes: Iterable[Probe] | None = None) -> Scope:
    """Measure where a model's attention goes while it runs as usual.

    Args:
        model: a transformers model, decoder, encoder or vision, in eval mode.
        probes: what to measure; those that cost no second pass when None.

    Returns:
        A context manager; its `record` holds what was measured. Every row of a batch is a text of its own; forward
        passes on a filled cache continue theirs. Only a mask [batch, token] marks padding. Inside the context the
        model must stay in one thread, and must not be copied or pickled; compiled code runs eagerly.

    Raises:
        SinkscopeError: when the model has no attention, is an encoder-decoder or several models in one, or carries a
            scope already; during a forward pass, when its input cannot be measured (each message says why).
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
    ) -> None:
        self.model = model
        self.anatomy = find_anatomy(model)
        self.probes = checked_probes(probes, self.anatomy.numbers)
        self.normaliser = normaliser
        self.policy = Dense() if policy is None else policy
        self.evictions = layer_evictions(self.policy, model, self.anatomy)
        if normaliser is not None:
            _check_normaliser(normaliser, model, self.anatomy, self.evictions)
        self._collector = Collector(len(self.anatomy.parts), self.probes)
        self._caches: Caches = WeakKeyDictionary()
        self._forward: Forward | None = None
        self._thread: int | None = None
        self._numbers: dict[int, int] = {}  # of the layer that each part was in its last run of a forward pass
        self._causal: bool | None = None
        self._other_keys = 0
        self.own_mask: str | None = None  # the class of a module that attended under a mask as a tensor
        self._watch: AttentionWatch | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Scope:
        check_weights(self.model)
        taken = [part.name for part in self.anatomy.parts if part.attention in SCOPED]
        if taken:
            raise SinkscopeError(
                f"this model carries a scope already (at {taken[0]}); leave that one first, or give it all the probes."
            )
        with ExitStack() as undo:
            self._attach(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end_forward()
        self._undo.close()

    @property
    def causal(self) -> bool:
        """Whether no query was seen to look ahead."""
        return self._causal is not False

    @property
    def record(self) -> xr.Dataset:
        """Everything measured so far; the variables are described with the probes that make them.

        Raises:
            SinkscopeError: nothing was measured yet.
        """
        self._check_saw_attention()
        record = self._collector.record()
        for probe in self.probes:
            record = record.assign_coords(placed(probe, record.sizes))
            for name in probe.makes.keys() & set(record.data_vars):
                about = probe.makes[name]
                record[name].attrs |= {
                    "units": about.units,
                    "long_name": about.description,
                    "probe": repr(probe),
                    "dims": " ".join(map(str, record[name].dims)),
                }
        record.attrs = {
            **model_attributes(self.model),
            **token_attributes(record, self.model),
            "attention": "attention interface" if self.anatomy.interface else "watched softmax",
            "causal": int(self.causal),
            "normaliser": "the model's own" if self.normaliser is None else repr(self.normaliser),
            "policy": repr(self.policy),
            "probes": ", ".join(map(repr, self.probes)),
        }
        if self._other_keys:  # they take attention as a learned sink does
            record.attrs["keys_that_are_no_tokens"] = self._other_keys
        return record

    def array(self, variable: str) -> xr.DataArray:
        """One variable over only the layers and heads it was measured in, without the rest of the record."""
        self._check_saw_attention()
        return self._collector.variable(variable)

    def _check_saw_attention(self) -> None:
        looking = any(isinstance(probe, (LayerProbe, TileProbe)) for probe in self.probes)
        if looking and self._collector.texts and not self._collector.layers:
            raise SinkscopeError(
                f"the attention modules of {type(self.model).__name__} ran, but no softmax or scaled dot product "
                "attention was seen in them; measure its maps elsewhere and use sinkscope.from_maps."
            )

    # --- attaching ------------------------------------------------------------------------------------------------

    def _attach(self, undo: ExitStack) -> None:
        def hang(hook: Any) -> None:
            undo.callback(hook.remove)

        undo.enter_context(uncompiled())
        base, parts, interface = self.anatomy.base, self.anatomy.parts, self.anatomy.interface
        for part, evictions in zip(parts, self.evictions, strict=True):
            SCOPED.add(part.attention)
            undo.callback(SCOPED.discard, part.attention)
            if self.normaliser is not None and self.normaliser.acts_in(part.number):
                NORMALISERS[part.attention] = self.normaliser
                undo.callback(NORMALISERS.pop, part.attention, None)
            if evictions:
                EVICTIONS[part.attention] = evictions
                undo.callback(EVICTIONS.pop, part.attention, None)
        if interface:
            leave_maps_out(self.model, undo)
            use_implementation(base, NAME, undo)
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
        self._forward = read_forward(module, args, kwargs, self._caches)
        self._numbers = {}
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
        self._end_forward()

    def _end_forward(self) -> None:
        self._collector.discard()
        self._forward = self._thread = None

    def _check_runs_once(self, index: int, part: Part, module: nn.Module, args: Any) -> None:
        if index in self._numbers:
            raise SinkscopeError(
                f"{part.name} runs several times in one forward pass, and `{self.policy.name}` remembers what each "
                "layer attended to, so its runs would be mixed; give a policy that follows from places in the text."
            )

    def _after_interface(self, index: int, part: Part, module: nn.Module, args: Any, output: Any) -> None:
        for layer in output if isinstance(output, tuple) else ():
            if isinstance(layer, Layer):
                self._observe(index, part, layer)

    def _after_watching(
        self, index: int, part: Part, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        watch = self._stop_watching()
        if watch is None or output is None:
            return
        layer = watch.seen(type(module).__name__)
        if layer is not None:
            if layer.key is None:
                key, value = keys_and_values(getattr(module, "layer_idx", index), (*args, *kwargs.values()))
                layer = replace(layer, key=key, value=value)
            self._observe(index, part, layer)

    @torch.inference_mode(False)  # in which a probe could change what it sees unnoticed
    @torch.no_grad()
    def _observe(self, index: int, part: Part, layer: Layer) -> None:
        """Let the probes look at one attention layer of the forward pass under way.

        A module that runs again in the same pass (layers that share their weights) is a layer of its own each time.
        """
        number = max([part.number, *(last + 1 for last in self._numbers.values())])
        if not bool((layer.lse < torch.inf).all()):  # NaN too; a row that sees nothing has the lowest float
            raise not_finite(f"the attention scores of layer {number} ({part.name})", self.model)
        if self._forward is None:
            return
        self._forward.check(layer, part.name)
        if self.probes and self.evictions[index] and layer.start:
            raise SinkscopeError("probes follow a policy over one forward pass from the first token; give no cache.")
        first, self._numbers[index] = not self._numbers, number
        self._other_keys = max(self._other_keys, layer.others)
        if isinstance(layer, FusedLayer) and isinstance(layer.mask, TensorMask):
            self.own_mask = type(part.attention).__name__
        with torch.autocast(layer.lse.device.type, enabled=False):
            for texts, real in self._forward.split(layer):
                if first and real.start == 0 and real.rows > 1:
                    self._causal = not bool((real.probabilities(slice(0, 1), slice(1, 2)) > 0).any())
                self._collector.add(number, texts, measure_layer(self.probes, number, real))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _after_layer(self, indices: list[int], module: nn.Module, args: Any, output: Any) -> None:
        """Let the hidden-state probes look at what a layer hands on, [batch, token, dim], around some of the parts."""
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        ran = [self._numbers[index] for index in indices if index in self._numbers]
        if self._forward is None or not ran or not isinstance(hidden, Tensor) or hidden.dim() != 3:
            return
        number = max(ran)
        hidden = self._forward.batch_first(hidden, number, sure=self.anatomy.interface)
        for texts, real in self._forward.split_hidden(hidden):
            # the sum is quick, and may overflow
            if not bool(real.sum().isfinite()) and not bool(real.isfinite().all()):
                raise not_finite(f"the hidden states after layer {number}", self.model)
            for probe in self.probes:
                if isinstance(probe, HiddenProbe) and probe.wants(number):
                    self._collector.add(number, texts, measure_hidden(probe, real))


def _check_normaliser(
    normaliser: Any, model: nn.Module, anatomy: Anatomy, evictions: list[tuple[Eviction, ...]]
) -> None:
    if not isinstance(normaliser, Normaliser):
        raise SinkscopeError(f"{normaliser!r} is not a normaliser; give an instance such as sinkscope.Softmax1().")
    if not anatomy.interface:
        raise SinkscopeError(
            f"{type(model).__name__} does not use transformers' attention interface, so its normaliser cannot be "
            "replaced; it can only be measured."
        )
    heads = query_heads(model)
    normaliser.check_place(anatomy.numbers, heads)
    normaliser.check_weights(heads or 1)
    shares = isinstance(normaliser, VirtualKey) and not normaliser.needs_whole_rows
    if not shares and any(eviction.values == "added" for each in evictions for eviction in each):
        raise SinkscopeError(
            f'values="added" takes keys out of a denominator, and the weights of {normaliser!r} are not shares of one; '
            "give a normaliser with a denominator, or other values."
        )
