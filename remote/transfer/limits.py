"""Bounds on what is in flight: a fair semaphore, and buffers that are used again.

Knows: numbers and buffers. Must not know: what is being transferred.

Concurrency: trio thread only. A `PrioritySemaphore` grants in order of arrival, urgent
claims first; `BufferPool` has no checkpoint.

Buffers are reused because fresh pages are expensive to fault in on small machines (a copy into new
memory runs at a third of the speed). A fresh one is a mapping of its own, which takes memory only
as bytes come: of those who wait for a network that stands still there can be thousands.
"""

from __future__ import annotations

from mmap import mmap

import trio

GRAIN = 256 * 1024


class Claim:
    """The asker, and whether somebody is waiting for it right now. `urgent` may be raised while the
    claim waits: read-ahead becomes urgent when a reader catches up with it."""

    def __init__(self, *, urgent: bool = True) -> None:
        self.urgent = urgent


class _Ticket:
    def __init__(self, amount: int, claim: Claim) -> None:
        self.amount = amount
        self.claim = claim
        self.granted = trio.Event()


class PrioritySemaphore:
    """At most `limit` units handed out at once. An amount over the limit is granted alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.peak = 0
        self._waiting: list[_Ticket] = []

    async def acquire(self, amount: int, claim: Claim) -> None:
        """Wait for `amount` units. The caller gives them back with `release`."""
        ticket = _Ticket(amount, claim)
        self._waiting.append(ticket)
        self._grant()
        try:
            await ticket.granted.wait()
        except BaseException:
            if ticket.granted.is_set():
                self.release(amount)
            else:
                self._waiting.remove(ticket)
                self._grant()
            raise

    def release(self, amount: int) -> None:
        self.used -= amount
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            ticket = next((t for t in self._waiting if t.claim.urgent), self._waiting[0])
            if self.used and self.used + ticket.amount > self.limit:
                return  # strictly in order: a large claim is not overtaken for ever
            self._waiting.remove(ticket)
            self.used += ticket.amount
            self.peak = max(self.peak, self.used)
            ticket.granted.set()


class BufferPool:
    """Buffers of multiples of `GRAIN`, kept for reuse up to `keep` bytes in all."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._idle: dict[int, list[mmap]] = {}
        self._idle_bytes = 0

    def take(self, size: int) -> mmap:
        """A buffer of at least `size` bytes, with arbitrary content."""
        capacity = max(1, -(-size // GRAIN)) * GRAIN
        idle = self._idle.get(capacity)
        if not idle:
            return mmap(-1, capacity)
        self._idle_bytes -= capacity
        return idle.pop()

    def give(self, buffer: mmap) -> None:
        """Take back a buffer that nobody reads or writes any more."""
        if self._idle_bytes + len(buffer) <= self._keep:
            self._idle.setdefault(len(buffer), []).append(buffer)
            self._idle_bytes += len(buffer)
