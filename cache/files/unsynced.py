"""Which dirty bytes power loss may take, and what a layer is without them. Pure.

A local disk keeps two logs in no common order: the state database's, which says which ranges of a
spool file are valid, and the spool file itself. An fsync of the first makes everything durable that
any file's extents say, also of files whose bytes are still in the page cache only. So every new
part of an extent is *unsynced*, with a digest of its bytes, until its spool file has been synced
(an fsync of the file, or the background's within seconds). Bytes written over synced ones are not
in here: after power loss each of their pages is the old or the new one, as on any file system.

After power loss `survivors` keeps what the digests prove. What is lost beyond the size that was
synced ends the file there: it never shows zeros that nobody wrote. (ext4 reaches the same with
delayed allocation and data=ordered; the digests also keep what the disk got in time.)

Invariant: parts are disjoint, and inside the layer's extents.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blake3 import blake3

from cache.metadata.intervals import IntervalSet, Range

# The digest of a part that was partly written over: it proves nothing.
UNKNOWN = b""


def digest(data: bytes | memoryview) -> bytes:
    return blake3(data).digest(length=16)


class Part(NamedTuple):
    start: int
    stop: int
    digest: bytes
    written: int  # how many writes the layer had had; those before a sync began are synced by it


class Change(NamedTuple):
    """Parts that went and parts that came, for the table that mirrors them."""

    gone: list[Part]
    come: list[Part]


class UnsyncedRanges:
    """The unsynced parts of one layer."""

    def __init__(self, parts: Iterable[tuple[int, int, bytes]] = ()) -> None:
        self.writes = 1
        self._parts: dict[int, Part] = {}
        self._starts: list[int] = []  # sorted
        for start, stop, told in parts:
            self._add(Part(start, stop, told, 0))

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts.values())

    def __len__(self) -> int:
        return len(self._parts)

    def wrote(self, start: int, data: bytes | memoryview, new: list[Range], whole: bytes) -> Change:
        """`data` was written at `start`; of that, the ranges `new` were in no extent before.
        `whole` is the digest of all of it."""
        stop = start + len(data)
        gone, come = self._cut_out(start, stop)
        ranges = [*new, *((max(item.start, start), min(item.stop, stop)) for item in gone)]
        for low, high in ranges:
            told = whole if high - low == len(data) else digest(data[low - start : high - start])
            come.append(self._add(Part(low, high, told, self.writes)))
        self.writes += 1
        return Change(gone, come)

    def cut(self, size: int) -> Change:
        """Nothing is left at or above `size`."""
        return Change(*self._cut_out(size, 1 << 63))

    def synced(self, writes: int) -> Change:
        """A sync that began after so many writes has ended."""
        gone = [item for item in self if item.written < writes]
        for part in gone:
            del self._parts[part.start]
        self._starts = sorted(self._parts)
        return Change(gone, [])

    def _add(self, part: Part) -> Part:
        self._parts[part.start] = part
        insort(self._starts, part.start)
        return part

    def _cut_out(self, start: int, stop: int) -> tuple[list[Part], list[Part]]:
        """Take [start, stop) out of every part: the parts that went, and what is left of them."""
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_left(self._starts, stop)
        parts = [self._parts[item] for item in self._starts[first:last]]
        gone, rest = [item for item in parts if start < item.stop], []
        for part in gone:
            del self._parts[part.start]
            del self._starts[bisect_left(self._starts, part.start)]
            for low, high in ((part.start, start), (stop, part.stop)):
                if low < high:
                    rest.append(self._add(Part(low, high, UNKNOWN, part.written)))
        return gone, rest


def survivors(
    extents: IntervalSet, size: int, safe: int, lost: list[Range]
) -> tuple[IntervalSet, int]:
    """Extents and size of a layer without the unsynced ranges `lost`; it was `size` bytes, and is
    `safe` bytes if nothing that is unsynced survived."""
    size = min([size, *(max(safe, start) for start, stop in lost if stop > safe)])
    kept, gone = IntervalSet(), IntervalSet(lost)
    for start, stop in extents:
        for low, high in gone.gaps(start, stop):
            kept.add(low, high)
    kept.cut(size)
    return kept, size
