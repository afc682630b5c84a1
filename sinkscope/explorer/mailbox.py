"""Calls from a worker thread, made in the thread that has the widgets."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable


class Mailbox:
    """Hands calls to the event loop it was made in; without one they wait until somebody pumps."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def deliver(self, call: Callable[[], None]) -> None:
        """Have a function called in the mailbox's thread, soon."""
        self._calls.put(call)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain)

    def pump(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """Make the calls as they come, while the event loop waits for this function; False after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not until():
            if end is not None and time.monotonic() > end:
                return False
            try:
                self._calls.get(timeout=0.05)()
            except queue.Empty:
                continue
        return True

    def _drain(self) -> None:
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            call()
