"""Compiled code runs as it was written while something is hung on a model.

A trace that `torch.compile` made holds what was on the model when it was made: it knows no hook, attention function or
cache that came later, and torch does not look whether there are any. Whatever was compiled is found by torch alone (the
model, a part, a wrapper around it, a function that calls it), so torch is told to run it eagerly, for as long as one of
our contexts is open in any thread. The traces stay, and are used again afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from functools import partial
from typing import Any

import torch

from sinkscope.errors import SinkscopeError
from sinkscope.undo import Undo, entering, holding

_LOCK = threading.RLock()  # a cache that is collected may leave while another one enters
_OPEN: set[object] = set()
_BEFORE: list[Callable[[], Any]] = []  # the way back to how torch ran compiled code; one while any context is open


def run_eagerly(undo: Undo) -> None:
    """Have compiled code run eagerly until `undo` is closed.

    Raises:
        SinkscopeError: inside a compiled function.
    """
    ticket = object()
    undo.callback(holding, _LOCK, _compile_again, ticket)
    holding(_LOCK, _run_eagerly, ticket)


def _run_eagerly(ticket: object) -> None:
    if torch.compiler.is_compiling():
        raise _inside()
    from torch._dynamo import eval_frame  # torch loads it late, for it is large

    _OPEN.add(ticket)
    if not _BEFORE:
        _BEFORE.append(partial(eval_frame._set_stance, eval_frame._stance))  # before: an interrupt may lose torch's own
        try:
            torch.compiler.set_stance("force_eager")
        except RuntimeError as error:
            _BEFORE.clear()
            raise _inside() from error


def _inside() -> SinkscopeError:
    return SinkscopeError(
        "a compiled function attaches a scope or makes a cache, whose hooks its trace would not hold; do this outside, "
        "and compile the model or the step alone."
    )


def _compile_again(ticket: object) -> None:
    _OPEN.discard(ticket)
    if _BEFORE and not _OPEN:
        _BEFORE[0]()
        _BEFORE.clear()


class uncompiled(ContextDecorator, Undo):
    """Have compiled code run eagerly inside, or in a function that this decorates, as `run_eagerly` does."""

    def __enter__(self) -> uncompiled:
        entering(self)
        run_eagerly(self)
        return self

    def _recreate_cm(self) -> uncompiled:
        return uncompiled()  # for each call, which may be in several threads
