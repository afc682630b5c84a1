"""Compiled code runs as it was written while something is hung on a model.

A trace that `torch.compile` made holds what was on the model when it was made: it knows no hook, attention function or
cache that came later, and torch does not look whether there are any. Whatever was compiled is found by torch alone (the
model, a part, a wrapper around it, a function that calls it), so torch is told to run it eagerly, for as long as one of
our contexts is open in any thread. The traces stay, and are used again afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sinkscope.errors import SinkscopeError

_LOCK = threading.RLock()  # a cache that is collected may leave while another one enters
_OPEN: list[object] = []
_STANCE: list[Any] = []  # torch's own way back; one while any context is open


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have compiled code run eagerly inside.

    Raises:
        SinkscopeError: inside a compiled function.
    """
    ticket = object()
    with _LOCK:
        if not _STANCE:
            try:
                _STANCE.append(torch.compiler.set_stance("force_eager"))
            except RuntimeError as error:
                raise SinkscopeError(
                    "a compiled function attaches a scope or makes a cache, whose hooks its trace would not hold; do "
                    "this outside, and compile the model or the step alone."
                ) from error
        _OPEN.append(ticket)
    try:
        yield
    finally:
        with _LOCK:
            _OPEN.remove(ticket)
            if not _OPEN and _STANCE:
                _STANCE.pop().__exit__(None, None, None)
