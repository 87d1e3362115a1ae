"""Identifiers: files, versions and operations are named by whoever makes them.

Knows: the shape of an id. Must not know: clocks or randomness (both are arguments), storage.

Invariant: an id is 32 lowercase hex digits of a UUIDv7 (RFC 9562 section 5.7), so that ids made by
one device sort by time of birth and a file can be born offline.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from msgspec import Meta

HexId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
FileId = HexId
VersionId = HexId
DriveId = HexId
ChunkId = Annotated[bytes, Meta(min_length=32, max_length=32)]


def uuid7(now_ns: int, random: bytes) -> HexId:
    """The UUIDv7 made at `now_ns` (nanoseconds since 1970) from 10 bytes of randomness."""
    if len(random) != 10:
        raise ValueError(f"uuid7 takes 10 random bytes, not {len(random)}")
    millis = (now_ns // 1_000_000) & ((1 << 48) - 1)
    tail = int.from_bytes(random, "big")
    rand_a = tail >> 68
    rand_b = tail & ((1 << 62) - 1)
    value = (millis << 80) | (0x7 << 76) | ((rand_a & 0xFFF) << 64) | (0b10 << 62) | rand_b
    return f"{value:032x}"


def mark_of(file: FileId) -> bytes:
    """8 bytes that tell a file among others to whoever knows its id, and the id to nobody."""
    return hashlib.sha256(file.encode()).digest()[:8]
