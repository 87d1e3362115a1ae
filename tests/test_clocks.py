"""The clock of tests that let hours pass."""

from __future__ import annotations

import threading

import trio

from tests.clocks import IDLE_SECONDS, patient_clock


def test_no_time_passes_while_a_thread_works() -> None:
    over: list[str] = []

    async def work() -> None:
        await trio.to_thread.run_sync(threading.Event().wait, 50 * IDLE_SECONDS)
        over.append("the work")

    async def wait() -> None:
        await trio.sleep(3600)
        over.append("an hour")

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(work)

    with patient_clock() as clock:
        trio.run(both, clock=clock)
    assert over == ["the work", "an hour"]
