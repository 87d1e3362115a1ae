"""Decides how far ahead of one open file to read: not at all for random access, in a growing window
otherwise.

Knows: the offsets one handle has read. Must not know: blocks, chunks, the network, budgets other
than the number it is given. Pure: one `ReadAhead` per handle, driven by `on_read`.

The kernel issues its own read-ahead as several parallel requests that reach us slightly out of
order, so a read is in sequence when it lies near the furthest byte read so far, not only exactly
there. To start a sequence it must lie very near (`START_SLACK`); once one is running, anything
within `RUN_SLACK` belongs to it. Any other read is random access and closes the window at once.

The window is `TRUST` times what the sequence has read so far, up to the limit: a line is full after
a few reads, and who stops early has had little fetched for nothing. It is a half of it as long as
it may be the kernel alone that reads on: who looks here and there is to fetch little.

Invariants: bytes already asked for are never asked for twice in one sequence; the window never
passes the limit given with the read; a handle that never reads in sequence prefetches nothing,
except after a first read at offset 0, which is how most sequential readers begin.
"""

from __future__ import annotations

from dataclasses import dataclass

INITIAL_WINDOW = 512 * 1024
MAX_WINDOW = 32 * 1024 * 1024
TRUST = 4
# What the kernel alone may read on when somebody looks at a few bytes: three requests of 1 MiB.
KERNEL_READS = 3 * 1024 * 1024
PART = 4 * 1024 * 1024
START_SLACK = 128 * 1024
RUN_SLACK = 1024 * 1024


@dataclass(frozen=True)
class Window:
    """Bytes [start, end) of the file worth fetching before they are asked for."""

    start: int
    end: int


class ReadAhead:
    """The access pattern of one open handle. Not shared: calls come from one trio task at a time
    and contain no checkpoint."""

    def __init__(self, initial: int = INITIAL_WINDOW, maximum: int = MAX_WINDOW) -> None:
        self._initial = initial
        self._maximum = maximum
        self._size = 0  # bytes to keep ahead; 0: no sequence is running
        self._furthest: int | None = None  # end of the furthest read of this sequence
        self._asked = 0  # prefetch was asked for up to here
        self._read = 0  # bytes that this sequence has read on

    @property
    def size(self) -> int:
        """The window's present size in bytes; 0 means random access."""
        return self._size

    def on_read(self, offset: int, length: int, limit: int = MAX_WINDOW) -> Window | None:
        """Learn of a read of [offset, offset+length); the range to prefetch now, if any.

        `limit` caps the window (this handle's share of the memory budget). The answer may reach
        past the end of the file: the caller clips it.
        """
        end = offset + length
        wanted = self._initial
        if self._furthest is not None and self._in_sequence(offset, end):
            self._read += max(0, end - self._furthest)
            self._furthest = max(end, self._furthest)
            trust = TRUST if self._read > KERNEL_READS else 0.5
            wanted = max(wanted, int(trust * self._read))
        else:
            self._collapse(end, length)
            if offset != 0:
                return None
        self._size = min(wanted, self._maximum, max(limit, self._initial))
        return self._ask(limit)

    def _in_sequence(self, offset: int, end: int) -> bool:
        assert self._furthest is not None
        slack = RUN_SLACK if self._size else START_SLACK
        return end >= self._furthest - slack and offset <= self._furthest + slack

    def _collapse(self, end: int, read: int) -> None:
        self._size, self._furthest, self._asked, self._read = 0, end, end, read

    def _ask(self, limit: int) -> Window | None:
        """Ask only when `PART` of the window is free, so that fetches stay large; of a large one a
        smaller part, so that most of it is under way all the time."""
        assert self._furthest is not None
        start = max(self._asked, self._furthest)
        if self._size - (start - self._furthest) < min(self._size // 2, PART):
            return None
        self._asked = self._furthest + self._size
        return Window(start, self._asked) if start < self._asked else None
