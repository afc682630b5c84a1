"""Which threads are running a model now.

Only their stacks tell for certain: a thread may have begun before anything was hung on the model, and one that was
interrupted says nothing on its way out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from weakref import WeakSet

from torch import nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.generation import GENERATING
from sinkscope.undo import holding

RUNNING = (nn.Module._call_impl.__code__, GENERATING)


def other_threads_inside(modules: Iterable[nn.Module]) -> set[int]:
    """The threads, but this one, that are inside a call of one of some modules, or of its `generate()`."""
    known, inside = {id(module) for module in modules}, set()
    frames = sys._current_frames()
    del frames[threading.get_ident()]  # which would hold on to itself, and to all that called it
    for thread, frame in frames.items():
        while frame is not None:
            if frame.f_code in RUNNING and id(frame.f_locals.get("self")) in known:
                inside.add(thread)
                break
            frame = frame.f_back  # type: ignore[assignment]
    return inside


class Turn:
    """Whose turn it is to run some modules: that of one thread at a time.

    Args:
        modules: what is run.
        name: what they carry, for the refusal.
    """

    def __init__(self, modules: Iterable[nn.Module], name: str) -> None:
        self.modules, self.name, self.lock = WeakSet(modules), name, threading.RLock()
        self.only: int | None = None  # the one thread that may run them; any, one after the other, when None
        self._last: int | None = None

    def take(self) -> None:
        """Have this thread run the modules.

        Raises:
            SinkscopeError: another thread does so now, or is the only one that may.
        """
        holding(self.lock, self._take, threading.get_ident())

    def _take(self, here: int) -> None:
        self.is_held()
        if self.only not in (None, here):
            raise self._refusal()
        self._last = here

    def is_held(self) -> bool:
        """Whether this thread took the last turn.

        Raises:
            SinkscopeError: another thread did, and is running the modules.
        """
        if self.is_taken():
            raise self._refusal()
        return self._last == threading.get_ident()

    def is_taken(self) -> bool:
        """Whether another thread took the last turn, and is running the modules."""
        last = self._last
        return last not in (None, threading.get_ident()) and last in other_threads_inside(self.modules)

    def check_alone(self) -> None:
        """Raise SinkscopeError when any other thread is running the modules."""
        if other_threads_inside(self.modules):
            raise self._refusal()

    def _refusal(self) -> SinkscopeError:
        return SinkscopeError(
            f"a model that carries {self.name} was called from two threads at once; use one thread, or give each a "
            "model of its own."
        )
