"""Chunks that are stored put together into a bundle, as if they had been uploaded so; and a server
with files of such."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import insert, select, update

from remote.protocol.bundle import Bundle, bundle_of
from server.maintenance import fsck, gc
from server.maintenance.gc_chunks import GRACE_NS, Collected, Options
from server.metadata.db import Database
from server.metadata.schema import bundles, chunks
from server.storage.blobs import BlobKey, BlobStore
from tests.server.deleting import forget
from tests.server.harness import Chunk, Running
from tests.server.lookups import until_verified


def put_together(db: Database, blobs: BlobStore, drive: str, *parts: Chunk) -> Bundle:
    """The bundle of these chunks of a drive, which have objects of their own no more."""
    bundle = bundle_of([part.descriptor for part in parts])
    body = b"".join(part.data for part in parts) + bundle.tail
    with blobs.create(BlobKey(drive, bundle.id)) as writer:
        writer.write(body)
        assert writer.commit()
    row = {"drive": drive, "id": bundle.id, "length": len(body), "created_ns": 1}
    with db.write() as conn:
        conn.execute(insert(bundles), row | {"sha256": hashlib.sha256(body).digest()})
        for part, offset in zip(parts, bundle.offsets, strict=True):
            mine = (chunks.c.drive == drive) & (chunks.c.id == part.id)
            place = {"bundle": bundle.id, "bundle_offset": offset}
            conn.execute(update(chunks).where(mine).values(**place))
    for part in parts:
        blobs.delete(BlobKey(drive, part.id))
    return bundle


class World:
    """A server with some files, whose content is in one bundle, and a collector with a clock."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.db, self.blobs = running.app.service.db, running.app.service.blobs
        self.anna = running.account("anna")
        self.later_ns = 0

    def clock(self) -> int:
        return time.time_ns() + self.later_ns

    def bundle(self, *parts: Chunk) -> Bundle:
        """The content of files with the chunks' numbers as names."""
        for part in parts:
            self.anna.store(name(part), part)
        until_verified(self.running)
        return put_together(self.db, self.blobs, self.anna.me.drive, *parts)

    def collect(self, **options: Any) -> Collected:
        return gc.run(self.db, self.blobs, Options(**options), clock=self.clock)

    def steps(self) -> Iterator[None]:
        return gc.steps(self.db, self.blobs, Options(), Collected(), self.clock)

    def kill(self, *parts: Chunk) -> None:
        """Delete these files, and their chunks: two collections and a grace."""
        for part in parts:
            forget(self.anna, name(part))
        for _ in range(2):
            self.collect()
            self.later_ns += GRACE_NS

    def key(self, id: bytes) -> BlobKey:
        return BlobKey(self.anna.me.drive, id)

    def has(self, id: bytes) -> bool:
        return self.blobs.has(self.key(id))

    def place(self, part: Chunk) -> tuple[bytes | None, int | None]:
        with self.db.read() as conn:
            mine = select(chunks.c.bundle, chunks.c.bundle_offset).where(chunks.c.id == part.id)
            bundle, offset = conn.execute(mine).one()
        return bundle, offset

    def read(self, part: Chunk) -> bytes:
        bundle, offset = self.place(part)
        return self.blobs.read(self.key(bundle or part.id), offset or 0, len(part.data))

    def check(self, *alive: Chunk) -> None:
        assert [self.read(part) for part in alive] == [part.data for part in alive]
        assert fsck.run(self.db, self.blobs, read_data=True).findings == []

    def known(self) -> list[bytes]:
        with self.db.read() as conn:
            return sorted(conn.execute(select(bundles.c.id)).scalars())


def name(part: Chunk) -> str:
    return part.id.hex()
