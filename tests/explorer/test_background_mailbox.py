"""Calls from a worker's thread, made where the widgets are."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sinkscope.explorer.background import Mailbox


def from_a_thread(mailbox, *calls):
    thread = threading.Thread(target=lambda: [mailbox.deliver(call) for call in calls])
    thread.start()
    thread.join(30)


def test_with_an_event_loop_calls_are_made_in_its_thread_in_order():
    async def main():
        mailbox, made = Mailbox(), []
        calls = [lambda number=number: made.append((number, threading.get_ident())) for number in range(20)]
        await asyncio.get_running_loop().run_in_executor(None, lambda: from_a_thread(mailbox, *calls))
        while len(made) < 20:
            await asyncio.sleep(0)
        return made

    assert asyncio.run(main()) == [(number, threading.get_ident()) for number in range(20)]


def test_without_an_event_loop_calls_wait_until_somebody_pumps():
    mailbox, made = Mailbox(), []
    from_a_thread(mailbox, lambda: made.append(1), lambda: made.append(2), lambda: made.append(3))
    assert made == []
    assert mailbox.pump(lambda: len(made) == 2, 30) and made == [1, 2]
    assert mailbox.pump(lambda: len(made) == 3, 30)


def test_calls_are_made_while_a_cell_waits_and_are_not_made_again_by_the_loop():
    async def main():
        mailbox, made = Mailbox(), []
        from_a_thread(mailbox, lambda: made.append(threading.get_ident()))
        assert mailbox.pump(lambda: bool(made), 30)  # the loop waits for this function
        await asyncio.sleep(0)
        return made

    assert asyncio.run(main()) == [threading.get_ident()]


def test_pumping_gives_up_after_a_while():
    assert not Mailbox().pump(lambda: False, 0.01)


def test_a_call_that_fails_does_not_keep_the_others_from_being_made():
    async def main():
        mailbox, made, failed = Mailbox(), [], []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context["exception"]))
        from_a_thread(mailbox, lambda: 1 / 0, lambda: made.append(1))
        for _ in range(5):
            await asyncio.sleep(0)
        return made, [type(each) for each in failed]

    assert asyncio.run(main()) == ([1], [ZeroDivisionError])


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_calls_to_a_loop_that_is_closed_wait_like_those_without_one():
    kept = []

    async def main():
        kept.append(Mailbox())

    asyncio.run(main())
    made: list[int] = []
    from_a_thread(kept[0], lambda: made.append(1))
    assert kept[0].pump(lambda: bool(made), 30)
