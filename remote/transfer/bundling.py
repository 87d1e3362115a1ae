"""Choosing chunks for one bundle, and ranges of one object for one request. Pure.

Knows: the limits of a bundle, what a gap between two ranges costs. Must not know: who waits, how
anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from remote.protocol.bundle import MAX_PARTS, MAX_PARTS_LENGTH

# Bytes between two ranges that are fetched along: less than a request costs.
MAX_GAP = 32 * 1024
# Bytes fetched at once: whoever waits for the first of them waits for all.
MAX_MERGED = 1024 * 1024

# The time that a bundle may take, and what it may have however long that takes.
AT_MOST_SECONDS = 4
LEAST_LENGTH = 256 * 1024

# The directory of a file, and its place there.
Beside = tuple[int, int]


class Part(NamedTuple):
    """A chunk that waits, of `length` stored bytes. `beside` sorts files that are probably read
    after each other next to each other."""

    chunk: bytes
    length: int
    beside: Beside


def most_length(uplink: int | None) -> int:
    """The bytes of one bundle on a line that carries `uplink` bytes a second (None: not known):
    what breaks off is sent again as a whole, and is not to be the work of a minute."""
    wanted = MAX_PARTS_LENGTH if uplink is None else uplink * AT_MOST_SECONDS
    return max(LEAST_LENGTH, min(wanted, MAX_PARTS_LENGTH))


def fill(waiting: Sequence[Part], most: int = MAX_PARTS_LENGTH) -> list[int]:
    """The numbers of those that go now, in the order in which they are to lie. The first one does,
    and of the others, in turn, all that fit into `most` bytes. One that waits several times goes as
    a whole, and counts once."""
    taken: list[int] = []
    chunks: set[bytes] = set()
    length = 0
    for number, part in enumerate(waiting):
        if part.chunk not in chunks:
            fits = len(chunks) < MAX_PARTS and length + part.length <= most
            if chunks and not fits:
                continue
            chunks.add(part.chunk)
            length += part.length
        taken.append(number)
    return sorted(taken, key=lambda number: waiting[number].beside)


class Extent(NamedTuple):
    """Bytes [start, end) of an object."""

    object: str
    start: int
    end: int


def merge(extents: Sequence[Extent]) -> list[list[int]]:
    """Which are fetched by one request, each time in the order in which they lie: neighbours of an
    object with at most `MAX_GAP` between them, up to `MAX_MERGED` altogether. They may not
    overlap."""
    groups: list[list[int]] = []
    ends = Extent("", 0, 0)  # of the group that is growing
    for number in sorted(range(len(extents)), key=lambda number: extents[number]):
        extent = extents[number]
        is_near = 0 <= extent.start - ends.end <= MAX_GAP
        if extent.object == ends.object and is_near and extent.end - ends.start <= MAX_MERGED:
            groups[-1].append(number)
            ends = ends._replace(end=extent.end)
        else:
            groups.append([number])
            ends = extent
    return groups
