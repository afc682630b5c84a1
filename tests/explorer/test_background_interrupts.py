"""Interrupts of an idle kernel that works off its main thread: real signals, caught by nothing else meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref

import pytest

from sinkscope.explorer import background
from sinkscope.explorer.background import Interrupts


class App:
    def __init__(self):
        self.count = 0
        self.interrupts = Interrupts(self.stop)

    def stop(self):
        self.count += 1


@pytest.fixture(autouse=True)
def idle_kernel(monkeypatch):
    """Interrupts are ignored, as between the cells of a notebook."""
    monkeypatch.setattr(background, "LATER", 0.001)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


async def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.01)


async def settled():
    for _ in range(5):
        await asyncio.sleep(0.005)


def is_ignored() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_while_watching_an_interrupt_calls_the_method_and_at_rest_it_is_ignored_again():
    async def main():
        app = App()
        await interrupt()
        assert app.count == 0
        app.interrupts.start()
        app.interrupts.start()
        await settled()
        await interrupt()
        assert app.count == 1
        app.interrupts.stop()
        assert is_ignored()
        await interrupt()
        assert app.count == 1

    asyncio.run(main())


def test_an_app_at_rest_before_the_kernel_is_idle_installs_nothing():
    async def main():
        app = App()
        app.interrupts.start()
        app.interrupts.stop()
        await settled()
        assert is_ignored()

    asyncio.run(main())


def test_while_a_cell_runs_its_own_handler_stays():
    async def main():
        app = App()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as a kernel does for a cell
        app.interrupts.start()
        await settled()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the cell is over
        await settled()
        await interrupt()
        assert app.count == 1
        app.interrupts.stop()

    asyncio.run(main())


def test_a_handler_that_a_cell_put_back_after_the_app_came_to_rest_is_in_nobodys_way():
    async def main():
        old, new = App(), App()
        old.interrupts.start()
        await settled()
        saved = signal.signal(signal.SIGINT, signal.default_int_handler)  # a cell begins
        old.interrupts.stop()  # what ran ends while the cell does
        signal.signal(signal.SIGINT, saved)  # the cell ends
        await interrupt()
        assert old.count == 0
        new.interrupts.start()
        await settled()
        await interrupt()
        assert (old.count, new.count) == (0, 1)
        new.interrupts.stop()
        assert is_ignored()

    asyncio.run(main())


def test_one_interrupt_stops_all_apps_that_are_at_work_and_the_last_to_end_puts_the_handler_back():
    async def main():
        one, two = App(), App()
        one.interrupts.start()
        two.interrupts.start()
        await settled()
        await interrupt()
        assert (one.count, two.count) == (1, 1)
        one.interrupts.stop()
        await settled()
        await interrupt()
        assert (one.count, two.count) == (1, 2)
        two.interrupts.stop()
        assert is_ignored()

    asyncio.run(main())


def test_outside_a_kernel_nothing_is_watched():
    app = App()
    app.interrupts.start()
    assert is_ignored()
    app.interrupts.stop()


@pytest.mark.slow
def test_an_app_that_is_gone_is_not_kept_by_its_handler():
    async def main():
        app = App()
        app.interrupts.start()
        await settled()
        gone = weakref.ref(app)
        del app
        gc.collect()
        assert gone() is None
        await interrupt()

    asyncio.run(main())
