"""Interrupting the kernel while it works off its main thread."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from weakref import WeakMethod

LATER = 0.1  # seconds


class Interrupts:
    """While watching, an interrupt (SIGINT) of an idle kernel calls a method.

    A kernel ignores interrupts between cells, when nothing of its own can be interrupted; during a cell they raise
    KeyboardInterrupt there as ever. The method is held weakly, and nothing stays installed once watching ends.
    """

    def __init__(self, interrupted: Callable[[], None]) -> None:
        self._interrupted = WeakMethod(interrupted)
        self._is_watching = False

    def watch(self) -> None:
        """From now on, once the kernel has done what it is doing; nothing outside a kernel."""
        if self._is_watching:
            return
        self._is_watching = True
        try:
            asyncio.get_running_loop().call_later(LATER, self._install)
        except RuntimeError:  # no event loop, so no kernel that waits
            self._is_watching = False

    def rest(self) -> None:
        """No longer."""
        self._is_watching = False
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _install(self) -> None:
        """Take the place of the handler that ignores interrupts; while a cell runs another one is there, so wait."""
        if not self._is_watching:
            return
        there = signal.getsignal(signal.SIGINT)
        other = getattr(there, "__self__", None)  # one at rest is left over from a cell that ran when it came to rest
        if there is signal.SIG_IGN or (isinstance(other, Interrupts) and not other._is_watching):
            signal.signal(signal.SIGINT, self._handle)
        elif there != self._handle:
            asyncio.get_running_loop().call_later(LATER, self._install)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        interrupted = self._interrupted()
        if interrupted is not None and self._is_watching:
            interrupted()
