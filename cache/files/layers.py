"""Dirty layers over an uploaded version, and what shows through them. Pure.

A regular file is a stack: at the bottom the uploaded version (or nothing), above it at most one
frozen layer (the snapshot being uploaded) and at most one open layer (writes since). A layer holds
the byte ranges written into it; through its gaps shows what is below, up to `below`; beyond that
zeros. Truncation lowers `below` and cuts the extents, so truncating to 10^15 bytes costs nothing
and what was cut off never comes back.

Invariant: `below` never exceeds the size of what is below; extents end at or before the size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cache.files.unsynced import UnsyncedRanges
from cache.metadata.intervals import IntervalSet, Range


@dataclass
class Layer:
    id: int
    ino: int
    below: int
    size: int
    version: str | None = None
    average: int | None = None
    safe: int = 0
    instead: int | None = None
    cuts: int = 0  # in memory: how often it was truncated
    extents: IntervalSet = field(default_factory=IntervalSet)
    unsynced: UnsyncedRanges = field(default_factory=UnsyncedRanges)

    @property
    def frozen(self) -> bool:
        return self.version is not None


BASE = -1
ZERO = -2


class Segment(NamedTuple):
    """`length` bytes at `offset` come from `source`: a layer id, BASE (the version) or ZERO."""

    source: int
    offset: int
    length: int


def plan_read(layers: Sequence[Layer], base_size: int, offset: int, length: int) -> list[Segment]:
    """Where the bytes [offset, offset+length) come from. `layers` from top to bottom; the caller
    has clipped the range to the file's size."""
    return list(_plan(layers, base_size, offset, offset + length))


def _plan(layers: Sequence[Layer], base_size: int, start: int, stop: int) -> Iterator[Segment]:
    if start >= stop:
        return
    if not layers:
        if start < base_size:
            yield Segment(BASE, start, min(stop, base_size) - start)
        if stop > base_size:
            low = max(start, base_size)
            yield Segment(ZERO, low, stop - low)
        return
    top, rest = layers[0], layers[1:]
    for low, high, inside in top.extents.split(start, stop):
        if inside:
            yield Segment(top.id, low, high - low)
            continue
        through = min(high, max(low, top.below))
        yield from _plan(rest, base_size, low, through)
        if high > through:
            yield Segment(ZERO, through, high - through)


def stored_bytes(layers: Sequence[Layer], base_bytes: int, size: int) -> int:
    """At least as many bytes as the file holds that are not holes, and at most its size; 0 only
    when all of it is known to be a hole. `layers` from top to bottom, over a version that stores
    `base_bytes`."""
    stored = base_bytes
    for layer in reversed(layers):
        stored = min(stored, layer.below) + layer.extents.total
    return min(size, stored)


def changed_ranges(layer: Layer) -> list[Range]:
    """Ranges that a frozen layer directly above the version changed, in the new file's
    coordinates."""
    changed = IntervalSet(layer.extents)
    changed.add(layer.below, layer.size)
    return list(changed)


def hole_ranges(layer: Layer) -> list[Range]:
    """The parts of `changed_ranges` that nobody wrote: zeros that need not be stored."""
    return layer.extents.gaps(layer.below, layer.size)
