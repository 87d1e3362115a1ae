"""The walk of garbage collection over all bundles: empty ones go, mostly dead ones are rewritten.

Knows: when the object of a bundle may go, and how what lives in one moves elsewhere. Must not know:
which chunks live (`gc_chunks`).

    (its last chunk left) -> emptied -> (grace) -> deleting -> (the object is gone: no row)
             ^                  |
             +-- (chunks again) +

What keeps readers and versions safe, beside the rules in the header of `gc`:

1.  A chunk's row says where it lies, and changes that only in a write transaction that saw the
    object there at its new place. Until then it is read at the old one, and the old object stays
    readable for the grace after its last chunk left: so long may a URL live that was signed before.
2.  The object of a bundle is deleted only while its row is `deleting`, which is set by a write
    transaction that sees no chunk in it; nothing is put into a bundle that is `deleting`.
3.  An object is written before any row speaks of it. What a crash leaves is an orphan, or lies
    beside the bundle under the chunk's own key and goes with the chunk.

Concurrency: as `gc_chunks`. It may be given up at any pause.
"""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import structlog
from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from remote.protocol.bundle import MAX_PARTS, MAX_PARTS_LENGTH, bundle_of
from remote.protocol.content import BadContent, Descriptor
from server.maintenance.gc_chunks import GRACE_NS, Clock, Collected, Options
from server.metadata.db import Database
from server.metadata.schema import bundles, chunks
from server.storage.blobs import BlobKey, BlobMissing, BlobStore, Head
from server.storage.bundles import read_bundle
from server.uploads.bundles import IS_USED
from server.uploads.leases import THERE
from server.uploads.verification import Checker

PAGE = 500
# A bundle is rewritten when no more than this part of it is alive: so what is stored is at most
# twice what is counted, and a byte is written again once for each that died.
ALIVE = 0.5

log = structlog.get_logger("nearline.server")

_decode = msgspec.msgpack.Decoder(Descriptor).decode
# The chunks in a bundle, as an index alone tells them: asked for other columns of many chunks at
# once, SQLite walks the drive.
_inside = chunks.alias("inside")
_in_bundle = (_inside.c.drive == bundles.c.drive) & (_inside.c.bundle == bundles.c.id)
_that_chunk = (chunks.c.drive == _inside.c.drive) & (chunks.c.id == _inside.c.id)


class Verdict(enum.Enum):
    """A thing to be done with a bundle."""

    EMPTY = "nothing is in it any more"
    FILL = "something is in it again"
    REWRITE = "most of it is dead, or it is of very small chunks"
    DELETE = "it has been empty for long enough"
    FINISH = "a deletion was begun"


def verdict(bundle: Any, now_ns: int, grace_ns: int) -> Verdict | None:
    """The thing that the state of `bundle` (a row of `_PAGE`) asks for; None: nothing."""
    if bundle.deleting:
        # Should a chunk be in it all the same, then fsck is to say so, not we.
        return Verdict.FINISH if not bundle.parts else None
    if bundle.parts:
        if bundle.emptied_ns is not None:
            return Verdict.FILL
        return Verdict.REWRITE if bundle.alive <= ALIVE * bundle.length else None
    if bundle.emptied_ns is None:
        return Verdict.EMPTY
    return Verdict.DELETE if bundle.emptied_ns <= now_ns - grace_ns else None


_PAGE = (
    select(
        bundles,
        func.count(chunks.c.id).label("parts"),
        func.coalesce(func.sum(chunks.c.stored_length), 0).label("alive"),
    )
    .outerjoin_from(bundles, _inside, _in_bundle)
    .outerjoin(chunks, _that_chunk)
    .where(tuple_(bundles.c.drive, bundles.c.id) > tuple_(bindparam("drive"), bindparam("id")))
    .group_by(bundles.c.drive, bundles.c.id)
    .order_by(bundles.c.drive, bundles.c.id)
    .limit(PAGE)
)
_this = (bundles.c.drive == bindparam("d")) & (bundles.c.id == bindparam("i"))
_FILL = update(bundles).where(_this, bundles.c.deleting == 0).values(emptied_ns=None)
_EMPTY = (
    update(bundles)
    .where(_this, bundles.c.emptied_ns.is_(None), ~IS_USED)
    .values(emptied_ns=bindparam("now"))
)
_DELETE = (
    update(bundles)
    .where(_this, bundles.c.emptied_ns <= bindparam("before"), ~IS_USED)
    .values(deleting=1)
)
_FINISH = delete(bundles).where(_this, bundles.c.deleting != 0, ~IS_USED)
_PARTS = (
    select(
        chunks.c.id,
        chunks.c.state,
        chunks.c.bundle_offset,
        chunks.c.stored_length,
        chunks.c.sha256,
        chunks.c.descriptor,
        chunks.c.copied,
    )
    .join_from(_inside, chunks, _that_chunk)
    .where(_inside.c.drive == bindparam("d"), _inside.c.bundle == bindparam("i"))
    .order_by(chunks.c.bundle_offset)
)
_old_place = (
    (chunks.c.drive == bindparam("d"))
    & (chunks.c.id == bindparam("i"))
    & (chunks.c.bundle == bindparam("old"))
    & (chunks.c.bundle_offset == bindparam("old_offset"))
)
_MOVE = (
    update(chunks)
    .where(_old_place)
    .values(bundle=bindparam("new"), bundle_offset=bindparam("new_offset"))
)
_STAND_ALONE = update(chunks).where(_old_place).values(bundle=None, bundle_offset=None, copied=0)


