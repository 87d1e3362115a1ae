"""The rate of a line in one direction, as seen, and the bytes to have under way on it. Pure.

Knows: when transfers began and ended, and how large they were: the caller says so. Must not know:
clocks, trio, what is transferred, limits that a person sets.

A line is full when as much is under way as it carries in the time that one transfer takes. Both are
learnt from what ends, as congestion control by measuring does (BBR: Cardwell et al., ACM Queue
14(5), 2016): the best rate and the shortest time of the last `MEMORY_SECONDS`. What is under way is
then a multiple of their product, so that a rate which only the window held down shows in the next
sample, and grows; what waits in queues lengthens no shortest time, so the window does not follow.

Only large transfers are evidence. Small ones wait, mostly: that little of them came says nothing of
the line, and must not make it look slow. And what is told changes only when it has moved by a
`STEP`: who cuts files or deals out places by it is not to change his mind at each transfer.

Invariant: without evidence nothing is claimed (`rate` is None), and the usual holds. It is known
how long a large transfer takes before a rate is told.
"""

from __future__ import annotations

import math
from collections import deque

LARGE = 256 * 1024
"""Bytes: what is shorter is no evidence."""

SAMPLE_SECONDS = 0.25
"""The shortest time over which a rate is believed: transfers end in bunches."""

MEMORY_SECONDS = 30.0
STEP = 1.25
AMPLE_SHARE = 1 << 20
"""Bytes a second for each of more transfers than the usual: fewer would be no waiting, but a slow
line, on which somebody's urgent one would be held up."""

LONGEST_SECONDS = 4.0
"""No line is longer: where transfers take longer it is slow, and more under way only waits."""

LASTING = 16  # transfers, of an average
SLACK_SECONDS = 0.1
"""What a processor that has other things to do may be late, without the line running empty."""


class Link:
    """One direction. Seconds of any clock that does not go backwards."""

    def __init__(self) -> None:
        self._large = 0  # large transfers under way
        self._since, self._bytes = 0.0, 0  # of the sample that is being taken
        self._rates: deque[tuple[float, float]] = deque()
        self._times: deque[tuple[float, float]] = deque()
        self._rate: float | None = None
        self._size = 0.0  # of a large transfer, on the average

    @property
    def rate(self) -> int | None:
        """Bytes a second that the line carries at least; None: not known."""
        return None if self._rate is None else int(self._rate)

    def began(self, now: float, size: int) -> None:
        """A transfer of `size` bytes began."""
        if size >= LARGE:
            if not self._large:
                self._since, self._bytes = now, 0
            self._large += 1

    def ended(self, now: float, size: int, took: float, *, came: bool) -> None:
        """It ended, `took` seconds after it began; `came`: all of it, and the other end said so."""
        self._bytes += size if came else 0
        if size < LARGE:
            return
        if came:
            _note(self._times, now, -took)
            self._size += (size - self._size) / (LASTING if self._size else 1)
        if now - self._since >= SAMPLE_SECONDS and self._bytes and self._times:
            self._tell(now, self._bytes / (now - self._since))
            self._since, self._bytes = now, 0
        self._large -= 1

    def _tell(self, now: float, sample: float) -> None:
        _note(self._rates, now, sample)
        best = self._rates[0][1]
        if self._rate is None or not self._rate / STEP < best < self._rate * STEP:
            self._rate = best

    def window(self, least: int, usual: int, most: int, *, trips: float) -> int:
        """Bytes to have under way: what the line carries while a transfer takes `trips` times its
        shortest time, and somebody is late; from `least` to `most`. `usual`: not known yet."""
        if self._rate is None:
            return min(usual, most)
        quickest = -self._times[0][1]
        wanted = self._rate * min(trips * quickest + SLACK_SECONDS, LONGEST_SECONDS)
        return int(min(max(wanted, least), most))

    def transfers(self, usual: int, most: int, *, slowest: int) -> int:
        """The number of large transfers to have under way, up to `most`: the usual, more where
        they are all waiting, and no more than get `slowest` bytes a second each.

        Where many share a line evenly each takes long, as if the line was. So there may be more
        than needed; what they take from who comes between is bounded by `AMPLE_SHARE`."""
        if self._rate is None:
            return min(usual, most)
        filling = math.ceil(self._rate * 2 * -self._times[0][1] / self._size)
        filling = min(filling, int(self._rate) // AMPLE_SHARE)
        return max(1, min(max(usual, filling), most, int(self._rate) // slowest))


def _note(best: deque[tuple[float, float]], now: float, value: float) -> None:
    """Keep what may still be the greatest of the last `MEMORY_SECONDS`, the greatest first. The
    last one stays, however old: better than nothing."""
    while best and best[-1][1] <= value:
        best.pop()
    best.append((now, value))
    while best[0][0] < now - MEMORY_SECONDS:
        best.popleft()
