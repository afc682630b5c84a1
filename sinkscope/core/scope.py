"""The scope: the one way into a model, and out again.

    with capture(model) as scope:
        model(ids)
    scope.record

On entering, the model's attention implementation is set to "sinkscope" and forward hooks are hung on its attention
modules, its layers and its base; on leaving, also after an exception or an interrupt, all of it is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.collect import Collector
from sinkscope.core.forward import Forward, read_forward
from sinkscope.core.interface import NAME, NORMALISERS
from sinkscope.core.layer import Layer
from sinkscope.core.normalisers import Normaliser
from sinkscope.core.probes import FREE, HiddenProbe, LayerProbe, Measurements, Probe, TileProbe
from sinkscope.core.provenance import model_attributes, token_attributes
from sinkscope.core.watch import AttentionWatch, cached_states
from sinkscope.errors import SinkscopeError

_WATCHED: WeakSet[nn.Module] = WeakSet()  # attention modules that carry a scope now


def capture(model: nn.Module, probes: Iterable[Probe] | None = None) -> Scope:
    """Measure where a model's attention goes while it runs as usual.

    Args:
        model: a transformers model, decoder, encoder or vision, in eval mode.
        probes: what to measure; those that cost no second pass when None.

    Returns:
        A context manager; its `record` holds what was measured.

    Raises:
        SinkscopeError: on entering, when the model has no attention, is an encoder-decoder, or carries a scope already.
    """
    return Scope(model, FREE if probes is None else probes)


def attached(model: nn.Module, *, normaliser: Normaliser | None = None, probes: Iterable[Probe] = ()) -> Scope:
    """Run a model with the slots of its attention filled by hand.

    Args:
        model: as for `capture`.
        normaliser: how scores become weights; the model's own when None.
        probes: what to measure; nothing when empty.

    Returns:
        A context manager, as `capture` does.

    Raises:
        SinkscopeError: as `capture`; also when a normaliser is given for a family outside the attention interface.
    """
    return Scope(model, probes, normaliser)


class Scope:
    """A model with probes on, for as long as the context lasts."""

    def __init__(self, model: nn.Module, probes: Iterable[Probe], normaliser: Normaliser | None = None) -> None:
        self.model = model
        self.probes = tuple(probes)
        self.normaliser = normaliser
        self.anatomy = find_anatomy(model)
        self.causal = True
        for probe in self.probes:
            if not isinstance(probe, Probe):
                raise SinkscopeError(f"{probe!r} is not a probe; give instances such as sinkscope.SinkMass(first=4).")
            probe.check(len(self.anatomy.attentions))
            if sum(type(other) is type(probe) for other in self.probes) > 1:
                raise SinkscopeError(
                    f"{type(probe).__name__} is given twice, and both would write the same variable; give it once."
                )
        if normaliser is not None and not self.anatomy.interface:
            raise SinkscopeError(
                f"{type(model).__name__} does not use transformers' attention interface, so its normaliser cannot be "
                "replaced; it can only be measured."
            )
        self._collector = Collector()
        self._forward: Forward | None = None
        self._watches: list[AttentionWatch] = []
        self._undo = ExitStack()

    def __enter__(self) -> Scope:
        taken = [name for name, module in self.anatomy.attentions.items() if module in _WATCHED]
        if taken:
            raise SinkscopeError(
                f"this model carries a scope already (at {taken[0]}); leave that one first, or give it all the probes."
            )
        with ExitStack() as undo:
            self._attach(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._collector.discard()
        self._forward = None
        self._undo.close()

    @property
    def record(self) -> xr.Dataset:
        """Everything measured so far; the variables are described with the probes that make them.

        Raises:
            SinkscopeError: nothing was measured yet.
        """
        record = self._collector.record(len(self.anatomy.attentions))
        path = "attention interface" if self.anatomy.interface else "watched softmax"
        record.attrs = {
            **model_attributes(self.model),
            **token_attributes(record, self.model),
            "attention": path,
            "causal": int(self.causal),
            "normaliser": "the model's own" if self.normaliser is None else repr(self.normaliser),
            "probes": ", ".join(map(repr, self.probes)),
        }
        return record

    def array(self, variable: str) -> xr.DataArray:
        """One variable over only the layers and heads it was measured in, without the rest of the record."""
        return self._collector.variable(variable)

    # --- attaching ------------------------------------------------------------------------------------------------

    def _attach(self, undo: ExitStack) -> None:
        anatomy = self.anatomy
        for module in anatomy.attentions.values():
            _WATCHED.add(module)
            undo.callback(_WATCHED.discard, module)
            if self.normaliser is not None:
                NORMALISERS[module] = self.normaliser
                undo.callback(NORMALISERS.pop, module, None)
        if anatomy.interface:
            _use_implementation(self.model, undo)
        hooks = [
            anatomy.base.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            anatomy.base.register_forward_hook(self._after_forward),
        ]
        for index, (name, module) in enumerate(anatomy.attentions.items()):
            if anatomy.interface:
                hooks.append(module.register_forward_hook(_interface_hook(self, index, name)))
            else:
                hooks += _watch_hooks(self, index, name, module)
        if any(isinstance(probe, HiddenProbe) for probe in self.probes):
            for index, (name, module) in enumerate(anatomy.layers.items()):
                hooks.append(module.register_forward_hook(_hidden_hook(self, index, name)))
        for hook in hooks:
            undo.callback(hook.remove)
        undo.callback(self._stop_watching)  # an interrupt inside a module skips the hook behind it

    def _stop_watching(self) -> None:
        while self._watches:
            self._watches.pop().__exit__(None, None, None)

    # --- what the hooks call --------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._collector.discard()
        self._forward = read_forward(module, args, kwargs, self._collector.sequences)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._forward is not None:
            self._forward.commit()
            self._collector.commit()
        self._forward = None

    @torch.no_grad()
    def observe(self, index: int, name: str, layer: Layer) -> None:
        """Let the probes look at one layer of the forward pass under way."""
        if not bool((layer.lse < torch.inf).all()):  # NaN too; a row that sees nothing has the lowest float
            raise SinkscopeError(
                f"the attention scores of layer {index} ({name}) hold NaN or infinity{self._culprit()}"
            )
        if self._forward is None:
            return
        for first, part in self._forward.split(layer):
            if index == 0 and part.start == 0 and part.rows > 1:
                self.causal = not bool((part.probabilities(slice(0, 1), slice(1, 2)) > 0).any())
            self._collector.add(index, first, _measure(self.probes, index, part))

    @torch.no_grad()
    def observe_hidden(self, index: int, name: str, hidden: Tensor) -> None:
        """Let the hidden-state probes look at what a layer hands on: [batch, token, dim]."""
        if self._forward is None or hidden.dim() != 3:
            return
        for first, part in self._forward.split_hidden(hidden):
            for probe in self.probes:
                if isinstance(probe, HiddenProbe):
                    measured = probe.observe_hidden(part)
                    if not bool(torch.stack([m.values.float().sum() for m in measured.values()]).isfinite().all()):
                        raise SinkscopeError(
                            f"the hidden states after layer {index} ({name}) hold NaN or infinity{self._culprit()}"
                        )
                    self._collector.add(index, first, measured)

    def _culprit(self) -> str:
        """The weights to blame for a NaN, if it is them."""
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                return f": the weights {name} are not finite; load the model again or repair its checkpoint."
        return "; all weights are finite, so look at the inputs or the dtype (float16 overflows: try bfloat16)."


def _measure(probes: Sequence[Probe], index: int, layer: Layer) -> Measurements:
    """All that the probes measure in one layer; those that read every probability share one pass."""
    measured: Measurements = {}
    wanting = [probe for probe in probes if probe.wants(index)]
    for probe in wanting:
        if isinstance(probe, LayerProbe):
            measured |= probe.observe(layer)
    totals = [(probe, probe.start(layer)) for probe in wanting if isinstance(probe, TileProbe)]
    if totals:
        for tile in layer.tiles():
            for probe, total in totals:
                probe.add(total, layer, tile)
    for probe, total in totals:
        measured |= probe.finish(total, layer)
    return measured


def _interface_hook(scope: Scope, index: int, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        layer = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(layer, Layer):
            scope.observe(index, name, layer)

    return hook


def _watch_hooks(scope: Scope, index: int, name: str, module: nn.Module) -> list[Any]:
    def before(module: nn.Module, args: Any) -> None:
        scope._stop_watching()
        scope._watches.append(AttentionWatch())
        scope._watches[-1].__enter__()

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        watch = scope._watches.pop()
        watch.__exit__(None, None, None)
        if watch.layer is not None and output is not None:
            scope.observe(index, name, watch.with_states(cached_states(index, (*args, *kwargs.values()))))

    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, with_kwargs=True, always_call=True),
    ]


def _hidden_hook(scope: Scope, index: int, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        scope.observe_hidden(index, name, output[0] if isinstance(output, tuple) else output)

    return hook


def _use_implementation(model: Any, undo: ExitStack) -> None:
    """Set the attention implementation of a model and its parts, and note how it was."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        for part in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))):
            if hasattr(part, "_attn_implementation"):
                configs.setdefault(id(part), part)
    before = [(config, config._attn_implementation) for config in configs.values()]

    def restore() -> None:
        for config, implementation in before:
            config._attn_implementation = implementation

    undo.callback(restore)
    model.set_attn_implementation(NAME)
