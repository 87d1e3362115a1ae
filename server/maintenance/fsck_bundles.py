"""Bundles as fsck reads them: is a chunk where its row says, and where else may it be.

Knows: the indexes of stored bundles. Must not know: findings, what becomes of a chunk.

What the database knows of a bundle follows from the bundle. So a row that is wrong about one, or
gone, is set right from the object; and a chunk that is not where its row says is looked for in the
bundles of its drive, each of which is opened once.

Concurrency: any thread; the caches only save work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select

from remote.protocol.bundle import Bundle
from remote.protocol.content import BadContent, Descriptor
from server.metadata.db import Database
from server.metadata.records import slices
from server.metadata.schema import bundles, chunks
from server.storage.blobs import BlobKey, BlobMissing, BlobStore
from server.storage.bundles import read_bundle
from server.storage.places import Place

# Indexes kept: chunks are looked at bundle by bundle, by several threads.
REMEMBERED = 64

_CHUNKS = select(chunks.c.id).where(
    chunks.c.drive == bindparam("d"), chunks.c.id.in_(bindparam("ids", expanding=True))
)


class Shelf:
    """The bundles of a blob store."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db, self._blobs = db, blobs
        self._parts = lru_cache(REMEMBERED)(self._parts_of)
        self._holding = cache(self._read_all)

    def _index(self, key: BlobKey) -> Bundle | None:
        """The contents of the bundle as it tells them; None: it is no bundle, or cannot be read."""
        try:
            return read_bundle(self._blobs, key)
        except (BadContent, BlobMissing, OSError):
            return None

    def _parts_of(self, key: BlobKey) -> dict[bytes, tuple[Place, bytes]]:
        """By their ids the chunks that the bundle says it holds: where, and their SHA-256."""
        bundle = self._index(key)
        if bundle is None:
            return {}
        return {
            part.id: (Place(key, offset, part.stored_length), part.sha256)
            for part, offset in zip(bundle.parts, bundle.offsets, strict=True)
        }

    def is_at(self, place: Place, descriptor: Descriptor) -> bool:
        """True if the bundle says that it holds the chunk there, stored so."""
        return self._parts(place.key).get(descriptor.id) == (place, descriptor.sha256)

    def looked_for(self, drive: str, own: BlobKey | None, chunk: Descriptor) -> Iterator[Place]:
        """The places where the chunk may be, stored so: an object of its own, bundle `own`, and
        then every other one of its drive."""
        alone = BlobKey(drive, chunk.id)
        if self._blobs.has(alone):
            yield Place(alone, 0, chunk.stored_length)
        if own is not None:
            yield from self._places(own, chunk)
        for key in self._holding(drive).get(chunk.id, ()):
            if key != own:
                yield from self._places(key, chunk)

    def _places(self, key: BlobKey, chunk: Descriptor) -> Iterator[Place]:
        found = self._parts(key).get(chunk.id)
        if found is not None and found[1] == chunk.sha256:
            yield found[0]

    def _read_all(self, drive: str) -> dict[bytes, list[BlobKey]]:
        """For each chunk in bundles of the drive, those that hold it."""
        found: defaultdict[bytes, list[BlobKey]] = defaultdict(list)
        mine = (key for key in self._blobs.keys() if key.drive == drive)  # noqa: SIM118  # no dict
        for some in slices(mine):
            with self._db.read() as conn:
                ids = [key.chunk for key in some]
                alone = set(conn.execute(_CHUNKS, {"d": drive, "ids": ids}).scalars())
            for key in some:
                for id in () if key.chunk in alone else self._parts_of(key):
                    found[id].append(key)
        return found

    def describe(self, conn: Connection, key: BlobKey) -> bool:
        """Let the bundle's row say what its object is. False: that is none."""
        found, head = self._index(key), self._blobs.head(key)
        if found is None or head is None or head.length != found.length:
            return False
        mine = (bundles.c.drive == key.drive) & (bundles.c.id == key.chunk)
        made = conn.execute(select(bundles.c.created_ns).where(mine)).scalar()
        if made is None:
            stored = self._blobs.stat(key)
            made = 0 if stored is None else stored.at_ns
        conn.execute(delete(bundles).where(mine))
        row: dict[str, Any] = {"drive": key.drive, "id": key.chunk, "created_ns": made}
        conn.execute(insert(bundles), row | {"length": head.length, "sha256": head.sha256})
        return True
