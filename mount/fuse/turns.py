"""Turns of those who ask for much: they give way to who asks for little.

Knows: whether the kernel has a request that nobody has taken yet. Must not know: any request.

The kernel queues requests in the order in which they are made, and an answer of 1 MiB takes the
trio thread as long as many small ones. Two hundred readers have hundreds of such requests there,
and whoever wants to know a file's size would come after all of them. So requests are taken from the
kernel as long as there are some, which costs little, and the large ones wait here: one of them is
answered at a time, and all that have come meanwhile are looked at before the next one.

Concurrency: trio thread only. `_large` is a FIFO lock, held only while the kernel's queue is taken:
nothing is waited for under it.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

# Checkpoints for one large answer, while requests keep coming: one is taken in about two. So large
# answers go on, whatever is asked.
MOST = 64


def readable(descriptor: int) -> Callable[[], bool]:
    """A function that tells if the descriptor has something to be read; a call takes some µs."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))


def _nothing() -> bool:
    return False


class Turns:
    """`is_waiting` tells if the kernel has a request that was not taken yet."""

    def __init__(self, is_waiting: Callable[[], bool] = _nothing) -> None:
        self._is_waiting = is_waiting
        self._large = trio.Lock()

    async def come(self) -> None:
        """Return when a large answer may be given: at once, without a checkpoint, unless others
        wait. What is here is to be answered before the next checkpoint."""
        if not self._large.locked() and not self._is_waiting():
            return
        async with self._large:
            for _ in range(MOST):
                if not self._is_waiting():
                    return
                await trio.lowlevel.checkpoint()
