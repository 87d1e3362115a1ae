"""The layout of a zip archive that is written, and may be read, from its front to its end.

Knows: the records of APPNOTE.TXT 6.3. Must not know: what is packed, HTTP. Pure, but for the
index that `Layout` collects.

What a reader of streams (Java's ZipInputStream, bsdtar) needs, and what is kept to here:
- The checksum of content is known when it has been sent, so it follows the content, in a data
  descriptor. Only of deflated content can a reader tell where it ends: so it is deflated, without
  being made smaller, in blocks that hold the bytes as they are.
- A descriptor has sizes of 8 bytes only where one of them does not fit 4: readers know no other
  sign (Java) or the ZIP64 field of the local header (bsdtar), and here both say the same. So the
  packed size must be known before: blocks are of the same length wherever content is cut.
- What is empty has neither content nor descriptor.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from remote.protocol.codec import Buffer

# The largest size and offset of 4 bytes.
_LIMIT = 0xFFFFFFFF
# As the value of a field: look into ZIP64's.
_ELSEWHERE: Final = 0xFFFFFFFF
_MOST: Final = 0xFFFF
# Bytes in a block of deflate that is stored.
_BLOCK: Final = 0xFFFF

_BLOCK_HEAD = struct.Struct("<BHH")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTOR, _DESCRIPTOR64 = struct.Struct("<4s3L"), struct.Struct("<4sL2Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64, _LOCATOR, _END = (
    struct.Struct("<4sQ2H2L4Q"),
    struct.Struct("<4sLQL"),
    struct.Struct("<4s4H2LH"),
)
_TIME = struct.Struct("<HHBi")
_STORED, _DEFLATED = 0, 8
_UTF8, _DESCRIBED = 0x800, 0x8
_UNIX = 3 << 8
_PLAIN, _ZIP64 = 20, 45
"""Versions of the format that a reader has to know."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)


class Entry(NamedTuple):
    """A file or directory (`path` ends in a slash) to be: `size` in bytes; `attributes` as the
    index has them."""

    path: str
    size: int
    mtime_ns: int
    attributes: int


@dataclass
class Layout:
    """Gives the bytes of an archive, in order, and remembers what its index will say."""

    _at: int = 0
    _index: list[bytes] = field(default_factory=list)

    def entry(self, entry: Entry, content: Iterable[Buffer] = ()) -> Iterator[Buffer]:
        """An entry with its content, which has `entry.size` bytes."""
        start, crc, packed = self._at, 0, packed_size(entry.size)
        is_large = max(entry.size, packed) > _LIMIT
        yield self._counted(_local(entry, is_large))
        if entry.size:
            head, left, done = b"", 0, 0
            for piece in content:
                view = memoryview(piece)
                crc = zlib.crc32(view, crc)
                while view:
                    if not left:
                        left = min(_BLOCK, entry.size - done)
                        head = _block_head(left, is_last=done + left == entry.size)
                        yield head
                    part, view = view[:left], view[left:]
                    left, done = left - len(part), done + len(part)
                    yield part
            self._at += packed
            layout = _DESCRIPTOR64 if is_large else _DESCRIPTOR
            yield self._counted(layout.pack(b"PK\x07\x08", crc, packed, entry.size))
        self._index.append(_central(entry, crc, packed, start))

    def end(self) -> Iterator[bytes]:
        """The index."""
        start, count = self._at, len(self._index)
        for item in self._index:
            yield self._counted(item)
        size, end64 = self._at - start, self._at
        if count >= _MOST or max(start, size) >= _LIMIT:
            versions = (_UNIX | _ZIP64, _ZIP64)
            counts = (0, 0, count, count)
            yield _END64.pack(b"PK\x06\x06", _END64.size - 12, *versions, *counts, size, start)
            yield _LOCATOR.pack(b"PK\x06\x07", 0, end64, 1)
        few = min(count, _MOST)
        yield _END.pack(b"PK\x05\x06", 0, 0, few, few, _short(size), _short(start), 0)

    def _counted(self, record: bytes) -> bytes:
        self._at += len(record)
        return record


def packed_size(size: int) -> int:
    """Bytes that the content of a file of `size` bytes takes in an archive."""
    return size + _BLOCK_HEAD.size * -(-size // _BLOCK)


def _block_head(length: int, *, is_last: bool) -> bytes:
    return _BLOCK_HEAD.pack(is_last, length, length ^ _MOST)


def _local(entry: Entry, is_large: bool) -> bytes:
    path, time = entry.path.encode(), _time_field(entry.mtime_ns)
    sizes, extra = (0, 0), time
    if is_large:
        sizes, extra = (_ELSEWHERE, _ELSEWHERE), time + _zip64_field(0, 0)
    said = (_version(is_large), *_how(entry), *_dos_time(entry.mtime_ns))
    return _LOCAL.pack(b"PK\x03\x04", *said, 0, *sizes, len(path), len(extra)) + path + extra


def _central(entry: Entry, crc: int, packed: int, at: int) -> bytes:
    path = entry.path.encode()
    values = (entry.size, packed, at)
    large = [value for value in values if value >= _LIMIT]
    size, packed, at = map(_short, values)
    extra = _time_field(entry.mtime_ns) + (_zip64_field(*large) if large else b"")
    version = _version(bool(large))
    said = (_UNIX | version, version, *_how(entry), *_dos_time(entry.mtime_ns), crc, packed, size)
    lengths = (len(path), len(extra), 0)
    return _CENTRAL.pack(b"PK\x01\x02", *said, *lengths, 0, 0, entry.attributes, at) + path + extra


def _short(value: int) -> int:
    """`value` in a field of 4 bytes; ZIP64 has it where it does not fit."""
    return value if value < _LIMIT else _ELSEWHERE


def _version(is_large: bool) -> int:
    return _ZIP64 if is_large else _PLAIN


def _how(entry: Entry) -> tuple[int, int]:
    """Flags and method."""
    return (_UTF8 | _DESCRIBED, _DEFLATED) if entry.size else (_UTF8, _STORED)


def _zip64_field(*values: int) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)


def _time_field(mtime_ns: int) -> bytes:
    """A zip's own time is local, has no zone, and ends in 2107; the extra field of Info-ZIP tells
    the exact second where it can."""
    seconds = mtime_ns // 10**9
    return _TIME.pack(0x5455, 5, 1, seconds) if -(1 << 31) <= seconds < 1 << 31 else b""


def _dos_time(mtime_ns: int) -> tuple[int, int]:
    when = (_EPOCH + timedelta(seconds=mtime_ns // 10**9)).timetuple()[:6]
    year, month, day, hour, minute, second = min(max(when, _FIRST), _LAST)
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day
