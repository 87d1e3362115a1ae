"""The reading of the kernel's next request: by which task, and when others have a turn.

pyfuse3 has a few tasks, of which one at a time waits for the device while the others wait for a
lock. As it is, every request costs a switch to another task, because the lock is handed on, three
looks at all descriptors and two rounds of the scheduler: more than most requests cost themselves.
Here whoever has answered a request without waiting for anything reads the next one, at once if the
kernel has it already. The lock is handed on when a task stops, for whatever reason, with a request
in its hands.

Knows: which names of trio pyfuse3 uses, and what for (`pyfuse3.asyncio` is a replacement of the
same kind). Must not know: any request.

Concurrency: trio thread only. `RequestLock` is an instrument of the trio run, so that it is told of
the end of each task's step: that is the moment when it is known that a task has stopped.

Invariants: while a task waits for the lock, and none has it, some task is in the step in which it
left it. At most `IN_A_ROW` requests are answered before every other task that can run has run.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterator
from types import SimpleNamespace, TracebackType
from typing import Any

import pyfuse3
import trio
from trio.lowlevel import ParkingLot, Task, current_task

# About a millisecond.
IN_A_ROW = 16


class RequestLock(trio.abc.Instrument):
    """The lock of one mount, and its way of waiting for a descriptor."""

    def __init__(self) -> None:
        self._waiting = ParkingLot()
        self._is_held = False
        self._left: Task | None = None  # who had it last
        self._in_a_row = 0
        self._descriptor = -1
        self._poll = select.poll()

    # --- the lock ---------------------------------------------------------------------------------

    async def __aenter__(self) -> None:
        if self._is_held:
            await self._waiting.park()  # whoever wakes us has given it to us
        self._is_held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_held, self._left = False, current_task()

    def after_task_step(self, task: Task) -> None:
        """It waits for something, or has ended."""
        if task is self._left:
            self._left = None
            if not self._is_held and self._waiting:
                self._is_held = True
                self._waiting.unpark()

    # --- the descriptor ---------------------------------------------------------------------------

    async def wait_readable(self, descriptor: int) -> None:
        """Return at once when there is something to read, as long as it is nobody else's turn."""
        if descriptor != self._descriptor:
            self._poll.register(descriptor, select.POLLIN)
            self._descriptor = descriptor
        if self._in_a_row < IN_A_ROW and self._poll.poll(0):
            self._in_a_row += 1
            return
        self._in_a_row = 0
        await trio.lowlevel.wait_readable(descriptor)


@contextlib.contextmanager
def read_at_once() -> Iterator[None]:
    """While this is open, `pyfuse3.main` works so. Within a trio run."""
    lock = RequestLock()
    lowlevel = SimpleNamespace(
        current_task=current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        notify_closing=trio.lowlevel.notify_closing,
        wait_readable=lock.wait_readable,
    )
    module: Any = pyfuse3
    before = module.trio
    module.trio = SimpleNamespace(
        ClosedResourceError=trio.ClosedResourceError,
        Lock=lambda: lock,
        lowlevel=lowlevel,
        open_nursery=trio.open_nursery,
    )
    trio.lowlevel.add_instrument(lock)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(lock)
        module.trio = before