class Part(NamedTuple):
    """A living chunk of a bundle that is to be rewritten; `stored` are its bytes as they are
    stored."""

    id: bytes
    bundle: bytes
    offset: int
    descriptor: Descriptor
    stored: bytes


@dataclass
class Walk:
    """One walk over all bundles, counting in `found`."""

    db: Database
    blobs: BlobStore
    options: Options
    found: Collected
    clock: Clock = time.time_ns

    @property
    def grace_ns(self) -> int:
        return max(self.options.grace_ns, GRACE_NS)

    def steps(self) -> Iterator[None]:
        drive, id = "", b""
        while True:
            with self.db.read() as conn:
                page = conn.execute(_PAGE, {"drive": drive, "id": id}).all()
            if not page:
                return
            yield
            drive, id = page[-1].drive, page[-1].id
            yield from self._act(page)

    def _act(self, page: Sequence[Row[Any]]) -> Iterator[None]:
        """Do what the bundles of a page ask for. Those to be rewritten are gathered by drive, so
        that what is left of several becomes one."""
        now_ns, gathered = self.clock(), list[Part]()
        drive = ""
        for bundle in page:
            what = verdict(bundle, now_ns, self.grace_ns)
            if gathered and bundle.drive != drive:
                yield from self._write_anew(drive, gathered)
                gathered = []
            drive = bundle.drive
            if what is Verdict.REWRITE:
                if not self._is_mostly_dead(bundle):
                    continue
                self._count(what, bundle)
                if not self.options.dry_run:
                    for part in self._alive(bundle):
                        if not _fits(gathered, part):
                            yield from self._write_anew(drive, gathered)
                            gathered = []
                        gathered.append(part)
                    yield
            elif what is not None:
                yield from self._do(what, bundle)
        if gathered:
            yield from self._write_anew(drive, gathered)

    def _count(self, what: Verdict, bundle: Row[Any]) -> None:
        if what is Verdict.REWRITE:
            self.found.count("rewritten", 1, bundle.alive)
        elif what is Verdict.DELETE:
            self.found.count("bundles", 1, bundle.length)

    def _do(self, what: Verdict, bundle: Row[Any]) -> Iterator[None]:
        if self.options.dry_run:
            self._count(what, bundle)
            return
        this: dict[str, object] = {"d": bundle.drive, "i": bundle.id}
        if what in (Verdict.EMPTY, Verdict.FILL):
            with self.db.write() as conn:
                if what is Verdict.EMPTY:
                    conn.execute(_EMPTY, this | {"now": self.clock()})
                else:
                    conn.execute(_FILL, this)
            yield
            return
        if what is Verdict.DELETE:
            before = self.clock() - self.grace_ns
            with self.db.write() as conn:
                if conn.execute(_DELETE, this | {"before": before}).rowcount != 1:
                    return
            self._count(what, bundle)
            yield
        self.blobs.delete(BlobKey(bundle.drive, bundle.id))
        yield
        with self.db.write() as conn:
            conn.execute(_FINISH, this)
        yield

    # --- rewriting ---

    def _is_mostly_dead(self, bundle: Row[Any]) -> bool:
        """True if it is, not counting its index: that of very small chunks is longer than they
        are."""
        try:
            whole = read_bundle(self.blobs, BlobKey(bundle.drive, bundle.id))
        except (BadContent, BlobMissing, OSError) as error:
            log.error("bundle_not_rewritten", bundle=bundle.id.hex(), error=str(error))
            return False
        alive: int = bundle.alive
        return alive <= ALIVE * (whole.length - len(whole.tail))

    def _alive(self, bundle: Row[Any]) -> list[Part]:
        """The chunks that are to leave the bundle, read and checked. One that is damaged stays
        where it is: `verification` and fsck tell of it. Who stands alone already, whole, just
        goes."""
        with self.db.read() as conn:
            rows = conn.execute(_PARTS, {"d": bundle.drive, "i": bundle.id}).all()
        alone = [row for row in rows if row.copied and self._is_copy(bundle.drive, row)]
        if alone:
            with self.db.write() as conn:
                for row in alone:
                    if self._has(bundle.drive, row):
                        old = _old(bundle.drive, bundle.id, row.id, row.bundle_offset)
                        conn.execute(_STAND_ALONE, old)
        left = [row for row in rows if row.state in THERE and row not in alone]
        return list(self._checked(bundle, left))

    def _is_copy(self, drive: str, row: Any) -> bool:
        """True if the object of the chunk's own, read back, is as it should be."""
        try:
            found = self.blobs.head(BlobKey(drive, row.id))
        except OSError as error:
            log.error("copy_not_read", chunk=row.id.hex(), error=str(error))
            return False
        return found == Head(row.stored_length, row.sha256)

    def _has(self, drive: str, row: Any) -> bool:
        """True if there is an object of the chunk's own."""
        stored = self.blobs.stat(BlobKey(drive, row.id))
        return stored is not None and stored.length == row.stored_length

    def _checked(self, bundle: Row[Any], rows: Iterable[Any]) -> Iterator[Part]:
        key = BlobKey(bundle.drive, bundle.id)
        for row in rows:
            try:
                stored = self.blobs.read(key, row.bundle_offset, row.stored_length)
                descriptor = _decode(row.descriptor)
                checker = Checker(descriptor)
                checker.feed(stored)
                checker.finish()
            except (BadContent, BlobMissing, OSError, msgspec.MsgspecError) as error:
                log.error("part_not_rewritten", chunk=row.id.hex(), error=str(error))
                continue
            yield Part(row.id, bundle.id, row.bundle_offset, descriptor, stored)

    def _write_anew(self, drive: str, parts: Sequence[Part]) -> Iterator[None]:
        """Write these chunks as one object, and point their rows there."""
        if len(parts) == 1:
            yield from self._write_alone(drive, parts[0])
            return
        bundle = bundle_of([part.descriptor for part in parts])
        body = b"".join(part.stored for part in parts) + bundle.tail
        key = BlobKey(drive, bundle.id)
        if not self._store(key, body):
            return
        yield
        moves = [
            _old(drive, part.bundle, part.id, part.offset)
            | {"new": bundle.id, "new_offset": offset}
            for part, offset in zip(parts, bundle.offsets, strict=True)
        ]
        with self.db.write() as conn:
            if self._is_there(key, body) and self._open_row(conn, key, body):
                conn.execute(_MOVE, moves)
        yield

    def _open_row(self, conn: Connection, key: BlobKey, body: bytes) -> bool:
        """Have a row into which chunks may be put. False: that bundle is being deleted just now."""
        this: dict[str, object] = {"d": key.drive, "i": key.chunk}
        if conn.execute(select(bundles.c.id).where(_this), this).first() is not None:
            return conn.execute(_FILL, this).rowcount == 1
        row = {"drive": key.drive, "id": key.chunk, "length": len(body)}
        row |= {"sha256": hashlib.sha256(body).digest(), "created_ns": self.clock()}
        conn.execute(insert(bundles), row)
        return True

    def _write_alone(self, drive: str, part: Part) -> Iterator[None]:
        key = BlobKey(drive, part.id)
        if not self._store(key, part.stored):
            return
        yield
        with self.db.write() as conn:
            if self._is_there(key, part.stored):
                conn.execute(_STAND_ALONE, _old(drive, part.bundle, part.id, part.offset))
        yield

    def _store(self, key: BlobKey, body: bytes) -> bool:
        """False: the disk does not take it. On a full one what can be deleted still is to be."""
        try:
            with self.blobs.create(key) as writer:
                writer.write(body)
                writer.commit()  # or it is there already: looked at again where it counts
        except OSError as error:
            log.error("rewritten_not_stored", object=key.chunk.hex(), error=str(error))
            return False
        return True

    def _is_there(self, key: BlobKey, body: bytes) -> bool:
        """True if the object is there, whole. Asked in the write transaction that will say so."""
        return self.blobs.head(key) == Head(len(body), hashlib.sha256(body).digest())


def _old(drive: str, bundle: bytes, id: bytes, offset: int) -> dict[str, object]:
    """A chunk where it was, for `_MOVE` and `_STAND_ALONE`."""
    return {"d": drive, "i": id, "old": bundle, "old_offset": offset}


def _fits(parts: Sequence[Part], more: Part) -> bool:
    """True if `more` may go into one bundle with these."""
    total = sum(len(part.stored) for part in parts) + len(more.stored)
    return total <= MAX_PARTS_LENGTH and len(parts) < MAX_PARTS
