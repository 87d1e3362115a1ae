"""fsck of stored objects: each is there, has its length and, if asked, every one of its bytes.

Knows: what the object of a chunk must be. Must not know: the tree, versions' manifests.

The server may run: what seems wrong is looked at again in a new snapshot before it is called so.
A damaged object is never deleted: it is set aside, and its chunk asked for at the next upload. A
damaged part of a bundle stays there, since others live beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, select, tuple_, update

from remote.protocol.content import BadContent, Descriptor
from server.maintenance.fsck_bundles import Shelf
from server.maintenance.fsck_content import GO_BACK, descriptor_of
from server.maintenance.fsck_findings import Finding, Found, Names
from server.maintenance.fsck_tree import REPAIR, RESTORE
from server.maintenance.gc_chunks import NOWHERE, renewed
from server.metadata.db import Database
from server.metadata.schema import bundles, chunks, version_chunks
from server.storage.blobs import BlobKey, BlobMissing, BlobStore, Head, Stored
from server.storage.places import Place, place_of
from server.uploads import quota
from server.uploads.arrivals import Arrival, arrived
from server.uploads.quota import Sums
from server.uploads.verification import check_place

PAGE = 500
_THREADS = os.cpu_count() or 1
_CHUNKS = select(
    chunks, bundles.c.length.label("bundle_length"), bundles.c.deleting, bundles.c.emptied_ns
).outerjoin_from(
    chunks, bundles, (bundles.c.drive == chunks.c.drive) & (bundles.c.id == chunks.c.bundle)
)
_ALONE = (
    _CHUNKS.where(
        chunks.c.bundle.is_(None),
        tuple_(chunks.c.drive, chunks.c.id) > tuple_(bindparam("drive"), bindparam("id")),
    )
    .order_by(chunks.c.drive, chunks.c.id)
    .limit(PAGE)
)
# By the index of bundles, so that each is opened once.
_inside = chunks.alias("inside")
_BUNDLED = (
    _CHUNKS.join(_inside, (_inside.c.drive == chunks.c.drive) & (_inside.c.id == chunks.c.id))
    .where(
        _inside.c.bundle.is_not(None),
        tuple_(_inside.c.drive, _inside.c.bundle, _inside.c.id)
        > tuple_(bindparam("drive"), bindparam("bundle"), bindparam("id")),
    )
    .order_by(_inside.c.drive, _inside.c.bundle, _inside.c.id)
    .limit(PAGE)
)
_CHUNK = _CHUNKS.where(chunks.c.drive == bindparam("d"), chunks.c.id == bindparam("i"))
_VERSION = select(version_chunks.c.version).where(
    version_chunks.c.drive == bindparam("d"), version_chunks.c.chunk == bindparam("i")
)
_STORED = ("uploaded", "doomed")

# The kind of a finding, and what is wrong.
Fault = tuple[str, str]


def _read_back(blobs: BlobStore, place: Place, descriptor: Descriptor) -> str | None:
    """Read a chunk where it is and compare every byte; what is wrong with it, or None."""
    try:
        check_place(blobs, place, descriptor)
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

    def __post_init__(self) -> None:
        self._shelf = Shelf(self.db, self.blobs)

    def check(
        self, conn: Connection, names: Names, progress: Callable[[int, int], None]
    ) -> Iterator[Found]:
        """Every chunk of the snapshot `conn`; `progress` gets objects and bytes so far."""
        with ThreadPoolExecutor(_THREADS, "fsck") as pool:
            for page in _pages(conn):
                for chunk, fault in zip(page, pool.map(self._fault, page), strict=True):
                    if fault is None:
                        fault = self._is_bundled(conn, chunk)
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
        place = place_of(chunk)
        stored = self.blobs.stat(place.key)
        if stored is None:
            return "object", "its object is missing"
        fault = self._fault_in_bundle(chunk, place, stored, descriptor)
        if chunk.bundle is None and stored.length != chunk.stored_length:
            what = f"its object has {stored.length} bytes instead of {chunk.stored_length}"
            fault = "object", what
        if fault is None and self.read_data:
            wrong = _read_back(self.blobs, place, descriptor)
            fault = None if wrong is None else ("object", f"its object {wrong}")
        if fault is None and chunk.copied:
            fault = self._fault_of_copy(chunk, Place(key, 0, chunk.stored_length), descriptor)
        return fault

    def _fault_of_copy(self, chunk: Row[Any], place: Place, descriptor: Descriptor) -> Fault | None:
        """The copy is for those who may not read the bundle, and nobody else reads it."""
        stored = self.blobs.stat(place.key)
        if stored is None:
            return "copy", "its copy outside its bundle is missing"
        if stored.length != chunk.stored_length:
            what = f"its copy outside its bundle has {stored.length} bytes"
            return "copy", f"{what} instead of {chunk.stored_length}"
        wrong = _read_back(self.blobs, place, descriptor) if self.read_data else None
        return None if wrong is None else ("copy", f"its copy outside its bundle {wrong}")

    def _fault_in_bundle(
        self, chunk: Row[Any], place: Place, stored: Stored, descriptor: Descriptor
    ) -> Fault | None:
        if chunk.bundle is None:
            return None
        if not self._shelf.is_at(place, descriptor):
            return "object", "the bundle that it should be in does not have it there"
        if chunk.bundle_length != stored.length:
            what = f"its bundle has {stored.length} bytes, and {chunk.bundle_length} are known"
            return "bundle", what
        if chunk.deleting or chunk.emptied_ns is not None:
            return "bundle", "its bundle counts as empty"
        return None

    def _came_back(self, chunk: Row[Any], key: BlobKey) -> Fault | None:
        """A chunk that versions miss may be there after all: put back by hand, or its arrival was
        never told."""
        if chunk.state == "pending" and self.blobs.stat(key) is not None:
            return "arrived", "its object is there, but it counts as missing"
        return None

    def _is_bundled(self, conn: Connection, chunk: Row[Any]) -> Fault | None:
        """A chunk that versions miss may be in a bundle. All of the drive's are looked into."""
        if chunk.state != "pending":
            return None
        holders = conn.execute(_VERSION, {"d": chunk.drive, "i": chunk.id}).first()
        if holders is None or self._elsewhere(chunk) is None:
            return None
        return "arrived", "a bundle has it, but it counts as missing"

    def _elsewhere(self, chunk: Row[Any]) -> Place | None:
        """The place where the whole chunk is, every byte of it, if it is not where it should be."""
        try:
            descriptor = descriptor_of(chunk)
        except BadContent:
            return None
        own = None if chunk.bundle is None else BlobKey(chunk.drive, chunk.bundle)
        for place in self._shelf.looked_for(chunk.drive, own, descriptor):
            if _read_back(self.blobs, place, descriptor) is None:
                return place
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
        if again is None or (self._fault(again) or self._is_bundled(conn, again)) is None:
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
        fixes = {
            "arrived": self._adopt,
            "bundle": self._describe,
            "copy": self._forget_copy,
            "object": self._replace,
        }
        yield Found(finding, partial(fixes[kind], key=BlobKey(chunk.drive, chunk.id)))

    def _replace(self, conn: Connection, key: BlobKey) -> bool:
        """Let the row say where the chunk is; if it is nowhere, it is to be uploaded again."""
        chunk = conn.execute(_CHUNK, {"d": key.drive, "i": key.chunk}).first()
        if chunk is None or chunk.state not in _STORED or self._fault(chunk) is None:
            return True
        place = self._elsewhere(chunk)
        if place is not None and self._point(conn, key, place):
            return True
        if chunk.bundle is None:  # others may live in a bundle
            self.blobs.set_aside(key)
        conn.execute(update(chunks).where(_this(key)).values(**renewed(time.time_ns())))
        length = chunk.stored_length
        quota.change(conn, key.drive, Sums(used=-length, reserved=length, promised=1))
        return True

    def _point(self, conn: Connection, key: BlobKey, place: Place) -> bool:
        """Let the chunk's row say that it is there. False: that bundle can have no row."""
        where: dict[str, Any] = dict(NOWHERE)
        if place.key != key:
            if not self._shelf.describe(conn, place.key):
                return False
            where |= {"bundle": place.key.chunk, "bundle_offset": place.offset}
        conn.execute(update(chunks).where(_this(key)).values(**where))
        return True

    def _forget_copy(self, conn: Connection, key: BlobKey) -> bool:
        """It is made again when somebody asks for it."""
        chunk = conn.execute(_CHUNK, {"d": key.drive, "i": key.chunk}).first()
        fault = None if chunk is None else self._fault(chunk)
        if fault is not None and fault[0] == "copy":
            self.blobs.set_aside(key)
            conn.execute(update(chunks).where(_this(key)).values(copied=0))
        return True

    def _describe(self, conn: Connection, key: BlobKey) -> bool:
        chunk = conn.execute(_CHUNK, {"d": key.drive, "i": key.chunk}).first()
        if chunk is None or chunk.bundle is None:
            return True
        return self._shelf.describe(conn, BlobKey(key.drive, chunk.bundle))

    def _adopt(self, conn: Connection, key: BlobKey) -> bool:
        where = {"d": key.drive, "i": key.chunk}
        chunk, head = conn.execute(_CHUNK, where).first(), self.blobs.head(key)
        if chunk is None or chunk.state != "pending":
            return True
        if head == Head(chunk.stored_length, chunk.sha256):
            arrived(conn, self.blobs, [Arrival(key, head)], time.time_ns())
            return conn.execute(_CHUNK, where).one().state in _STORED
        place = self._elsewhere(chunk)
        if place is None or place.key == key or not self._point(conn, key, place):
            return False  # neither believed nor removed: somebody may know what it is
        now_ns = time.time_ns()
        there = {"state": "uploaded", "uploaded_ns": now_ns, "verified_ns": now_ns, "unshown": 0}
        conn.execute(update(chunks).where(_this(key)).values(**there))
        quota.change(conn, key.drive, Sums(used=chunk.stored_length) - Sums.of_pending([chunk]))
        return True


def _pages(conn: Connection) -> Iterator[Sequence[Row[Any]]]:
    """All chunks, those in bundles bundle by bundle."""
    for query in (_ALONE, _BUNDLED):
        last: dict[str, object] = {"drive": "", "bundle": b"", "id": b""}
        while page := conn.execute(query, last).all():
            yield page
            last = {name: getattr(page[-1], name) for name in last}


def _this(key: BlobKey) -> ColumnElement[bool]:
    return (chunks.c.drive == key.drive) & (chunks.c.id == key.chunk)


def _name(names: Names, chunk: Row[Any], holders: Any) -> Finding:
    """A finding that says whose chunk it is: the path and version of one file that needs it."""
    finding = Finding("", "", "", account=names.account(chunk.drive), chunk=chunk.id.hex())
    for version in holders[:1]:
        finding.version, finding.file = version, names.holder(version)
        finding.path = names.path(finding.file) if finding.file is not None else None
    return finding
