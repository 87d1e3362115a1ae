"""Which blocks go when the cache is full: least recently used first, pinned ones never.

Knows: sizes, access generations, pins. Must not know: LMDB, trio, the clock, the disk (all are
numbers given by `cache`). Pure.

A generation is a counter that grows with every batch written to the cache, not a time: blocks
touched between two batches count as equally recent, which is what lets a read cost no write.
Choosing holds in memory only the blocks it chooses, never the whole index.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable
from dataclasses import dataclass

# Eviction goes down to this share of the limit, so that it runs rarely and in bulk.
LOW_WATER = 0.9


@dataclass(frozen=True, order=True)
class Resident:
    """One cached block: when it was last used (a generation), its LMDB key, bytes charged."""

    generation: int
    key: bytes
    charge: int


def effective_limit(limit: int, used: int, disk_free: int, min_free: int) -> int:
    """Bytes that the cache may hold now: its limit, or as many as keep `min_free` bytes of disk.

    LMDB files never shrink, so giving up blocks frees no disk; what keeps the reserve is to stop
    growing. When less than the reserve is free the cache gives up as much as is lacking, and
    refills those pages in place.
    """
    return max(0, min(limit, used + disk_free - min_free))


def excess(used: int, limit: int) -> int:
    """Bytes that have to go: none below the limit, else all above the low-water mark."""
    return 0 if used <= limit else used - int(limit * LOW_WATER)


def choose(
    residents: Iterable[Resident], needed: int, pinned: Container[bytes] = frozenset()
) -> list[Resident]:
    """The least recently used unpinned blocks that together free at least `needed` bytes.

    Oldest first, no more of them than needed; all unpinned ones when they do not suffice. A key
    starts with its 32-byte chunk id, which is what `pinned` holds.
    """
    if needed <= 0:
        return []
    newest_first: list[tuple[int, bytes, int]] = []  # a heap by negated generation
    total = 0
    for resident in residents:
        if resident.key[:32] in pinned:
            continue
        heapq.heappush(newest_first, (-resident.generation, resident.key, resident.charge))
        total += resident.charge
        while total - newest_first[0][2] >= needed:
            total -= heapq.heappop(newest_first)[2]
    chosen = [Resident(-negated, key, charge) for negated, key, charge in newest_first]
    return sorted(chosen)
