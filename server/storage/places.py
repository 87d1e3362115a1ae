"""Where the stored bytes of a chunk are: an object of its own, or a part of a bundle.

Knows: how a row of `chunks` says it. Must not know: who may read there, how bundles are laid out.

A place is as true as the transaction that read the row: collection may write the chunk into another
bundle afterwards. The object that it was in stays for the grace that signed URLs have.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from server.metadata.schema import chunks
from server.storage.blobs import BlobKey


class Place(NamedTuple):
    """`length` bytes of object `key`, from byte `offset`."""

    key: BlobKey
    offset: int
    length: int


# What `place_of` needs of a row.
COLUMNS = (
    chunks.c.drive,
    chunks.c.id,
    chunks.c.stored_length,
    chunks.c.bundle,
    chunks.c.bundle_offset,
)


def place_of(row: Any) -> Place:
    """Where a chunk that is stored is, by its row in `chunks` with at least `COLUMNS`."""
    if row.bundle is None:
        return Place(BlobKey(row.drive, row.id), 0, row.stored_length)
    return Place(BlobKey(row.drive, row.bundle), row.bundle_offset, row.stored_length)
