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
from typing import Any

import xarray as xr
from torch import nn

from sinkscope.errors import SinkscopeError, shown
from sinkscope.hf.attention import leave_maps_out, use_implementation
from sinkscope.models.compiled import run_eagerly
from sinkscope.models.facts import find_streams
from sinkscope.models.requirements import SCOPED, check_weights
from sinkscope.models.threads import Turn, other_threads_inside
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy
from sinkscope.probes import FREE, LayerProbe, Probe, TileProbe
from sinkscope.scope.describe import described
from sinkscope.scope.fitting import fitting
from sinkscope.scope.interface import NAME
from sinkscope.scope.observer import Observer
from sinkscope.scope.streams import models_around
from sinkscope.undo import Hook, Undo, entering, holding, leaving

_ENTERING = threading.RLock()  # whether a model carries a scope is asked, and then it does


def capture(model: nn.Module, probes: Iterable[Probe] | None = None) -> Scope:
    """Measure where a model's attention goes while it runs as usual.

    A model of several parts is captured around any call of the whole, `generate()` too. The record of the part that
    predicts tokens is `scope.record`. `scope.streams` has a scope for each part by name, so that
    `scope.streams["vision"].record` is that of the other: "text" and "vision" (or "audio") of a model that reads
    images, with tokens of images marked by the coordinate `is_image` of the former, and images as the sequences of the
    latter; "decoder", "cross" and "encoder" of an encoder-decoder, where "cross" has queries of the decoder and keys
    of the encoder. Each counts its own forward passes. Probes that a part lacks the layers for, and in "cross" those
    that read one text, are left out there.

    >>> with torch.no_grad(), sinkscope.capture(model, [sinkscope.SinkMass(1)]) as scope:
    ...     out = model(ids)
    >>> scope.record.sink_mass.dims
    ('sequence', 'layer', 'head', 'query', 'sink')

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

    >>> with torch.no_grad(), sinkscope.attached(model, policy=sinkscope.SinkWindow(2, 8)):
    ...     logits = model(ids).logits

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


class Scope(Observer):
    """A model with probes on, for as long as the context lasts."""

    def __init__(
        self,
        model: nn.Module,
        probes: Iterable[Probe],
        normaliser: Normaliser | None = None,
        policy: Policy | None = None,
        stream: str | None = None,
        alone: bool = False,
    ) -> None:
        """As `attached`: of one `stream`, or all; `alone` for the thread that enters it, or for any, one by one."""
        found = find_streams(model)
        name = next(iter(found)) if stream is None else stream
        super().__init__(model, name, found[name], probes, normaliser, policy)
        self._alone, self._undo = alone, Undo()
        self._others: dict[str, Scope] = {}
        for other in list(found)[1:] if stream is None and self.probes else ():
            self._others[other] = Scope(model, fitting(self.probes, found[other]), stream=other)
            self._others[other]._is_beside = True
        bases = [scope.anatomy.base for scope in self.streams.values()]
        around = [module for base in bases for module in (base, *models_around(base, model))]
        self._turn = Turn(around, "a scope")
        for scope in self._others.values():
            scope._turn = self._turn

    @property
    def streams(self) -> dict[str, Scope]:
        """The scopes of all streams of attention by name, this one first."""
        return {self.stream: self, **self._others}

    @property
    def is_entered(self) -> bool:
        """Whether it is on its model."""
        return self._undo.is_entered

    def __enter__(self) -> Scope:
        check_weights(self.model)
        if self.is_entered:
            raise self._carried()
        entering(self)
        try:
            holding(_ENTERING, self._enter)
            return self
        except BaseException:
            self._undo.close()
            raise

    @leaving
    def __exit__(self, problem: Any = None, *_: Any) -> None:
        running = self.is_entered and self._turn.is_taken()
        for scope in self.streams.values():
            scope._end_forward()
        self._undo.close()
        if running and problem is None:
            raise SinkscopeError(
                "the scope was left while another thread ran its model, and what that read last is not in the record; "
                "wait for the thread first."
            )

    def move_here(self) -> None:
        """Be there for this thread alone from now on."""
        self._turn.only = threading.get_ident()

    @property
    def record(self) -> xr.Dataset:
        """Everything measured so far; the variables are described with the probes that make them.

        Raises:
            SinkscopeError: nothing was measured yet.
        """
        self._check_saw_attention()
        record = holding(self._turn.lock, self._collector.record)
        return described(record, self, self._collector.attending, self._other_keys, self._grids)

    def array(self, variable: str) -> xr.DataArray:
        """One variable over only the layers and heads it was measured in, without the rest of the record."""
        self._check_saw_attention()
        if not isinstance(variable, str) or variable not in self._collector.makes:
            made = ", ".join(self._collector.makes) or "nothing"
            raise SinkscopeError(f"no probe of this scope makes {shown(variable)}: give one of what they make, {made}.")
        return self._collector.variable(variable)

    def _check_saw_attention(self) -> None:
        if self._problem is not None:
            raise self._problem
        looking = any(isinstance(probe, (LayerProbe, TileProbe)) for probe in self.probes)
        if looking and self._collector.texts and not self._collector.attending:
            raise SinkscopeError(
                f"the attention modules of {type(self.model).__name__} ran, but no softmax or scaled dot product "
                "attention was seen in them; measure its maps elsewhere and use sinkscope.from_maps.",
                page="Compatibility",
            )

    # --- attaching ------------------------------------------------------------------------------------------------

    def _carried(self) -> SinkscopeError:
        return SinkscopeError(
            f"this model carries a scope already (at {self.anatomy.parts[0].name}); leave that one first, or give it "
            "all the probes."
        )

    def _enter(self) -> None:
        undo, scopes = self._undo, self.streams.values()
        modules = [part.attention for scope in scopes for part in scope.anatomy.parts]
        if any(module in SCOPED for module in modules):
            raise self._carried()
        for module in modules:
            undo.callback(SCOPED.discard, module)
            SCOPED.add(module)
        bases = [scope.anatomy.base for scope in scopes if scope.anatomy.interface]
        run_eagerly(undo)
        for base in bases:
            leave_maps_out(base, undo)
        use_implementation(bases, NAME, undo)
        for scope in scopes:
            scope._find_mixing()
        if self._alone:
            self.move_here()
        for module in self._turn.modules:
            undo.hang(module, Hook(self._take_turn), before=True)
        for scope in scopes:
            scope._attach(undo)
        if other_threads_inside(self._turn.modules):  # which began before, and would run on with what is on it now
            raise SinkscopeError(
                "another thread is running this model, which cannot be given a scope meanwhile; wait for it, or give "
                "each a model of its own."
            )
