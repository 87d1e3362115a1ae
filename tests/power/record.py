"""The record: what a mount did to its disk, in order.

Knows: the kinds of events, and how they are kept in a file while a mount makes more of them. Must
not know: FUSE (`recorder`), what a power loss does to them (`disk`).

A position is a number of events; power lost at position P means: the first P events were asked of
the disk, and no more. Beside the record lies a counter that a reader in another process sees move:
an event is counted before whoever caused it gets its answer, so that everything a call did is below
the position that is read after the call returned.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, msgpack

ROOT = 1  # the inode of the top directory; it was there before
COUNTER = struct.Struct("<Q")
LENGTH = struct.Struct("<I")


class Made(Struct, frozen=True, tag="made"):
    """A new inode under a name. `kind` is "file", "directory" or "other" (a socket)."""

    ino: int
    parent: int
    name: str
    kind: str


class Linked(Struct, frozen=True, tag="linked"):
    ino: int
    parent: int
    name: str


class Removed(Struct, frozen=True, tag="removed"):
    ino: int
    parent: int
    name: str


class Moved(Struct, frozen=True, tag="moved"):
    """A rename; what had the new name has it no more."""

    ino: int
    parent: int
    name: str
    new_parent: int
    new_name: str


class Resized(Struct, frozen=True, tag="resized"):
    """A truncation, down or up."""

    ino: int
    size: int


class Wrote(Struct, frozen=True, tag="wrote"):
    ino: int
    offset: int
    data: bytes


class Synced(Struct, frozen=True, tag="synced"):
    """An fsync or fdatasync of a file or a directory was asked for and has been answered."""

    ino: int


Named = Made | Linked | Removed | Moved
Event = Named | Resized | Wrote | Synced


class Writer:
    """Adds events to the record `path`. One per record."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._encoder = msgpack.Encoder()
        self._count = 0
        self._counter = _map_counter(path, make=True)

    def add(self, event: Event) -> None:
        body = self._encoder.encode(event)
        self._file.write(LENGTH.pack(len(body)))
        self._file.write(body)
        self._count += 1
        COUNTER.pack_into(self._counter, 0, self._count)

    def close(self) -> None:
        self._file.close()
        self._counter.close()


class Position:
    """The position the record `path` has reached, whoever writes it."""

    def __init__(self, path: Path) -> None:
        self._counter = _map_counter(path, make=False)

    def read(self) -> int:
        (count,) = COUNTER.unpack_from(self._counter, 0)
        return int(count)

    def close(self) -> None:
        self._counter.close()


def _map_counter(path: Path, *, make: bool) -> mmap.mmap:
    flags = os.O_RDWR | (os.O_CREAT if make else 0)
    descriptor = os.open(f"{path}.count", flags, 0o600)
    try:
        if make:
            os.ftruncate(descriptor, COUNTER.size)
        return mmap.mmap(descriptor, COUNTER.size)
    finally:
        os.close(descriptor)


def load(path: Path) -> Sequence[Event]:
    """Every event of a record that is no longer written."""
    decoder: msgpack.Decoder[Event] = msgpack.Decoder(Event)
    data, at, events = memoryview(path.read_bytes()), 0, []
    while at < len(data):
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        events.append(decoder.decode(data[at : at + length]))
        at += length
    return events
