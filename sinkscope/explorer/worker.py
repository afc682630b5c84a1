"""One thread that does the latest thing it was asked for."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

Job = Callable[[Callable[[], bool]], Iterator[Any]]
"""Given a function that says whether to stop, yields results as they come."""

PATIENCE = 0.03  # seconds in which a newer request may come before work begins: a slider on its way


_WORKERS: WeakSet[Worker] = WeakSet()


class Worker:
    """Runs jobs off the main thread; a new one takes the place of the one that runs. Idle, it has no thread.

    Args:
        deliver: takes a function to be called where results are wanted; it may hand it to another thread.
    """

    def __init__(self, deliver: Callable[[Callable[[], None]], None]) -> None:
        self._deliver = deliver
        self._lock = threading.RLock()  # an interrupt may cancel while its own thread submits
        self._number = 0  # of the latest request
        self._next: tuple[int, Job, Callable[[Any], None], Callable[[BaseException | None], None]] | None = None
        self._thread: threading.Thread | None = None
        _WORKERS.add(self)

    def submit(self, job: Job, take: Callable[[Any], None], end: Callable[[BaseException | None], None]) -> None:
        """Do this instead of whatever is under way.

        Args:
            job: what to do.
            take: gets each result.
            end: called once, with the exception that ended the job or None. Neither is called for a job that a newer
                one has overtaken.
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

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end; False when it is still at work after `timeout` seconds."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            return not thread.is_alive()
        return True

    def _run(self) -> None:
        while True:
            time.sleep(PATIENCE)
            with self._lock:
                if self._next is None:
                    self._thread = None
                    return
                (number, job, take, end), self._next = self._next, None
            self._do(number, job, take, end)

    def _do(
        self, number: int, job: Job, take: Callable[[Any], None], end: Callable[[BaseException | None], None]
    ) -> None:
        def give(receiver: Callable[[Any], None], value: Any) -> None:
            def handed() -> None:
                if number == self._number:
                    receiver(value)

            self._deliver(handed)

        problem: BaseException | None = None
        try:
            for result in job(lambda: number != self._number):
                give(take, result)
        except Exception as error:
            problem = error
        give(end, problem)


@atexit.register
def stop_all() -> None:
    """End all work: a thread that is inside a model when the interpreter goes would take it down with an abort."""
    for worker in list(_WORKERS):
        worker.cancel()
    for worker in list(_WORKERS):
        worker.join(timeout=10)
