"""Garbage collection: what no version and no upload needs any more is deleted, in small steps.

Knows: the states of a chunk, and when an object may go. Must not know: which versions are kept
(`retention`), who runs this and how often (`janitor`, `admin`), what a bundle asks for
(`gc_bundles`).

    pending ──(a PUT arrived)──> uploaded ──(nobody refers to it)──> doomed ──(grace)──> deleting
       ^                            ^                                  │                    │
       │                            └──(a version or a lease refers)───┘                    │
       └──(a lease refers, and the object has been deleted)─────────────────────────────────┤
                                                              (nobody: the row is deleted) <┘

`steps` is a generator that pauses between transactions and between deletions of objects: each
pause may be the end (a crash, a stop), and the next run goes on from what the tables say. What is
doomed or to be deleted is found by reading; a write transaction only takes a batch of it and checks
again. A run beside a server in another process shares nothing with it but the database's write
lock; two runs are kept apart by `lock`.

Why no version loses an object:

1.  An object is deleted only while its row says `deleting`, or inside a write transaction that saw
    its row `pending` or no row. (`verification` deletes bad objects by the same rule.)
2.  A chunk is marked `uploaded` only by a write transaction that sees it `pending` and its object
    there (`service`, `arrivals`), or `doomed` (a revival). Write transactions exclude each other,
    and the row leaves `deleting` only after its deletion has returned, so with (1) no deletion of
    the object is under way at that moment, nor can one begin while the row stays as it is.
3.  A version refers only to chunks that its commit sees `uploaded` or `doomed`, reviving them; a
    lease revives too. `doomed` becomes `deleting` only in a write transaction that sees neither a
    version nor a lease: whoever commits first decides, and the other one sees it.

The races that this decides, one by one:

- PUT against the deletion of `deleting`: before it, the PUT finds the object (412) and the object
  goes; after it, the PUT stores a new one, whose arrival finds `deleting` and marks nothing. If
  there is a lease the row becomes `pending`, and the HEAD at apply finds the new object or answers
  that the chunk is needed; if there is none, the new object is an orphan, and no row speaks of it.
- HEAD at apply against any deletion: the HEAD is a hint; the transaction that marks the chunk looks
  again, by (2). A late or repeated event is the same.
- Revival at commit against the decision to delete: (3).
- A signed GET in flight: it was signed while a version referred to the chunk, so before it was
  doomed, and dies before the grace is over; no grace is shorter than the longest life of a signed
  URL, with a margin for slow answers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, func, select, union_all

from server.changes.fanout import News
from server.drive import retention
from server.maintenance import account_removal, gc_bundles, gc_chunks
from server.maintenance.gc_chunks import BATCH, DAY, Clock, Collected, Options
from server.metadata.db import Database
from server.metadata.records import slices
from server.metadata.schema import bundles, chunks, uploads
from server.permissions import audit
from server.storage.blobs import BlobKey, BlobStore
from server.uploads import leases

ORPHAN_NS = DAY
# Leases ended in one write transaction.
LEASES = 5000

Report = Callable[[Collected], None]
Tell = Callable[[News], None]


def _nobody(_: object) -> None:
    """There is nobody to tell: beside a running server, nobody listens to this process."""


def run(
    db: Database,
    blobs: BlobStore,
    options: Options,
    report: Report = _nobody,
    clock: Clock = time.time_ns,
    tell: Tell = _nobody,
) -> Collected:
    """Collect everything that may go by now. `report` is told after each step, and may raise to
    stop: what was done stays done. `tell` gets the news of what was committed. Hold the lock of
    `lock.collecting`."""
    found = Collected()
    for _ in steps(db, blobs, options, found, clock, tell):
        report(found)
    if not options.dry_run and not found.is_nothing():
        with db.write() as conn:
            audit.note(conn, None, "gc", None, clock(), **msgspec.structs.asdict(found))
    return found


def steps(
    db: Database,
    blobs: BlobStore,
    options: Options,
    found: Collected,
    clock: Clock,
    tell: Tell = _nobody,
) -> Iterator[None]:
    """The work of `run`, pausing wherever it may end."""
    if options.dry_run:
        with db.read() as conn:
            _count_expiring(conn, options, found, clock())
    else:
        yield from account_removal.steps(db, clock)
        yield from _end_uploads(db, found, clock)
        yield from _expire(db, options, found, clock, tell)
    yield from gc_chunks.Walk(db, blobs, options, found, clock).steps()
    yield from gc_bundles.Walk(db, blobs, options, found, clock).steps()
    if options.orphans:
        yield from _sweep_orphans(db, blobs, options, found, clock)


# --- what ends by itself ------------------------------------------------------------------------


def _count_expiring(conn: Connection, options: Options, found: Collected, now_ns: int) -> None:
    expired = select(func.count()).select_from(uploads).where(uploads.c.expires_ns <= now_ns)
    found.uploads = conn.execute(expired).scalar_one()
    gone = retention.would_expire(conn, now_ns, options.keep_days, options.keep_versions)
    found.versions, found.files = gone.versions, gone.files


def _end_uploads(db: Database, found: Collected, clock: Clock) -> Iterator[None]:
    """Sessions that have expired end, and their leases with them."""
    while True:
        with db.write() as conn:
            more = _end_one_upload(conn, found, clock())
        yield
        if not more:
            return


def _end_one_upload(conn: Connection, found: Collected, now_ns: int) -> bool:
    """End one expired session, or some of its leases when it has very many. False: there is none.

    A session that its owner goes on with after it lost some leases gets them again as it asks for
    those chunks; one that it does not ask for is refused at commit as missing, and asked for then.
    """
    expired = select(uploads.c.version).where(uploads.c.expires_ns <= now_ns).limit(1)
    version = conn.execute(expired).scalar()
    if version is None:
        return False
    if leases.let_go(conn, version, LEASES):
        return True
    leases.end(conn, [version])
    found.uploads += 1
    return True


def _expire(
    db: Database, options: Options, found: Collected, clock: Clock, tell: Tell
) -> Iterator[None]:
    """History and trash beyond what is kept, and the oldest part of the change feed."""
    more = True
    while more:
        with db.write() as conn:
            keep = (options.keep_days, options.keep_versions)
            gone = retention.expire(conn, clock(), *keep, BATCH)
        for news in gone.news:
            tell(news)
        found.versions, found.files = found.versions + gone.versions, found.files + gone.files
        more = gone.more
        yield
    pruned = BATCH
    while pruned:
        with db.write() as conn:
            pruned = retention.prune_feed(conn, clock(), options.feed_ns, BATCH)
        found.changes += pruned
        yield


# --- objects without a row ----------------------------------------------------------------------

_IDS = union_all(
    *(
        select(table.c.id).where(
            table.c.drive == bindparam("drive"), table.c.id.in_(bindparam("ids", expanding=True))
        )
        for table in (chunks, bundles)
    )
)


def _sweep_orphans(
    db: Database, blobs: BlobStore, options: Options, found: Collected, clock: Clock
) -> Iterator[None]:
    """Objects that no row speaks of and that are older than anything that could still make one."""
    for some in slices(blobs.keys()):
        with db.read() as conn:
            orphans = unknown(conn, some)
        yield
        for batch in slices(orphans, BATCH):
            if options.dry_run:
                _sweep(blobs, batch, found, clock(), delete_them=False)
                continue
            with db.write() as conn:
                _sweep(blobs, unknown(conn, batch), found, clock(), delete_them=True)
            yield


def _sweep(
    blobs: BlobStore, keys: Iterable[BlobKey], found: Collected, now_ns: int, delete_them: bool
) -> None:
    for key in keys:
        stored = blobs.stat(key)
        if stored is None or stored.at_ns > now_ns - ORPHAN_NS:
            continue
        if delete_them:
            blobs.delete(key)
        found.count("orphans", 1, stored.length)


def unknown(conn: Connection, keys: Sequence[BlobKey]) -> list[BlobKey]:
    """Those of `keys` that have no row."""
    by_drive: defaultdict[str, list[bytes]] = defaultdict(list)
    for key in keys:
        by_drive[key.drive].append(key.chunk)
    known = {
        BlobKey(drive, id)
        for drive, ids in by_drive.items()
        for some in slices(ids)
        for id in conn.execute(_IDS, {"drive": drive, "ids": some}).scalars()
    }
    return [key for key in keys if key not in known]
