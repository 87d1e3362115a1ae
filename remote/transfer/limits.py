"""Bounds on what is in flight: a fair semaphore, places, and buffers that are used again.

Knows: numbers and buffers. Must not know: what is being transferred.

Concurrency: trio thread only. A `PrioritySemaphore` grants in order of arrival, urgent
claims first, and so do `Places`; `BufferPool` has no checkpoint.

Buffers are reused because fresh pages are expensive to fault in on small machines (a copy into new
memory runs at a third of the speed). A fresh one is a mapping of its own, which takes memory only
as bytes come: of those who wait for a network that stands still there can be thousands.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from mmap import mmap

import trio

from remote.transfer.link import Link

GRAIN = 256 * 1024

# Large transfers at once, at most: on a long line, where they are all waiting. What is sent twice
# after a crash is reckoned with so many.
TRANSFERS = 16
# And on a line that is not known to be long: more would only take from each other.
USUAL_TRANSFERS = 8
# Bytes; what is shorter is a small transfer.
SMALL = 256 * 1024
# Small ones that go at once in the place of a large one: they wait, mostly.
SMALL_ONES = 4
# Bytes a second. A server gives up a body that comes slower than 1 KiB/s, or for an hour
# (`body_floor` and `body_total_seconds` in its settings).
SLOWEST_PUT = 16 * 1024


def weight(size: int, small_ones: int) -> int:
    """Units that a transfer of `size` bytes takes where a large one takes `small_ones`."""
    return 1 if size < SMALL else small_ones


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

    @property
    def is_urgent(self) -> bool:
        """True while an urgent claim waits."""
        return any(ticket.claim.urgent for ticket in self._waiting)

    def change(self, limit: int) -> None:
        """Hand out `limit` units from now on; what has more than that keeps it."""
        self.limit = limit
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


class Transfer:
    """One that has a place. Who ends it before all of it has come, without an error, says so: it is
    no evidence of what the line carries."""

    def __init__(self) -> None:
        self.was_cut = False


class Places:
    """For at most `transfers` large transfers at once, or `SMALL_ONES` times as many small ones.
    How many there really are is for `link` to say, which learns from them. `used` and `peak` count
    transfers."""

    def __init__(self, transfers: int = TRANSFERS) -> None:
        self.used = self.peak = 0
        self.link = Link()
        self._most = transfers
        self._weights = PrioritySemaphore(self._now() * SMALL_ONES)

    def change(self, transfers: int) -> None:
        """At most so many from now on. What is under way goes on."""
        self._most = transfers
        self._weights.change(self._now() * SMALL_ONES)

    def _now(self) -> int:
        return self.link.transfers(USUAL_TRANSFERS, self._most, slowest=SLOWEST_PUT)

    @property
    def is_urgent(self) -> bool:
        """True while an urgent claim waits for a place."""
        return self._weights.is_urgent

    @asynccontextmanager
    async def place(self, size: int, claim: Claim) -> AsyncIterator[Transfer]:
        """Around a transfer of `size` bytes; it waits before until there is a place."""
        units = weight(size, SMALL_ONES)
        await self._weights.acquire(units, claim)
        self.used += 1
        self.peak = max(self.peak, self.used)
        began, came = trio.current_time(), False
        self.link.began(began, size)
        transfer = Transfer()
        try:
            yield transfer
            came = not transfer.was_cut
        finally:
            now = trio.current_time()
            self.link.ended(now, size, now - began, came=came)
            self.used -= 1
            self._weights.release(units)
            self._weights.change(self._now() * SMALL_ONES)


def at_once(transfers: int, rate: int | None) -> int:
    """The number of uploads to begin, of the `transfers` that may be, at `rate` bytes a second: no
    more than get `SLOWEST_PUT` each. Pure."""
    return transfers if rate is None else max(1, min(transfers, rate // SLOWEST_PUT))


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
