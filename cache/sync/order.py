"""A waiting order: each touches some records, and of those who share one, the first to come goes
first. Pure.

Knows: of each record, who changes it and who needs it to be there, in order. Must not know: what
stands in line (`schedule`), what a record is.

Who changes a record waits for all that touch it and came before; who only needs it, for those of
them that change it. Those who need the same record do not wait for each other. Adding and removing
cost in proportion to the records and to those who have to wait, or no longer have to, because of
it; not to how many there are.

Concurrency: synchronous; of whoever made it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Hashable

# After every place.
NEVER = 1 << 63


class _Line:
    """The places of those who touch one record, in order."""

    __slots__ = ("readers", "writers")

    def __init__(self) -> None:
        self.writers: list[int] = []
        self.readers: list[int] = []

    @property
    def writer(self) -> int:
        """The first who changes it."""
        return self.writers[0] if self.writers else NEVER

    @property
    def reader(self) -> int:
        """The first who only needs it."""
        return self.readers[0] if self.readers else NEVER

    def readers_between(self, after: int, before: int) -> list[int]:
        return self.readers[bisect_right(self.readers, after) : bisect_left(self.readers, before)]


class Order:
    """A waiting order. Each in it is named by a place: a number, of which the smaller one came
    first. A place may be added and removed in parts, if no record of it is in two of them."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}
        self._behind: dict[int, int] = {}  # of who waits: because of how many records

    def is_free(self, place: int) -> bool:
        """True if it waits for nobody."""
        return place not in self._behind

    def add(self, place: int, wrote: Collection[Hashable], read: Collection[Hashable]) -> list[int]:
        """Returns those who wait from now on, and did not. `wrote` and `read` have nothing in
        common, nor does either have anything twice."""
        waiting: list[int] = []
        for key in wrote:
            self._add_writer(place, self._lines.setdefault(key, _Line()), waiting)
        for key in read:
            self._add_reader(place, self._lines.setdefault(key, _Line()), waiting)
        return waiting

    def remove(
        self, place: int, wrote: Collection[Hashable], read: Collection[Hashable]
    ) -> list[int]:
        """Returns those who waited until now, and do not any more."""
        freed: list[int] = []
        for key in wrote:
            self._remove_writer(place, self._lines[key], freed)
            self._tidy(key)
        for key in read:
            self._remove_reader(place, self._lines[key], freed)
            self._tidy(key)
        return [item for item in freed if item != place]

    def _add_writer(self, place: int, line: _Line, waiting: list[int]) -> None:
        writer, reader = line.writer, line.reader
        if place < writer:
            for item in line.readers_between(place, writer):
                self._wait(item, waiting)
            if writer < reader and writer != NEVER:
                self._wait(writer, waiting)
        if min(writer, reader) < place:
            self._wait(place, [])
        insort(line.writers, place)

    def _add_reader(self, place: int, line: _Line, waiting: list[int]) -> None:
        writer = line.writer
        if writer < place:
            self._wait(place, [])
        elif writer < line.reader and writer != NEVER:
            self._wait(writer, waiting)
        insort(line.readers, place)

    def _remove_writer(self, place: int, line: _Line, freed: list[int]) -> None:
        if min(line.writer, line.reader) < place:
            self._go(place, freed)
        was_first = line.writer == place
        del line.writers[bisect_left(line.writers, place)]
        if was_first:
            for item in line.readers_between(place, line.writer):
                self._go(item, freed)
            if line.writer < line.reader:
                self._go(line.writer, freed)

    def _remove_reader(self, place: int, line: _Line, freed: list[int]) -> None:
        if line.writer < place:
            self._go(place, freed)
            del line.readers[bisect_left(line.readers, place)]
            return
        del line.readers[bisect_left(line.readers, place)]
        if line.writer < line.reader:
            self._go(line.writer, freed)

    def _wait(self, place: int, waiting: list[int]) -> None:
        """One record more holds it back."""
        before = self._behind.get(place, 0)
        self._behind[place] = before + 1
        if not before:
            waiting.append(place)

    def _go(self, place: int, freed: list[int]) -> None:
        """One record less holds it back."""
        if self._behind[place] == 1:
            del self._behind[place]
            freed.append(place)
        else:
            self._behind[place] -= 1

    def _tidy(self, key: Hashable) -> None:
        line = self._lines[key]
        if not line.writers and not line.readers:
            del self._lines[key]
