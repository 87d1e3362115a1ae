"""Reading out of a stored bundle what is in it.

Knows: where a bundle's index is. Must not know: the database, who may read it.
"""

from __future__ import annotations

from remote.protocol.bundle import TRAILER, Bundle, parse, tail_length
from remote.protocol.content import BadContent
from server.storage.blobs import BlobKey, BlobMissing, BlobStore


def read_bundle(blobs: BlobStore, key: BlobKey) -> Bundle:
    """The index of the bundle stored as `key`; its parts are not looked at. Raises `BadContent` if
    the object is no bundle or another one, `BlobMissing`, OSError."""
    stored = blobs.stat(key)
    if stored is None:
        raise BlobMissing(key.chunk.hex())
    trailer = blobs.read(key, max(0, stored.length - TRAILER), TRAILER)
    size = min(tail_length(trailer), stored.length)
    bundle = parse(blobs.read(key, stored.length - size, size), stored.length)
    if bundle.id != key.chunk:
        raise BadContent("the object is another bundle")
    return bundle
