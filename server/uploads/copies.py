"""Copies: chunks written out of their bundles into objects of their own.

Knows: when a copy may be made, believed and forgotten. Must not know: who needs one
(`server.api.files`: who may read a chunk and not its neighbours), HTTP.

A copy is made when it is first asked for, of bytes that were checked to be the chunk, and is noted
in its row (`copied`) once it is durable, in a write transaction that sees the chunk in a bundle
still and the object as it should be. Before that nobody is given it. What a crash leaves in between
is found the next time; what the row does not speak of any more is removed, or left to whoever else
stores the chunk by itself (`arrivals`), or to collection.

Concurrency: on the event loop; however many ask for one chunk, it is copied once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog
from sqlalchemy import Connection, Select, bindparam, select, update

from remote.protocol.content import BadContent, Descriptor
from remote.protocol.errors import Refused, Unavailable
from server.metadata.db import Database
from server.metadata.records import slices
from server.metadata.schema import chunks
from server.pools import FairPool
from server.storage.blobs import BlobKey, BlobMissing, BlobStore, Head
from server.storage.places import COLUMNS, Place, place_of
from server.uploads.leases import THERE
from server.uploads.verification import Checker

log = structlog.get_logger("nearline.server")

AT_ONCE = 4

_these = (chunks.c.drive == bindparam("d")) & (chunks.c.id.in_(bindparam("ids", expanding=True)))
_is_bundled = chunks.c.state.in_(THERE) & chunks.c.bundle.is_not(None) & (chunks.c.copied == 0)
_BUNDLED = select(*COLUMNS, chunks.c.descriptor).where(_these, _is_bundled)
_NOTED = select(*COLUMNS, chunks.c.state, chunks.c.copied, chunks.c.sha256).where(_these)
_COPIED = update(chunks).where(_these, _is_bundled).values(copied=1)

_decode = msgspec.msgpack.Decoder(Descriptor).decode


class Source(NamedTuple):
    """A chunk that is in a bundle only, and where."""

    key: BlobKey
    place: Place
    descriptor: bytes


class Copies:
    """`reads`, `writes` and `files` are the service's threads."""

    def __init__(
        self, db: Database, blobs: BlobStore, reads: Executor, writes: FairPool, files: Executor
    ) -> None:
        self._db, self._blobs = db, blobs
        self._reads, self._writes, self._files = reads, writes, files
        self._under_way: dict[Source, asyncio.Task[Head | None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    async def make(self, keys: Sequence[BlobKey], whose: Hashable) -> None:
        """Return when those of these chunks that are stored are objects of their own too. `whose`
        job that is.

        Raises `Refused(Unavailable)` if what is stored of one is damaged, gone or cannot be read.
        """
        loop = asyncio.get_running_loop()
        failed: set[Source] = set()
        while sources := await loop.run_in_executor(self._reads, self._sources, keys):
            heads = await asyncio.gather(*map(self._copied, sources))
            tried = list(zip(sources, heads, strict=True))
            there = {item.key: head for item, head in tried if head is not None}
            await asyncio.wrap_future(self._writes.submit_for(whose, partial(self._note, there)))
            again = {item for item, head in tried if head is None}
            if again & failed:  # it is still where it was: collection has not only moved it
                message = "some of the content is damaged or not there; the server's log says more"
                raise Refused(Unavailable(message=message))
            failed |= again

    def _sources(self, keys: Iterable[BlobKey]) -> list[Source]:
        with self._db.read() as conn:
            return sources(conn, keys)

    async def _copied(self, source: Source) -> Head | None:
        task = self._under_way.get(source)
        if task is None:
            task = self._under_way[source] = asyncio.create_task(self._copy_soon(source))
            task.add_done_callback(lambda _: self._under_way.pop(source, None))
        return await asyncio.shield(task)

    async def _copy_soon(self, source: Source) -> Head | None:
        async with self._places:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._files, self._copy, source)

    def _copy(self, source: Source) -> Head | None:
        """As `copy`; None also for what cannot be copied."""
        try:
            return copy(self._blobs, source)
        except (BadContent, BlobMissing, OSError) as error:
            log.error("chunk_not_copied", chunk=source.key.chunk.hex(), error=str(error))
            return None

    def _note(self, there: Mapping[BlobKey, Head]) -> None:
        """In the write thread."""
        with self._db.write() as conn:
            note(conn, self._blobs, there)


def sources(conn: Connection, keys: Iterable[BlobKey]) -> list[Source]:
    """Those of these chunks that are in bundles only."""
    return [
        Source(BlobKey(row.drive, row.id), place_of(row), row.descriptor)
        for row in _rows(conn, _BUNDLED, keys)
    ]


def copy(blobs: BlobStore, source: Source) -> Head | None:
    """Write a chunk out of its bundle. The head of the object of its own that there is then,
    durably: the copy, or another that was there; None: somebody has removed it at once. Raises
    `BadContent`, `BlobMissing` or OSError."""
    found = blobs.head(source.key)
    if found is not None:
        return found
    body = blobs.read(*source.place)
    checker = Checker(_decode(source.descriptor))
    checker.feed(body)
    checker.finish()
    with blobs.create(source.key) as writer:
        writer.write(body)
        made = writer.commit()
    return checker.head() if made else blobs.head(source.key)


def note(conn: Connection, blobs: BlobStore, there: Mapping[BlobKey, Head]) -> None:
    """Write down which of these objects, which were seen a moment ago, are copies of chunks in
    bundles. One that is none is removed, unless its row still says, or may come to say, that the
    chunk is this object."""
    rows = {BlobKey(row.drive, row.id): row for row in _rows(conn, _NOTED, there)}
    copied: dict[str, list[bytes]] = {}
    for key, head in there.items():
        row, now = rows.get(key), blobs.stat(key)
        if row is None:
            blobs.delete(key)
        elif row.state in THERE and row.bundle is not None and not row.copied:
            expected = Head(row.stored_length, row.sha256)
            if now is not None and now.length == head.length and head == expected:
                copied.setdefault(key.drive, []).append(key.chunk)
            else:
                blobs.delete(key)
    for drive, ids in copied.items():
        for some in slices(ids):
            conn.execute(_COPIED, {"d": drive, "ids": some})


def _rows(conn: Connection, query: Select[Any], keys: Iterable[BlobKey]) -> list[Any]:
    by_drive: dict[str, list[bytes]] = {}
    for key in keys:
        by_drive.setdefault(key.drive, []).append(key.chunk)
    return [
        row
        for drive, ids in by_drive.items()
        for some in slices(ids)
        for row in conn.execute(query, {"d": drive, "ids": some})
    ]
