"""Sets of byte ranges. Pure.

Invariant: ranges are half open [start, stop), non-empty, sorted, disjoint and not touching.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter

Range = tuple[int, int]

_start = itemgetter(0)
_stop = itemgetter(1)


class IntervalSet:
    """A set of byte ranges with the usual operations; O(log n) to find, O(n) to insert."""

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges: list[Range] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def __repr__(self) -> str:
        return f"IntervalSet({self._ranges})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._ranges == other._ranges

    __hash__ = None  # type: ignore[assignment]  # mutable

    @property
    def total(self) -> int:
        """Bytes covered."""
        return sum(stop - start for start, stop in self._ranges)

    def covers(self, start: int, stop: int) -> bool:
        """True if all of [start, stop) is in the set."""
        at = bisect_right(self._ranges, start, key=_start) - 1
        return at >= 0 and self._ranges[at][1] >= stop

    def add(self, start: int, stop: int) -> tuple[list[Range], Range | None]:
        """Add [start, stop). Returns the ranges that went and the one that took their place
        (None when nothing changed)."""
        if start >= stop or self.covers(start, stop):
            return [], None
        low = bisect_left(self._ranges, start, key=_stop)
        high = bisect_right(self._ranges, stop, key=_start)
        gone = self._ranges[low:high]
        if gone:
            start, stop = min(start, gone[0][0]), max(stop, gone[-1][1])
        self._ranges[low:high] = [(start, stop)]
        return gone, (start, stop)

    def cut(self, size: int) -> bool:
        """Drop everything at or above `size`; True if anything went."""
        at = bisect_left(self._ranges, size, key=_stop)
        rest = self._ranges[at:]
        if not rest or rest[-1][1] <= size:
            return False
        self._ranges[at:] = [(rest[0][0], size)] if rest[0][0] < size else []
        return True

    def split(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """[start, stop) as consecutive (start, stop, is in the set)."""
        at = bisect_right(self._ranges, start, key=_stop)
        while start < stop:
            if at == len(self._ranges) or self._ranges[at][0] >= stop:
                yield start, stop, False
                return
            low, high = self._ranges[at]
            if low > start:
                yield start, low, False
            yield max(low, start), min(high, stop), True
            start, at = min(high, stop), at + 1

    def gaps(self, start: int, stop: int) -> list[Range]:
        """The parts of [start, stop) that are not in the set."""
        return [(low, high) for low, high, inside in self.split(start, stop) if not inside]
