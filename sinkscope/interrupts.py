"""Long runs that are stopped well: Ctrl-C and SIGTERM let the block under way end, and what is done is kept.

Handlers stand for as long as such a run lasts, in the main thread alone, where Python runs them, and those that were
there come back whatever happens. A second signal does not wait for the block.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it is met by an exception as Ctrl-C is."""


class Stop:
    """Whether a run is to stop after its block."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the number of the signal
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:  # someone who cannot wait
            self._restore()
            signal.raise_signal(number)
        self.asked = number

    def _install(self) -> None:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # what somebody chose not to hear, or what C code handles
                self._before[number] = before
                signal.signal(number, self._ask)

    def _restore(self) -> None:
        while self._before:
            number, before = next(iter(self._before.items()))
            signal.signal(number, before)
            del self._before[number]


@contextmanager
def finishing_blocks(kept: str | None) -> Iterator[Stop]:
    """Have a run ask `stop.asked` after each block, which leaves the context once it has kept what is done.

    The signal takes its way when the context ends. KeyboardInterrupt then says what is `kept`; without that, or outside
    the main thread, signals act at once as ever.

    Args:
        kept: where what is done is kept, and how to go on, in a sentence.
    """
    stop = Stop()
    is_ours = kept is not None and threading.current_thread() is threading.main_thread()
    try:
        if is_ours:
            stop._install()
        yield stop
    finally:
        stop._restore()
        if stop.asked is not None:
            _pass_on(stop.asked, str(kept))


def _pass_on(number: int, kept: str) -> None:
    """Do what the signal does without us; where that lets the program run on, the run has stopped all the same."""
    if signal.getsignal(number) == signal.SIG_DFL:
        print(f"sinkscope: {kept}", file=sys.stderr, flush=True)  # the end of the process
    with saying(kept):
        signal.raise_signal(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def saying(kept: str | None) -> Iterator[None]:
    """Let an interrupt that says nothing say what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if kept is None or str(interrupt):
            raise
        raise type(interrupt)(kept) from None
