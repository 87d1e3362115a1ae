"""The walk of garbage collection over all chunks.

Knows: what the state of a chunk asks for, and how it is carried out. Must not know: sessions,
history, objects without a row (`gc`, whose header has the rules and why they are safe).

Concurrency: `Walk` finds what to do by reading and carries it out in batches, each in a write
transaction that checks again. It may be given up at any pause.
"""

from __future__ import annotations

import enum
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, case, delete, exists, select, tuple_, update

from remote.protocol.signing import LONGEST_SECONDS
from server.metadata.db import Database
from server.metadata.records import slices
from server.metadata.schema import chunks, upload_chunks, uploads, version_chunks
from server.storage.blobs import BlobKey, BlobStore
from server.uploads import quota
from server.uploads.quota import Sums

SECOND = 10**9
DAY = 86_400 * SECOND
# How long a chunk is doomed at least: the longest a signed URL may live, and five minutes.
GRACE_NS = (LONGEST_SECONDS + 300) * SECOND

# Chunks looked at in one read.
PAGE = 2000
# Rows changed, or objects deleted, in one write transaction.
BATCH = 200

# The columns of a chunk that lies in no bundle.
NOWHERE: Final = {"bundle": None, "bundle_offset": None, "copied": 0}

Clock = Callable[[], int]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`keep_days` and `keep_versions` are for accounts that have none of their own; `feed_ns` is
    how long changes are kept in the feed; a `grace_ns` below `GRACE_NS` means that. With `orphans`,
    the blob store is listed for objects that no row speaks of."""

    keep_days: int = 30
    keep_versions: int = 10
    feed_ns: int = 90 * DAY
    grace_ns: int = GRACE_NS
    orphans: bool = True
    dry_run: bool = False


class Collected(msgspec.Struct):
    """The result of a run, or in a dry run what it would be; `*_bytes` are those of stored objects.

    `uploads` expired; `versions` and `files` are history and trash beyond what is kept; `changes`
    left the feed; `promised` chunks were never uploaded; `doomed` ones lost their last reference
    and are for a later run to delete; `orphans` are objects that no row spoke of."""

    uploads: int = 0
    versions: int = 0
    files: int = 0
    changes: int = 0
    promised: int = 0
    promised_bytes: int = 0
    doomed: int = 0
    doomed_bytes: int = 0
    revived: int = 0
    revived_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    bundles: int = 0
    bundles_bytes: int = 0
    rewritten: int = 0
    rewritten_bytes: int = 0
    orphans: int = 0
    orphans_bytes: int = 0

    def count(self, what: str, number: int, stored: int) -> None:
        """Add `number` chunks or objects of `stored` bytes to `what`."""
        for name, more in ((what, number), (f"{what}_bytes", stored)):
            setattr(self, name, getattr(self, name) + more)

    def is_nothing(self) -> bool:
        return not any(msgspec.structs.astuple(self))


class Verdict(enum.Enum):
    """The next step for a chunk."""

    DROP = "nobody will upload it"
    DOOM = "nobody refers to it"
    REVIVE = "somebody refers to it again"
    DELETE = "nobody has referred to it for long enough"
    FINISH = "a deletion was begun"


_COUNTED: Final = {
    Verdict.DROP: "promised",
    Verdict.DOOM: "doomed",
    Verdict.REVIVE: "revived",
    Verdict.DELETE: "deleted",
}


def verdict(chunk: Any, now_ns: int, grace_ns: int) -> Verdict | None:
    """The next step that the state of `chunk` (a row of `_PAGE`) asks for; None: there is none."""
    is_held = chunk.referenced or chunk.leased
    if chunk.state == "pending":
        is_old = chunk.created_ns <= now_ns - grace_ns
        return Verdict.DROP if is_old and not is_held else None
    if chunk.state == "uploaded":
        return None if is_held else Verdict.DOOM
    if chunk.state == "doomed":
        if is_held:
            return Verdict.REVIVE
        return Verdict.DELETE if chunk.doomed_ns <= now_ns - grace_ns else None
    # A version never refers to what is being deleted; should it, then fsck is to say so, not we.
    return Verdict.FINISH if not chunk.referenced else None


_referenced = exists().where(
    version_chunks.c.drive == chunks.c.drive, version_chunks.c.chunk == chunks.c.id
)
_leased = exists().where(
    upload_chunks.c.drive == chunks.c.drive, upload_chunks.c.chunk == chunks.c.id
)
_unheld = ~_referenced & ~_leased
_PAGE = (
    select(
        chunks.c.drive,
        chunks.c.id,
        chunks.c.state,
        chunks.c.stored_length,
        chunks.c.created_ns,
        chunks.c.doomed_ns,
        _referenced.label("referenced"),
        _leased.where(
            uploads.c.version == upload_chunks.c.version,
            uploads.c.expires_ns > bindparam("since"),
        ).label("leased"),
    )
    .where(tuple_(chunks.c.drive, chunks.c.id) > tuple_(bindparam("drive"), bindparam("id")))
    .order_by(chunks.c.drive, chunks.c.id)
    .limit(PAGE)
)


@dataclass
class Walk:
    """One walk over all chunks, counting in `found`."""

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
            # Expired sessions have ended by now; in a dry run their leases count as gone.
            since = self.clock() if self.options.dry_run else -1
            with self.db.read() as conn:
                where = {"drive": drive, "id": id, "since": since}
                page = conn.execute(_PAGE, where).all()
            if not page:
                return
            yield
            drive, id = page[-1].drive, page[-1].id
            yield from self._act(page)

    def _act(self, page: Sequence[Row[Any]]) -> Iterator[None]:
        """Do what the chunks of a page ask for, by drive and in batches."""
        now_ns = self.clock()
        asked: defaultdict[tuple[Verdict, str], list[Row[Any]]] = defaultdict(list)
        for chunk in page:
            what = verdict(chunk, now_ns, self.grace_ns)
            if what is not None:
                asked[what, chunk.drive].append(chunk)
        for (what, drive), rows in asked.items():
            if self.options.dry_run:
                self._count(what, [row.stored_length for row in rows])
                continue
            for batch in slices((row.id for row in rows), BATCH):
                yield from self._do(what, drive, batch)

    def _do(self, what: Verdict, drive: str, ids: Sequence[bytes]) -> Iterator[None]:
        if what in (Verdict.DELETE, Verdict.FINISH):
            yield from self._erase(what, drive, ids)
            return
        carry_out = {Verdict.DROP: self._drop, Verdict.DOOM: self._doom, Verdict.REVIVE: _revive}
        with self.db.write() as conn:
            lengths = carry_out[what](conn, drive, ids)
        self._count(what, lengths)
        yield

    def _count(self, what: Verdict, lengths: Sequence[int]) -> None:
        if what in _COUNTED:
            self.found.count(_COUNTED[what], len(lengths), sum(lengths))

    def _drop(self, conn: Connection, drive: str, ids: Sequence[bytes]) -> list[int]:
        """Forget promises, and what may have been stored for them unasked."""
        old = chunks.c.created_ns <= self.clock() - self.grace_ns
        mine = _those(drive, ids) & (chunks.c.state == "pending") & old & _unheld
        columns = (chunks.c.id, chunks.c.stored_length, chunks.c.unshown)
        rows = conn.execute(select(*columns).where(mine)).all()
        for row in rows:
            self.blobs.delete(BlobKey(drive, row.id))
        _forget(conn, drive, [row.id for row in rows])
        quota.change(conn, drive, -Sums.of_pending(rows))
        return [row.stored_length for row in rows]

    def _doom(self, conn: Connection, drive: str, ids: Sequence[bytes]) -> list[int]:
        mine = _those(drive, ids) & (chunks.c.state == "uploaded") & _unheld
        doomed = update(chunks).where(mine).values(state="doomed", doomed_ns=self.clock())
        return _changed(conn, doomed)

    def _erase(self, what: Verdict, drive: str, ids: Sequence[bytes]) -> Iterator[None]:
        """Decide, delete the objects, forget the rows."""
        if what is Verdict.DELETE:
            with self.db.write() as conn:
                ids = self._decide(conn, drive, ids)
            yield
        for id in ids:
            self.blobs.delete(BlobKey(drive, id))
            yield
        with self.db.write() as conn:
            _finish(conn, drive, ids, self.clock())
        yield

    def _decide(self, conn: Connection, drive: str, ids: Sequence[bytes]) -> list[bytes]:
        """Mark as `deleting` those that nobody has referred to for the grace; returns them."""
        old = chunks.c.doomed_ns <= self.clock() - self.grace_ns
        mine = _those(drive, ids) & (chunks.c.state == "doomed") & old & _unheld
        decided = update(chunks).where(mine).values(state="deleting")
        rows = conn.execute(decided.returning(chunks.c.id, chunks.c.stored_length)).all()
        lengths = [row.stored_length for row in rows]
        quota.change(conn, drive, Sums(used=-sum(lengths)))
        self._count(Verdict.DELETE, lengths)
        return [row.id for row in rows]


def _revive(conn: Connection, drive: str, ids: Sequence[bytes]) -> list[int]:
    """Commits and leases revive by themselves; this repairs what did not."""
    mine = _those(drive, ids) & (chunks.c.state == "doomed") & ~_unheld
    revived = update(chunks).where(mine).values(state="uploaded", doomed_ns=None)
    return _changed(conn, revived)


def _finish(conn: Connection, drive: str, ids: Sequence[bytes], now_ns: int) -> None:
    """The objects are gone: the rows go too, or wait for an upload that has begun since."""
    mine = _those(drive, ids) & (chunks.c.state == "deleting")
    unshown = case((_leased.where(upload_chunks.c.proven != 0), 0), else_=1)
    wanted = update(chunks).where(mine & _leased).values(**renewed(now_ns), unshown=unshown)
    rows = conn.execute(wanted.returning(chunks.c.stored_length, chunks.c.unshown)).all()
    quota.change(conn, drive, Sums.of_pending(rows))
    _forget(conn, drive, conn.execute(select(chunks.c.id).where(mine & _unheld)).scalars().all())


def renewed(now_ns: int) -> dict[str, Any]:
    """The columns of a chunk whose object is gone and that is to be uploaded again."""
    gone = dict.fromkeys(("uploaded_ns", "doomed_ns", "device", "verified_ns"))
    return {"state": "pending", "created_ns": now_ns, **gone, **NOWHERE}


def _those(drive: str, ids: Sequence[bytes]) -> Any:
    return (chunks.c.drive == drive) & chunks.c.id.in_(ids)


def _changed(conn: Connection, statement: Any) -> list[int]:
    """The stored lengths of the chunks that `statement` changed."""
    return list(conn.execute(statement.returning(chunks.c.stored_length)).scalars())


def _forget(conn: Connection, drive: str, ids: Sequence[bytes]) -> None:
    if ids:
        conn.execute(delete(chunks).where(_those(drive, ids)))
