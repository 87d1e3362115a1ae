"""Chunks that are stored put together into a bundle, as if they had been uploaded so."""

from __future__ import annotations

import hashlib

from sqlalchemy import insert, update

from remote.protocol.bundle import Bundle, bundle_of
from server.metadata.db import Database
from server.metadata.schema import bundles, chunks
from server.storage.blobs import BlobKey, BlobStore
from tests.server.harness import Chunk


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
