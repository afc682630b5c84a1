"""One thread that does the latest thing it was asked for."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from sinkscope.explorer.background import Mailbox, Worker, stop_all

WAIT = 30  # seconds until a test gives up


class Steps:
    """A job that says where it is and goes on when it is told to."""

    def __init__(self, *results):
        self.results, self.begun, self.go, self.seen = results, threading.Event(), threading.Event(), []

    def __call__(self, is_overtaken):
        self.begun.set()
        assert self.go.wait(WAIT)
        for result in self.results:
            self.seen.append(is_overtaken())
            if isinstance(result, Exception):
                raise result
            yield result


@pytest.fixture
def worker():
    made = Worker(lambda call: call())
    yield made
    made.cancel()
    assert made.join(WAIT)


def submit(worker, job):
    taken, ended = [], []
    worker.submit(job, taken.append, ended.append)
    return taken, ended


def test_results_come_in_order_and_then_the_end(worker):
    job = Steps(1, 2, 3)
    job.go.set()
    order = []
    worker.submit(job, order.append, lambda problem: order.append(("end", problem)))
    assert worker.join(WAIT) and order == [1, 2, 3, ("end", None)] and job.seen == [False] * 3


def test_an_exception_ends_the_job_and_the_next_one_runs(worker):
    job, error = Steps(1, ValueError("broken"), 2), ValueError
    job.go.set()
    taken, ended = submit(worker, job)
    assert worker.join(WAIT) and taken == [1] and isinstance(ended[0], error)
    job = Steps(4)
    job.go.set()
    taken, ended = submit(worker, job)
    assert worker.join(WAIT) and (taken, ended) == ([4], [None])


def test_of_a_job_that_was_overtaken_neither_results_nor_the_end_come(worker):
    old, new = Steps(1, 2), Steps(3)
    new.go.set()
    taken, ended = submit(worker, old)
    assert old.begun.wait(WAIT)
    newer, over = submit(worker, new)
    old.go.set()
    assert worker.join(WAIT)
    assert (taken, ended) == ([], []) and old.seen == [True, True]
    assert (newer, over) == ([3], [None])


def test_an_exception_of_a_job_that_was_overtaken_is_nobodys(worker):
    old = Steps(ValueError("late"))
    taken, ended = submit(worker, old)
    assert old.begun.wait(WAIT)
    worker.cancel()
    old.go.set()
    assert worker.join(WAIT) and (taken, ended) == ([], [])


def test_only_the_last_of_many_requests_is_done(worker):
    jobs = [Steps(number) for number in range(50)]
    for job in jobs:
        job.go.set()
    given = [submit(worker, job) for job in jobs]
    assert worker.join(WAIT)
    assert given[-1] == ([49], [None])
    assert all(given[number] in (([], []), ([number], [None])) for number in range(49))
    assert not jobs[25].begun.is_set()


def test_results_that_wait_to_be_delivered_are_dropped_when_a_newer_request_comes():
    mailbox = Mailbox()
    worker = Worker(mailbox.deliver)
    old, new = Steps(1), Steps(2)
    old.go.set()
    taken, ended = submit(worker, old)
    assert worker.join(WAIT)  # its result is in the mailbox
    newer, over = submit(worker, new)
    new.go.set()
    assert mailbox.pump(lambda: bool(over), WAIT)
    assert (taken, ended, newer, over) == ([], [], [2], [None])


def test_an_idle_worker_has_no_thread(worker):
    before, job = set(threading.enumerate()), Steps(1)
    submit(worker, job)
    (thread,) = (each for each in set(threading.enumerate()) - before if each.name == "sinkscope explorer")
    job.go.set()
    assert worker.join(WAIT) and not thread.is_alive()


def test_joining_gives_up_after_a_while_and_from_inside_at_once(worker):
    job = Steps(1)
    inside = []
    worker.submit(job, lambda _: inside.append(worker.join(WAIT)), lambda _: None)
    assert job.begun.wait(WAIT) and not worker.join(0.01)
    job.go.set()
    assert worker.join(WAIT) and inside == [True]


def test_a_result_that_makes_its_receiver_fail_ends_the_job_with_that(worker):
    closed = []

    def job(is_overtaken):
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    def refuse(_):
        raise ValueError("not this")

    ended = []
    worker.submit(job, refuse, ended.append)
    assert worker.join(WAIT) and str(ended[0]) == "not this" and closed == [True]


def test_a_request_may_be_dropped_by_an_interrupt_of_the_thread_that_makes_it():
    """The handler of a signal runs between any two steps of that thread, also while it holds the lock."""
    worker, done = Worker(lambda call: call()), threading.Event()

    def request():
        with worker._lock:
            worker.cancel()
            done.set()

    threading.Thread(target=request, daemon=True).start()
    assert done.wait(5)


def test_when_the_interpreter_ends_all_work_does(worker):
    other, inside = Worker(lambda call: call()), [threading.Event(), threading.Event()]

    def until_overtaken(begun, is_overtaken):
        begun.set()
        while not is_overtaken():
            threading.Event().wait(0.001)
        yield from ()

    ended = [submit(each, partial(until_overtaken, begun)) for each, begun in zip((worker, other), inside, strict=True)]
    assert all(begun.wait(WAIT) for begun in inside)
    stop_all()
    assert worker.join(0) and other.join(0) and ended == [([], [])] * 2
