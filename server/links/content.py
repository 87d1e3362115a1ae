"""The bytes of a version, put together from its chunks on the server.

Knows: manifests, stored objects, and verifying them. Must not know: who asks, HTTP, zip.

Clients take chunks from the edge and verify them themselves; a browser can do neither, so here the
server does it. Nothing is given out that did not match the block's hash, so also what nobody has
verified since its upload can be served.

Concurrency: blocking; each `next` may come from another thread, one at a time. Nothing is held
between two of them, neither a transaction nor a file, so an iterator may be dropped at any point.
Memory: an outline of the manifest, which downloads of one version share, the descriptors of `AHEAD`
chunks, and `PIECE` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from remote.protocol.codec import Buffer, decode_block, iter_stored
from remote.protocol.content import (
    BLOCK_SIZE,
    HOLE,
    BadContent,
    Descriptor,
    Manifest,
    block_count,
    check_descriptor,
)
from server.drive import versions
from server.drive.versions import StoredChunk
from server.links.outlines import Outline, Outlines, Part
from server.links.way import Places
from server.metadata.records import slices
from server.storage.blobs import BlobMissing, BlobStore
from server.storage.places import Place

AHEAD = 16
_BLOCKS = 4
PIECE = _BLOCKS * BLOCK_SIZE
_ZEROS = bytes(PIECE)

ReadTransaction = Callable[[], AbstractContextManager[Connection]]


class DamagedContent(RuntimeError):
    """Stored content is not what was uploaded, or is gone; the message says which chunk."""


@dataclass(frozen=True)
class Library:
    """Where content comes from. What is remembered of it is shared by all who have a document."""

    read: ReadTransaction
    blobs: BlobStore
    outlines: Outlines = field(default_factory=Outlines)
    places: Places = field(default_factory=Places)

    def open(self, conn: Connection, file: str, version: str, drive: str) -> Document:
        """The content of an uploaded version. Raises `errors.Refused` with NotFound."""
        size = versions.size_of(conn, file, version)

        def read() -> Manifest:
            return versions.manifest_of(versions.read(conn, file, version))

        return Document(self, drive, version, self.outlines.of(version, size, read))


@dataclass(frozen=True)
class Document:
    """One version, which never changes."""

    library: Library
    drive: str
    version: str
    outline: Outline

    @property
    def size(self) -> int:
        return self.outline.size

    def read(self, start: int, end: int) -> Iterator[Buffer]:
        """The bytes [start, end) in order, at most `PIECE` at a time.

        Raises `DamagedContent` before the first byte that cannot be vouched for.
        """
        for batch in slices(self.outline.under(start, end), AHEAD):
            known = self._stored([part.piece.id for part in batch])
            for part in batch:
                if part.piece.id == HOLE:
                    yield from _zeros(part.end - part.start)
                else:
                    yield from self._chunk(known[part.piece.id], part)

    def _stored(self, ids: Sequence[bytes]) -> dict[bytes, StoredChunk]:
        wanted = list(dict.fromkeys(id for id in ids if id != HOLE))
        with self.library.read() as conn:
            found = versions.stored(conn, self.version, wanted)
        return {chunk.descriptor.id: chunk for chunk in found}

    def _chunk(self, chunk: StoredChunk, part: Part) -> Iterator[Buffer]:
        """Bytes [start, end) of a chunk, some blocks with one read."""
        descriptor, place = chunk.descriptor, chunk.place
        try:
            check_descriptor(descriptor)
            if descriptor.length != part.piece.length:
                raise BadContent("the manifest gives it another length")
            last = min((part.end - 1) // BLOCK_SIZE, block_count(descriptor.length) - 1)
            for first in range(part.start // BLOCK_SIZE, last + 1, _BLOCKS):
                until = min(first + _BLOCKS - 1, last)
                try:
                    blocks = self._blocks(descriptor, place, first, until)
                except BlobMissing:
                    # A slow visitor: collection has written the chunk elsewhere since.
                    place = self._stored([descriptor.id])[descriptor.id].place
                    blocks = self._blocks(descriptor, place, first, until)
                yield from _cut(blocks, part, first)
        except (BadContent, BlobMissing) as error:
            raise DamagedContent(f"chunk {descriptor.id.hex()}: {error}") from error

    def _blocks(self, descriptor: Descriptor, place: Place, first: int, last: int) -> list[Buffer]:
        blocks = list(iter_stored(descriptor, first, last))
        start, end = blocks[0].start, blocks[-1].end
        read = self.library.blobs.read(place.key, place.offset + start, end - start)
        stored = memoryview(read)
        return [
            decode_block(descriptor, block.block, stored[block.start - start : block.end - start])
            for block in blocks
        ]


def _cut(blocks: list[Buffer], part: Part, first: int) -> Iterator[Buffer]:
    """The bytes of `blocks`, the first of which is number `first`, that belong to the part."""
    at = first * BLOCK_SIZE
    for block in blocks:
        view = memoryview(block)[max(part.start - at, 0) : max(part.end - at, 0)]
        if view:
            yield view
        at += BLOCK_SIZE


def _zeros(length: int) -> Iterator[Buffer]:
    """A hole; its length is whatever its writer said, its cost here is not."""
    while length > 0:
        yield memoryview(_ZEROS)[: min(length, PIECE)]
        length -= PIECE
