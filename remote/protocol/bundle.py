"""Bundles: several small chunks stored as one object.

Knows: how a bundle is laid out, named and taken apart. Must not know: which chunks are bundled
(`cache.sync`), who may read one (`server.api`), where objects live.

    stored bytes of part 0 | of part 1 | ... | index | length of the index, 4 bytes | MAGIC

The stored bytes of a part are exactly those of an object of its own, as its descriptor says; the
index is the MessagePack of the parts' descriptors in order; numbers are big-endian. The index is
last so that bodies are sent as they come; what a server knows of a bundle it reads out of the
bundle, and can read again when it has lost it.

Invariants:
- A bundle's id commits to its index, and that to the SHA-256 of each part; so equal bundles have
  equal ids, and an id is never that of a chunk (another tag).
- No two parts are of one chunk.
- Changing anything that feeds the id is a format change: new tag, new golden vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec
from blake3 import blake3

from remote.protocol.content import BadContent, Descriptor, check_descriptor

BUNDLE_TAG = b"nearline bundle v1\x00"
MAGIC = b"NLBUNDL1"
# Stored bytes of a chunk that may be part of a bundle; longer ones stand alone.
MAX_PART = 512 * 1024
# Of all parts together.
MAX_PARTS_LENGTH = 4 * 1024 * 1024
MAX_PARTS = 1000
_NUMBER = 4
TRAILER = _NUMBER + len(MAGIC)
# No index of so few parts is longer.
MAX_INDEX = 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Descriptor]).decode


class Bundle(NamedTuple):
    """`parts` lie at `offsets`; `tail` (index and trailer) follows them. `length` is of all."""

    id: bytes
    parts: tuple[Descriptor, ...]
    offsets: tuple[int, ...]
    tail: bytes
    length: int


def bundle_of(parts: Sequence[Descriptor]) -> Bundle:
    """The bundle of these chunks in this order. Raises `BadContent` if they make none."""
    return _laid_out(tuple(parts), _encode(list(parts)))


def tail_length(trailer: bytes) -> int:
    """The length of the tail of an object that ends with these `TRAILER` bytes. Raises `BadContent`
    if it is no bundle."""
    length = int.from_bytes(trailer[:_NUMBER], "big")
    if trailer[_NUMBER:] != MAGIC or not 1 <= length <= MAX_INDEX:
        raise BadContent("the object is no bundle")
    return length + TRAILER


def parse(tail: bytes, length: int) -> Bundle:
    """The bundle that an object of `length` bytes is, by its `tail`. The parts themselves are not
    looked at. Raises `BadContent` if it is no bundle, or contradicts itself."""
    if tail_length(tail[-TRAILER:]) != len(tail):
        raise BadContent("the bundle's index is not as long as its trailer says")
    index = tail[:-TRAILER]
    try:
        parts = _decode(index)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadContent(f"the bundle's index cannot be read: {error}") from error
    bundle = _laid_out(tuple(parts), index)
    if bundle.length != length:
        raise BadContent(f"a bundle of {length} bytes says that it has {bundle.length}")
    return bundle


def _laid_out(parts: tuple[Descriptor, ...], index: bytes) -> Bundle:
    if not 1 <= len(parts) <= MAX_PARTS:
        raise BadContent(f"a bundle has 1 to {MAX_PARTS} parts, not {len(parts)}")
    if len({part.id for part in parts}) != len(parts):
        raise BadContent("the bundle has one chunk twice")
    for part in parts:
        check_descriptor(part)
        if part.stored_length > MAX_PART:
            raise BadContent(f"a chunk of {part.stored_length} bytes is no part of a bundle")
    ends = list(accumulate(part.stored_length for part in parts))
    if ends[-1] > MAX_PARTS_LENGTH:
        raise BadContent(f"the parts of a bundle have {MAX_PARTS_LENGTH} bytes, not {ends[-1]}")
    tail = index + len(index).to_bytes(_NUMBER, "big") + MAGIC
    id = blake3(BUNDLE_TAG + index).digest()
    return Bundle(id, parts, (0, *ends[:-1]), tail, ends[-1] + len(tail))
