"""When bytes arrive at the other end of a line. Pure: time is given, in seconds of any clock.

Knows: a rate, a delay, a window. Must not know: sockets, clocks.
Invariants: bytes keep their order; over any time a lane carries at most its rate; how late somebody
looks at the clock does not make a lane slower, as long as it is given more within `QUEUE_SECONDS`.

What is not modelled: loss, and the slow start of a new connection. A connect costs one round trip.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec

QUEUE_SECONDS = 0.02
"""What may wait at the beginning of a lane, as in a router, before a sender is held back."""

PIECE_SECONDS = 0.002
PIECE_BYTES = (4 << 10, 256 << 10)
"""What is given to a lane at once: few, for its own cost, but no more than takes so long."""

DEFAULT_WINDOW = 6 << 20
"""Bytes of a connection under way in one direction: Linux's limit for a receiver (tcp_rmem)."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A line. `up` is from client to server. Delays in seconds one way; rates in bytes a second,
    None for no limit; `window` in bytes a connection and direction."""

    up_delay: float = 0.0
    down_delay: float = 0.0
    up_rate: float | None = None
    down_rate: float | None = None
    window: int = DEFAULT_WINDOW

    @property
    def round_trip(self) -> float:
        return self.up_delay + self.down_delay


def symmetric(round_trip: float, rate: float | None) -> Shape:
    """A line with the same rate, bytes a second, and half of the `round_trip` each way."""
    half = round_trip / 2
    return Shape(up_delay=half, down_delay=half, up_rate=rate, down_rate=rate)


class Lane:
    """One direction of a line, shared by all connections: a virtual clock of when it is free. It is
    a token bucket of depth 0 with a queue before it: nothing leaves sooner than its rate says."""

    def __init__(self, rate: float | None, delay: float) -> None:
        self._free_at = -math.inf
        self.reshape(rate, delay)

    def reshape(self, rate: float | None, delay: float) -> None:
        """Change rate and delay of bytes that come from now on; those under way keep their
        times."""
        if rate is not None and rate <= 0:
            raise ValueError("a rate is positive, or None")
        if delay < 0:
            raise ValueError("a delay is not negative")
        self._rate, self.delay = rate, delay
        least, most = PIECE_BYTES
        self.piece = most if rate is None else min(most, max(least, int(rate * PIECE_SECONDS)))

    def send(self, now: float, size: int) -> float:
        """Take `size` bytes at `now`; when the last of them arrives."""
        begins = max(now, self._free_at)
        self._free_at = begins + (size / self._rate if self._rate else 0.0)
        return self._free_at + self.delay

    def ready_at(self) -> float:
        """From when on more may be given: the queue is short enough then."""
        return self._free_at - QUEUE_SECONDS


class Window:
    """The bytes of one connection and direction that are sent and not acknowledged."""

    def __init__(self, limit: int) -> None:
        self._limit, self._open = limit, 0
        self._acknowledged: deque[tuple[float, int]] = deque()

    def sent(self, size: int) -> None:
        self._open += size

    def delivered(self, now: float, size: int, delay: float) -> None:
        """The receiver took `size` bytes; its word of that is `delay` under way."""
        self._acknowledged.append((now + delay, size))

    def opens_at(self, now: float) -> float | None:
        """When more may be sent: `now` or later. None: not before more is delivered."""
        while self._acknowledged and self._acknowledged[0][0] <= now:
            self._open -= self._acknowledged.popleft()[1]
        if self._open < self._limit:
            return now
        return self._acknowledged[0][0] if self._acknowledged else None


class Flights:
    """Counts round trips, at most as many as were needed: a client's sendings, gathered so that
    none of one flight can be the answer to what came back on another of the same flight. Idle time
    counts nothing; what is sent side by side counts once."""

    def __init__(self) -> None:
        self.count = 0
        self._until = -math.inf

    def sent(self, now: float, round_trip: float) -> None:
        if now >= self._until:
            self.count += 1
            self._until = now + round_trip
