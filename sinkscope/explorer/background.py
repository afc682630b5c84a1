"""Work off the main thread: a worker, the mailbox that brings its results back, and interrupts of an idle kernel."""

from __future__ import annotations

import asyncio
import atexit
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakMethod, WeakSet

from sinkscope.errors import SinkscopeError

Job = Callable[[Callable[[], bool]], Iterator[Any]]  # given a function that says whether to stop, yields results
Receiver = Callable[[Any], None]
Request = tuple[int, Job, Receiver, Receiver]
Deliver = Callable[[Callable[[], None]], None]

PATIENCE = 0.03  # seconds in which a newer request may come before work begins: a slider on its way
LATER = 0.1  # seconds until the handler of interrupts is looked at again

_WORKERS: WeakSet[Worker] = WeakSet()
_INTERRUPTS: WeakSet[Interrupts] = WeakSet()  # those that have been started


class Worker:
    """Runs jobs off the main thread; a new one takes the place of the one that runs. Idle, it has no thread.

    `deliver` takes a function to be called where results are wanted; it may hand it to another thread.
    """

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._lock = threading.RLock()  # an interrupt may cancel while its own thread submits
        self._number = 0  # of the latest request
        self._next: Request | None = None
        self._thread: threading.Thread | None = None
        self._ahead: Receiver = lambda result: None  # of the job that runs
        _WORKERS.add(self)

    def submit(self, job: Job, take: Receiver, end: Receiver) -> None:
        """Do a job instead of whatever is under way, of which nothing more is heard.

        `take` gets each result, and `end`, at last, the exception that ended the job or None.
        """
        with self._lock:
            self._number += 1
            self._next = (self._number, job, take, end)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sinkscope explorer", daemon=True)
                self._thread.start()

    def cancel(self) -> None:
        """Drop what is under way; none of its results will come."""
        with self._lock:
            self._number += 1
            self._next = None

    def ahead(self, result: Any) -> None:
        """Called by a job that runs: hand over a result before the next one that it yields."""
        self._ahead(result)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end; False when it is still at work after `timeout` seconds."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        while True:
            time.sleep(PATIENCE)
            with self._lock:
                if self._next is None:
                    self._thread = None
                    return
                request, self._next = self._next, None
            self._do(*request)

    def _do(self, number: int, job: Job, take: Receiver, end: Receiver) -> None:
        def give(receiver: Receiver, value: Any) -> None:
            self._deliver(lambda: receiver(value) if number == self._number else None)

        problem: BaseException | None = None
        try:
            self._ahead = lambda result: give(take, result)
            for result in job(lambda: number != self._number):
                give(take, result)
        except Exception as error:
            problem = error
        give(end, problem)


def sentence(problem: BaseException) -> str:
    """What a job ended with, in one line."""
    if isinstance(problem, SinkscopeError):
        return str(problem)
    lines = str(problem).strip().splitlines() or [""]
    (*_, last) = traceback.extract_tb(problem.__traceback__) or [None]
    where = "" if last is None else f" ({Path(last.filename).name}, line {last.lineno})"
    return f"{type(problem).__name__}{f': {lines[0]}' if lines[0] else ''}{where}"


@atexit.register
def stop_all() -> None:
    """End all work: a thread that is inside a model when the interpreter goes would take it down with an abort."""
    for worker in list(_WORKERS):
        worker.cancel()
    for worker in list(_WORKERS):
        worker.join(timeout=10)


class Mailbox:
    """Hands calls to the event loop it was made in; without one they wait until somebody pumps."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_closed = False
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def deliver(self, call: Callable[[], None]) -> None:
        if self._is_closed:
            return
        self._calls.put(call)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain)

    def close(self) -> None:
        """Drop the calls that wait, with what they hold, and all that come."""
        self._is_closed = True
        with suppress(queue.Empty):
            while True:
                self._calls.get_nowait()

    def pump(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """Make the calls as they come, while the event loop waits for this function; False after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not until():
            if end is not None and time.monotonic() > end:
                return False
            with suppress(queue.Empty):
                self._calls.get(timeout=0.05)()
        return True

    def later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Make a call on the event loop after some time, unless what this gives is cancelled before; None: no loop."""
        if self._loop is None or self._loop.is_closed():
            return None
        return self._loop.call_later(seconds, call)

    def _drain(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()


class Interrupts:
    """Between `start` and `stop`, an interrupt (SIGINT) of an idle kernel calls a method, which is held weakly.

    A kernel ignores interrupts between cells; during a cell they raise KeyboardInterrupt there as ever. All that have
    been started share one handler, so that one interrupt reaches every explorer that is at work. The last one to stop
    takes the handler away.
    """

    def __init__(self, interrupted: Callable[[], None]) -> None:
        self._interrupted = WeakMethod(interrupted)

    def start(self) -> None:
        """From now on, once the kernel has done what it is doing; nothing outside a kernel."""
        if self in _INTERRUPTS:
            return
        try:
            asyncio.get_running_loop().call_later(LATER, self._install)
        except RuntimeError:  # no event loop, so no kernel that waits
            return
        _INTERRUPTS.add(self)

    def stop(self) -> None:
        _INTERRUPTS.discard(self)
        if not _INTERRUPTS and signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _install(self) -> None:
        """Take the place of the handler that ignores interrupts; while a cell runs another one is there, so wait."""
        if self not in _INTERRUPTS:
            return
        handler = signal.getsignal(signal.SIGINT)
        if handler is signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
        elif handler is not _interrupt:
            asyncio.get_running_loop().call_later(LATER, self._install)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in list(_INTERRUPTS):
        interrupted = each._interrupted()
        if interrupted is not None:
            interrupted()
