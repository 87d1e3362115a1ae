"""Time in tests that would be long, or by chance.

Knows: trio's mock clock, and how product code uses worker threads. Must not know: what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import trio
from trio.testing import MockClock

# Of a machine that has nothing to do: a task that is about to run is no reason to jump.
IDLE_SECONDS = 0.001


@contextmanager
def patient_clock() -> Iterator[MockClock]:
    """A clock that jumps to whatever is next when every task waits, and no worker thread works.

    Trio's own jumps also while a thread works: an hour passes between two writes to the disk then,
    or does not, by how busy the machine is."""
    plain, working = trio.to_thread.run_sync, 0

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal working
        working += 1
        try:
            return await plain(*args, **options)
        finally:
            working -= 1

    clock = MockClock(autojump_threshold=IDLE_SECONDS)
    jump = clock._autojump

    def jump_if_idle() -> None:
        if not working:
            jump()

    with (
        mock.patch.object(clock, "_autojump", jump_if_idle),
        mock.patch.object(trio.to_thread, "run_sync", counted),
    ):
        yield clock
