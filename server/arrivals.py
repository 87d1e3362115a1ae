"""Chunks arriving: from a stored object to a chunk that versions may refer to.

Knows: which promise a stored object fulfils. Must not know: how bytes arrive (`edge`), when this is
called (`service`).

A chunk may be promised in several ways (see `uploads`). What arrives decides: the descriptor whose
SHA-256 and length the stored object has becomes the chunk's; an object that fulfils no promise
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from remote.content import Descriptor
from remote.wire import Create, Keyed, Write
from server import tree
from server.blobs import BlobKey, Head
from server.records import pages
from server.schema import chunks, drives, files, upload_chunks
from server.uploads import known_chunks

_decode = msgspec.msgpack.Decoder(Descriptor).decode

_ARRIVED = (
    update(chunks)
    .where(
        chunks.c.drive == bindparam("d"),
        chunks.c.id == bindparam("i"),
        chunks.c.sha256 == bindparam("s"),
        chunks.c.stored_length == bindparam("l"),
        chunks.c.state == "pending",
    )
    .values(state="uploaded", uploaded_ns=bindparam("now"))
)


class Arrival(NamedTuple):
    """A stored object is in the blob store, durably."""

    key: BlobKey
    head: Head


def arrived(conn: Connection, arrivals: Sequence[Arrival], now_ns: int) -> None:
    """Mark chunks uploaded whose objects are stored. Idempotent; unknown objects are ignored."""
    gained: dict[str, int] = {}
    for key, head in arrivals:
        if _mark(conn, key, head, now_ns) or _mark_other(conn, key, head, now_ns):
            gained[key.drive] = gained.get(key.drive, 0) + head.length
    for drive, stored in gained.items():
        used = update(drives).where(drives.c.id == drive)
        conn.execute(used.values(used_bytes=drives.c.used_bytes + stored))


def _mark(conn: Connection, key: BlobKey, head: Head, now_ns: int) -> bool:
    where = {"d": key.drive, "i": key.chunk, "s": head.sha256, "l": head.length}
    return conn.execute(_ARRIVED, where | {"now": now_ns}).rowcount == 1


def _mark_other(conn: Connection, key: BlobKey, head: Head, now_ns: int) -> bool:
    """The object is not as the first promise said: adopt the lease that it fulfils."""
    here = (upload_chunks.c.drive == key.drive) & (upload_chunks.c.chunk == key.chunk)
    leases = select(upload_chunks.c.descriptor).where(here)
    for encoded in conn.execute(leases).scalars().all():
        descriptor = None if encoded is None else _decode(encoded)
        if descriptor is None or descriptor.sha256 != head.sha256:
            continue
        pending = (chunks.c.drive == key.drive) & (chunks.c.id == key.chunk)
        pending &= chunks.c.state == "pending"
        stored = {"sha256": head.sha256, "stored_length": head.length, "descriptor": encoded}
        done = {"state": "uploaded", "uploaded_ns": now_ns}
        return conn.execute(update(chunks).where(pending).values(**stored, **done)).rowcount == 1
    return False


def unsettled(conn: Connection, ops: Iterable[Keyed]) -> list[BlobKey]:
    """Chunks that `ops` need and that no event has reported: ask the blob store for these."""
    anchors: set[str] = set()
    wanted: set[bytes] = set()
    for keyed in ops:
        content = keyed.op.content if isinstance(keyed.op, Create | Write) else None
        if content is not None and content.manifest.pieces:
            anchors.add(tree.anchor(keyed.op))
            wanted.update(piece.id for piece in content.manifest.pieces if piece.id)
    found: set[str] = set()
    for page in pages(anchors):
        of = select(files.c.drive).where(files.c.id.in_(page)).distinct()
        found.update(conn.execute(of).scalars())
    return [
        BlobKey(drive, row.id)
        for drive in sorted(found)
        for row in known_chunks(conn, drive, wanted).values()
        if row.state == "pending"
    ]
