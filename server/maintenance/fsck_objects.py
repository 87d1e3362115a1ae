"""fsck of stored objects: each is there, has its length and, if asked, every one of its bytes.

Knows: what the object of a chunk must be. Must not know: the tree, versions' manifests.

The server may run: what seems wrong is looked at again in a new snapshot before it is called so.
A damaged object is never deleted: it is set aside, and its chunk asked for at the next upload.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, tuple_, update

from remote.protocol.content import BadContent, Descriptor
from server.maintenance.fsck_content import GO_BACK, descriptor_of
from server.maintenance.fsck_findings import Finding, Found, Names
from server.maintenance.fsck_tree import REPAIR, RESTORE
from server.maintenance.gc_chunks import renewed
from server.metadata.db import Database
from server.metadata.schema import chunks, version_chunks
from server.storage.blobs import BlobKey, BlobMissing, BlobStore, Head
from server.uploads import quota
from server.uploads.arrivals import Arrival, arrived
from server.uploads.quota import Sums
from server.uploads.verification import check_object

PAGE = 500
_THREADS = os.cpu_count() or 1
_PAGE = (
    select(chunks)
    .where(tuple_(chunks.c.drive, chunks.c.id) > tuple_(bindparam("drive"), bindparam("id")))
    .order_by(chunks.c.drive, chunks.c.id)
    .limit(PAGE)
)
_CHUNK = select(chunks).where(chunks.c.drive == bindparam("d"), chunks.c.id == bindparam("i"))
_VERSION = select(version_chunks.c.version).where(
    version_chunks.c.drive == bindparam("d"), version_chunks.c.chunk == bindparam("i")
)
_STORED = ("uploaded", "doomed")

# The kind of a finding, and what is wrong.
Fault = tuple[str, str]


def _read_back(blobs: BlobStore, key: BlobKey, descriptor: Descriptor) -> str | None:
    """Read the object of `key` and compare every byte; what is wrong with it, or None."""
    try:
        check_object(blobs, key, descriptor)
    except BlobMissing:
        return "is missing"
    except BadContent as error:
        return f"is not what its name says: {error}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


@dataclass
class Objects:
    """The check of all objects. Counts what it looked at."""

    db: Database
    blobs: BlobStore
    read_data: bool
    objects: int = 0
    bytes: int = 0

    def check(
        self, conn: Connection, names: Names, progress: Callable[[int, int], None]
    ) -> Iterator[Found]:
        """Every chunk of the snapshot `conn`; `progress` gets objects and bytes so far."""
        drive, id = "", b""
        with ThreadPoolExecutor(_THREADS, "fsck") as pool:
            while page := conn.execute(_PAGE, {"drive": drive, "id": id}).all():
                drive, id = page[-1].drive, page[-1].id
                for chunk, fault in zip(page, pool.map(self._fault, page), strict=True):
                    if fault is not None:
                        yield from self._found(conn, names, chunk, fault)
                    self.objects += 1
                    self.bytes += chunk.stored_length if self.read_data else 0
                progress(self.objects, self.bytes)

    def _fault(self, chunk: Row[Any]) -> Fault | None:
        try:
            descriptor = descriptor_of(chunk)
        except BadContent as error:
            return "descriptor", f"its descriptor is damaged: {error}"
        key = BlobKey(chunk.drive, chunk.id)
        if chunk.state not in _STORED:
            return self._came_back(chunk, key)
        stored = self.blobs.stat(key)
        if stored is None:
            return "object", "its object is missing"
        if stored.length != chunk.stored_length:
            what = f"its object has {stored.length} bytes instead of {chunk.stored_length}"
            return "object", what
        wrong = _read_back(self.blobs, key, descriptor) if self.read_data else None
        return None if wrong is None else ("object", f"its object {wrong}")

    def _came_back(self, chunk: Row[Any], key: BlobKey) -> Fault | None:
        """A chunk that versions miss may be there after all: put back by hand, or its arrival was
        never told."""
        if chunk.state == "pending" and self.blobs.stat(key) is not None:
            return "arrived", "its object is there, but it counts as missing"
        return None

    def _found(
        self, conn: Connection, names: Names, chunk: Row[Any], fault: Fault
    ) -> Iterator[Found]:
        kind, what = fault
        where = {"d": chunk.drive, "i": chunk.id}
        holders = conn.execute(_VERSION, where).scalars().all()
        if kind == "arrived" and not holders:
            return  # an upload is under way
        with self.db.read() as now:
            again = now.execute(_CHUNK, where).first()
        if again is None or self._fault(again) is None:
            return
        finding = _name(names, chunk, holders)
        finding.kind, finding.what = kind, f"chunk {chunk.id.hex()}: {what}"
        if kind == "descriptor":
            finding.todo = RESTORE
            yield Found(finding)
            return
        finding.todo = REPAIR
        if kind == "object":
            finding.todo += f"; {GO_BACK}" if holders else ", so that it can be uploaded again"
        fix = self._adopt if kind == "arrived" else self._set_aside
        yield Found(finding, partial(fix, key=BlobKey(chunk.drive, chunk.id)))

    def _set_aside(self, conn: Connection, key: BlobKey) -> bool:
        chunk = conn.execute(_CHUNK, {"d": key.drive, "i": key.chunk}).first()
        if chunk is None or chunk.state not in _STORED or self._fault(chunk) is None:
            return True
        self.blobs.set_aside(key)
        mine = (chunks.c.drive == key.drive) & (chunks.c.id == key.chunk)
        conn.execute(update(chunks).where(mine).values(**renewed(time.time_ns())))
        length = chunk.stored_length
        quota.change(conn, key.drive, Sums(used=-length, reserved=length, promised=1))
        return True

    def _adopt(self, conn: Connection, key: BlobKey) -> bool:
        where = {"d": key.drive, "i": key.chunk}
        chunk, head = conn.execute(_CHUNK, where).first(), self.blobs.head(key)
        if chunk is None or head != Head(chunk.stored_length, chunk.sha256):
            return False  # neither believed nor removed: somebody may know what it is
        arrived(conn, self.blobs, [Arrival(key, head)], time.time_ns())
        return conn.execute(_CHUNK, where).one().state in _STORED


def _name(names: Names, chunk: Row[Any], holders: Any) -> Finding:
    """A finding that says whose chunk it is: the path and version of one file that needs it."""
    finding = Finding("", "", "", account=names.account(chunk.drive), chunk=chunk.id.hex())
    for version in holders[:1]:
        finding.version, finding.file = version, names.holder(version)
        finding.path = names.path(finding.file) if finding.file is not None else None
    return finding
